"""The baseline of ordinary transfer: pre-train on all classes together, then a new head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metadraw.algorithms.base import Algorithm, Outcome, positive
from metadraw.algorithms.inner_loop import Params, gradient_steps
from metadraw.data.episode import Episode
from metadraw.errors import InputError
from metadraw.models.head import linear, open_head


class FineTune(Algorithm):
    """Pre-train as a classifier of all meta-training classes, then learn a new head for each task.

    The "Baseline" of Chen et al. 2019 ("A Closer Look at Few-shot Classification").
    Pre-training sees the same drawings as meta-training, support and query set together, but as
    members of their class among all classes. A task's head starts from zero, so that before
    adaptation all classes are the same. What is logged in pre-training as after adaptation is the
    classifier's choice among the classes of the task.

    Args:
        network: see `Algorithm`; its last linear layer is the head.
        classes: how many classes the data have, all splits together.
        frozen: learn the head alone in a task, on features that stay as they are.
        inner_lr: the learning rate in a task, above 0.
        inner_steps: full-batch gradient steps in a task; not used in pre-training.
        eval_inner_steps: the same in evaluation.

    Raises:
        InputError: a learning rate that is not above 0, or a network without a linear layer; see
            also `Algorithm`.
    """

    any_ways = True

    def __init__(
        self,
        network: nn.Module,
        *,
        classes: int,
        frozen: bool,
        inner_lr: float,
        inner_steps: int,
        eval_inner_steps: int,
    ) -> None:
        super().__init__(network, inner_steps=inner_steps, eval_inner_steps=eval_inner_steps)
        if classes < 1:
            raise InputError(f"algorithm.classes={classes}: must be at least 1")
        self.place, head = open_head(network)
        self.ways = head.out_features
        self.classifier = nn.Linear(head.in_features, classes)
        self.frozen, self.inner_lr = frozen, positive(inner_lr=inner_lr)

    def check_classes(self, count: int) -> None:
        """Check that the classifier has an output for each class.

        Raises:
            InputError: it has too few.
        """
        if count > self.classifier.out_features:
            raise InputError(
                f"algorithm.classes={self.classifier.out_features}: the data have {count} classes, "
                f"so it must be at least {count}"
            )

    def forward(self, episode: Episode) -> tuple[Tensor, Outcome, Params]:
        """The pre-training loss of one task's drawings; see `Algorithm.forward`."""
        x = torch.cat([episode.support_x, episode.query_x])
        labels = torch.cat([episode.support_y, episode.query_y])
        logits = self.classifier(self.network(x))  # [B, classes]
        loss = F.cross_entropy(logits, episode.classes[labels])
        after = logits[len(episode.support_x) :, episode.classes]
        return loss, Outcome(torch.zeros_like(after), after), {}

    def adapt(self, support_x: Tensor, support_y: Tensor, steps: int) -> list[Params]:
        """The head, and the body unless frozen, before and after each step; see `Algorithm`."""
        features = self.network(support_x)
        weight, bias = f"{self.place}.weight", f"{self.place}.bias"
        head = {
            weight: features.new_zeros(self.ways, features.shape[1]),
            bias: features.new_zeros(self.ways),
        }

        def loss_of_head(head: Params) -> Tensor:
            return F.cross_entropy(linear(features, head, self.place), support_y)

        return gradient_steps(
            loss_of_head if self.frozen else self.loss_on(support_x, support_y),
            head if self.frozen else self.network_parameters() | head,
            steps=steps,
            lr=self.inner_lr,
            first_order=True,
        )
