"""Meta-SGD (Li et al. 2017, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning")."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metadraw.algorithms.base import State, place
from metadraw.algorithms.maml import MAML
from metadraw.data.episode import Episode
from metadraw.objectives import Objective


class MetaSGD(MAML):
    """MAML that also learns an inner learning rate for every element (algorithm 1).

    Rates may be negative, so they determine the direction of a step as well as its length.

    Args:
        network: see `Algorithm`.
        head: see `Algorithm`.
        objective: see `Algorithm`.
        **inner: see `InnerLoop`; the same rates in every step.

    Raises:
        InputError: see `MAML`.
    """

    def __init__(
        self, network: nn.Module, head: nn.Linear, objective: Objective, **inner: Any
    ) -> None:
        super().__init__(network, head, objective, **inner)
        adapted = self.adaptable()
        self.adapted = list(adapted)
        # A list, in the order of these names, because ParameterDict allows no dots in names.
        self.inner_lrs = nn.ParameterList(
            torch.full_like(p, self.inner.inner_lr) for p in adapted.values()
        )

    def adapt(self, task: Episode, steps: int) -> list[State]:
        """The parameters before and after each gradient step; see `Algorithm.adapt`."""
        start = self.start(task)
        # Algorithm 1, the inner update: theta' = theta - alpha o grad L(theta), by element.
        rates = {
            name: rate if rate.shape == start[name].shape else rate[: len(start[name])]
            for name, rate in self._rates().items()
        }
        return self.inner.path(self.loss_on(task.support), start, steps, rates)

    def _rates(self) -> dict[str, Tensor]:
        return dict(zip(self.adapted, self.inner_lrs, strict=True))

    def learned(self) -> dict[str, Tensor]:
        """The mean rate of each layer."""
        return {f"inner_lr/{place(name)}": rate.mean() for name, rate in self._rates().items()}
