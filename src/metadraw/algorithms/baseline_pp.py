"""Baseline++ (Chen et al. 2019, "A Closer Look at Few-shot Classification")."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from metadraw.algorithms.base import State
from metadraw.algorithms.finetune import FineTune
from metadraw.algorithms.inner_loop import positive
from metadraw.data.episode import Episode
from metadraw.models.head import CosineClassifier, cosine
from metadraw.objectives import Objective


class BaselinePlusPlus(FineTune):
    """A pre-trained cosine classifier; a task is learned by training another, on fixed features.

    Section 3.2. A task's head starts at the weights of the first meta-training classes, scaled to
    length 1: as arbitrary as the paper's random ones, but the same each time.

    Args:
        network: see `Algorithm`.
        head: not used, except for how many features it takes.
        objective: classification.
        scale: what cosines are multiplied by, above 0.
        classes: see `Pretrained`; also the most ways that a task can have.
        **settings: see `FineTune`, except ``frozen``.

    Raises:
        InputError: a scale that is not above 0; see also `FineTune`.
    """

    def __init__(
        self,
        network: nn.Module,
        head: nn.Linear,
        objective: Objective,
        *,
        scale: float,
        classes: int,
        **settings: Any,
    ) -> None:
        super().__init__(network, head, objective, classes=classes, frozen=True, **settings)
        self.scale = positive(scale=scale)
        self.classifier = CosineClassifier(head.in_features, classes, scale)

    def adapt(self, task: Episode, steps: int) -> list[State]:
        """The head before and after each gradient step; see `Algorithm.adapt`."""
        features, ways = self.embed(task.support), self.objective.width(task)
        start = F.normalize(self.classifier.weight[:ways], dim=1)

        def loss(head: State) -> Tensor:
            logits = self.objective.outputs(lambda _: self._logits(features, head), task.support)
            return self.objective.loss(logits, task.support)

        return self.inner.path(loss, {"head.weight": start}, steps)

    def predict(self, state: State, x: Tensor) -> Tensor:
        """Logits ``[B, N]`` of images ``[B, C, H, W]``."""
        return self._logits(self.features(x), state)

    def _logits(self, features: Tensor, head: State) -> Tensor:
        return self.scale * cosine(features, head["head.weight"])
