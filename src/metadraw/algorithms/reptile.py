"""Reptile (Nichol, Achiam and Schulman 2018, "On First-Order Meta-Learning Algorithms")."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metadraw.algorithms.base import Outcome
from metadraw.algorithms.maml import MAML
from metadraw.algorithms.recompute import Params
from metadraw.data.episode import Episode, joined
from metadraw.models.functional import call
from metadraw.objectives import Objective


class Reptile(MAML):
    """Move the parameters towards where training on each task leads (algorithm 2).

    It needs no split into support and query set: in meta-training a task is learned from both
    together. The logged query metrics follow adaptation to the support set alone, so that they are
    comparable with other algorithms'.

    Args:
        network: see `Algorithm`.
        head: see `Algorithm`.
        objective: see `Algorithm`.
        **inner: see `InnerLoop`; at least 2 steps, because one step is plain training.

    Raises:
        InputError: see `MAML`.
    """

    def __init__(
        self, network: nn.Module, head: nn.Linear, objective: Objective, **inner: Any
    ) -> None:
        super().__init__(network, head, objective, **inner, first_order=True)

    def meta_gradient(self, meta: Params, task: Episode) -> tuple[Params, Outcome]:
        """(theta - theta') / alpha, which section 2 hands to the outer optimiser as a gradient."""
        gradient, outcome = call(self, meta, task)
        # Head rows for classes that the task does not have do not change.
        return {name: _like(p, gradient[name]) for name, p in meta.items()}, outcome

    def forward(self, task: Episode) -> tuple[Params, Outcome]:  # type: ignore[override]
        """The gradient by name, and the outcome."""
        path = self.adapt(task.visible, self.inner_steps)
        both = task._replace(support=joined(task.support, task.query))
        joint = self.adapt(both.visible, self.inner_steps)[-1]
        gradient = {n: (p - joint[n]) / self.inner.inner_lr for n, p in path[0].items()}
        return gradient, Outcome(*(self.answer(path[i], task) for i in (0, -1)))


def _like(parameter: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of a parameter's first rows, padded with zeros for the others."""
    rest = torch.zeros_like(parameter[len(gradient) :])
    return torch.cat([gradient, rest]) if len(rest) else gradient
