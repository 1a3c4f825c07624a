"""The transfer-learning baseline: pre-train on all classes together, then learn a new head."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from metadraw.algorithms.anil import head_path
from metadraw.algorithms.base import State
from metadraw.algorithms.inner_loop import InnerLoop
from metadraw.algorithms.inner_optimizers import InnerOptimizer
from metadraw.algorithms.pretrained import Pretrained
from metadraw.data.episode import Episode
from metadraw.errors import check_switch
from metadraw.objectives import Objective


class FineTune(Pretrained):
    """A pre-trained classifier; a task is learned by training a new head, or the whole network.

    The "Baseline" of Chen et al. 2019 ("A Closer Look at Few-shot Classification"). A task's head
    starts at zero, so all classes are equally likely before adaptation.

    Args:
        network: see `Algorithm`.
        head: only its number of input features is used.
        objective: classification.
        frozen: adapt the head alone, on fixed features.
        inner_lr: see `InnerLoop`; used to adapt to a task, not in pre-training, as the next three.
        inner_steps: see `InnerLoop`.
        eval_inner_steps: see `InnerLoop`.
        inner_optimizer: see `InnerLoop`.
        **pretraining: see `Pretrained`.

    Raises:
        InputError: ``frozen`` is neither true nor false; see also `Pretrained` and `InnerLoop`.
    """

    inner: InnerLoop

    def __init__(
        self,
        network: nn.Module,
        head: nn.Linear,
        objective: Objective,
        *,
        frozen: bool,
        inner_lr: float,
        inner_steps: int,
        eval_inner_steps: int,
        inner_optimizer: InnerOptimizer = InnerLoop.inner_optimizer,
        **pretraining: Any,
    ) -> None:
        inner = InnerLoop(inner_lr, inner_steps, eval_inner_steps, True, inner_optimizer)
        super().__init__(network, head, objective, inner=inner, **pretraining)
        self.frozen = check_switch("algorithm.frozen", frozen)

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
