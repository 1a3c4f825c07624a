"""A teacher whose probabilities a pre-trained classifier imitates (Hinton et al. 2015)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from metadraw.data.episode import Examples
from metadraw.errors import check_positive, check_share
from metadraw.objectives.base import mean

if TYPE_CHECKING:
    from metadraw.algorithms.pretrained import Pretrained


@dataclass(frozen=True)
class Teacher:
    """A trained classifier, and how much of its probabilities another one learns.

    Attributes:
        classifier: in evaluation mode.
        share: of its loss in the whole, in 0..1.
        temperature: by which the logits of both are divided, above 0: the higher, the more is
            learned of the less likely classes.

    Raises:
        InputError: an impossible share or temperature.
    """

    classifier: Pretrained
    share: float
    temperature: float

    def __post_init__(self) -> None:
        check_share("teacher.share", self.share)
        check_positive("teacher.temperature", self.temperature)

    def loss(self, own: Tensor, logits: Tensor, examples: Examples) -> Tensor:
        """The student's own loss, with its share of the divergence from the teacher.

        Args:
            own: the loss on the labels, a scalar.
            logits: the student's, ``[B, C]``.
            examples: B of them.
        """
        teacher = self.classifier.to(examples.x.device)
        with torch.no_grad():
            known = teacher.classifier(teacher.features(examples.x))
        # A teacher of more classes, such as orientations, has them after these.
        likely = (known[:, : logits.shape[1]] / self.temperature).softmax(dim=1)
        log_chances = (logits / self.temperature).log_softmax(dim=1)
        divergence = F.kl_div(log_chances, likely, reduction="none").sum(dim=1)
        # Section 2: by the square, both gradients keep their sizes as the temperature changes.
        imitation = self.temperature**2 * mean(divergence, examples)
        return (1 - self.share) * own + self.share * imitation
