"""MAML and FOMAML (Finn, Abbeel and Levine 2017, "Model-Agnostic Meta-Learning")."""

from __future__ import annotations

from typing import Any

from torch import nn

from metadraw.algorithms.base import Algorithm, State
from metadraw.algorithms.inner_loop import InnerLoop
from metadraw.data.episode import Episode
from metadraw.objectives import Objective


class MAML(Algorithm):
    """Start every task from the same parameters, and learn those (algorithm 2 of the paper).

    The inner loop takes K full-batch gradient steps on the support loss (equation 1). The outer
    loss is the query loss of the adapted parameters; its gradient goes through the inner loop.
    Without second derivatives (``first_order``, section 5.2) it is known as FOMAML.

    A subclass may override `start` to start a task from other parameters.

    Args:
        network: see `Algorithm`.
        head: see `Algorithm`.
        objective: see `Algorithm`.
        **inner: see `InnerLoop`.

    Raises:
        InputError: see `Algorithm` and `InnerLoop`.
    """

    inner: InnerLoop

    def __init__(
        self, network: nn.Module, head: nn.Linear, objective: Objective, **inner: Any
    ) -> None:
        super().__init__(network, head, objective, InnerLoop(**inner))

    def adapt(self, task: Episode, steps: int) -> list[State]:
        """The parameters before and after each gradient step; see `Algorithm.adapt`."""
        return self.inner.path(self.loss_on(task.support), self.start(task), steps)
