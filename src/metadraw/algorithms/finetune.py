"""The transfer-learning baseline: pre-train on all classes together, then learn a new head."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metadraw.algorithms.anil import head_path
from metadraw.algorithms.base import Outcome, State
from metadraw.algorithms.maml import MAML
from metadraw.algorithms.recompute import Params
from metadraw.data.episode import Episode, joined
from metadraw.errors import InputError
from metadraw.objectives import Objective
from metadraw.objectives.base import mean


class FineTune(MAML):
    """Pre-train as a classifier of all meta-training classes, then learn a new head for each task.

    The "Baseline" of Chen et al. 2019 ("A Closer Look at Few-shot Classification").
    Pre-training sees the same drawings as meta-training, support and query set together, but
    labelled by their class among all classes. A task's head starts at zero, so all classes are
    equally likely before adaptation. The metrics that pre-training logs as "after adaptation" are
    the classifier's, restricted to the classes of the task.

    Args:
        network: see `Algorithm`.
        head: only its number of input features is used.
        objective: classification.
        classes: how many classes the data have in all splits together.
        frozen: adapt the head alone, on fixed features.
        **inner: see `InnerLoop`; used to adapt to a task, not in pre-training.

    Raises:
        InputError: a number of classes below 1; see also `MAML`.
    """

    any_ways = only_classes = True

    def __init__(
        self,
        network: nn.Module,
        head: nn.Linear,
        objective: Objective,
        *,
        classes: int,
        frozen: bool,
        **inner: Any,
    ) -> None:
        super().__init__(network, None, objective, **inner, first_order=True)
        if classes < 1:
            raise InputError(f"algorithm.classes={classes}: must be at least 1")
        self.classifier = nn.Linear(head.in_features, classes)
        self.frozen = frozen

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

    def forward(self, task: Episode) -> tuple[Tensor, Outcome, Params]:
        """The pre-training loss of one task's drawings; see `Algorithm.forward`."""
        examples, classes = joined(task.support, task.query), task.about["classes"]
        with self.weighted(examples):
            logits = self.classifier(self.features(examples.x))  # [B, all classes]
        loss = mean(F.cross_entropy(logits, classes[examples.y], reduction="none"), examples)
        after = logits[len(task.support.x) :, classes]
        return loss, Outcome(torch.zeros_like(after), after), {}

    def start(self, task: Episode) -> State:
        """The network, and a head of zeros."""
        weight = self.classifier.weight.new_zeros(
            self.objective.width(task), self.classifier.in_features
        )
        network = {n: p for n, p in super().start(task).items() if n.startswith("network.")}
        return network | {"head.weight": weight, "head.bias": torch.zeros_like(weight[:, 0])}

    def adapt(self, task: Episode, steps: int) -> list[State]:
        """The head, and the network unless frozen, before and after each step; see `Algorithm`."""
        if not self.frozen:
            return super().adapt(task, steps)
        head = {name: p for name, p in self.start(task).items() if name.startswith("head.")}
        return head_path(self, head, task, steps)
