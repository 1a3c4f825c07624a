"""The transfer-learning baseline: pre-train on all classes together, then learn a new head."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from metadraw.algorithms.anil import head_path
from metadraw.algorithms.base import State
from metadraw.algorithms.inner_loop import InnerLoop
from metadraw.algorithms.pretrained import Pretrained
from metadraw.data.episode import Episode
from metadraw.objectives import Objective


class FineTune(Pretrained):
    """A pre-trained classifier; a task is learned by training a new head, or the whole network.

    The "Baseline" of Chen et al. 2019 ("A Closer Look at Few-shot Classification"). A task's head
    starts at zero, so all classes are equally likely before adaptation.

    Args:
        network: see `Algorithm`.
        head: only its number of input features is used.
        objective: classification.
        classes: see `Pretrained`.
        label_smoothing: see `Pretrained`.
        running_statistics: see `Pretrained`.
        mirror_images: see `Pretrained`.
        frozen: adapt the head alone, on fixed features.
        **inner: see `InnerLoop`; used to adapt to a task, not in pre-training.

    Raises:
        InputError: see `Pretrained` and `InnerLoop`.
    """

    inner: InnerLoop

    def __init__(
        self,
        network: nn.Module,
        head: nn.Linear,
        objective: Objective,
        *,
        classes: int,
        label_smoothing: float,
        running_statistics: bool,
        mirror_images: bool = False,
        frozen: bool,
        **inner: Any,
    ) -> None:
        super().__init__(
            network,
            head,
            objective,
            classes=classes,
            label_smoothing=label_smoothing,
            running_statistics=running_statistics,
            mirror_images=mirror_images,
            inner=InnerLoop(**inner, first_order=True),
        )
        self.frozen = frozen

    def start(self, task: Episode) -> State:
        """The network, and a head of zeros."""
        weight = self.classifier.weight.new_zeros(
            self.objective.width(task), self.classifier.in_features
        )
        head = {"head.weight": weight, "head.bias": torch.zeros_like(weight[:, 0])}
        return super().start(task) | head

    def adapt(self, task: Episode, steps: int) -> list[State]:
        """The head, and the network unless frozen, before and after each step; see `Algorithm`."""
        if not self.frozen:
            return self.inner.path(self.loss_on(task.support), self.start(task), steps)
        return head_path(self, task, steps)
