"""UNICORN-MAML (Ye and Chao 2022, "How to Train Your MAML to Excel in Few-Shot Classification")."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from metadraw.algorithms.base import State
from metadraw.algorithms.maml import MAML
from metadraw.data.episode import Episode
from metadraw.objectives import Objective


class UnicornMAML(MAML):
    """MAML whose head starts with the same learned vector for every class.

    A task's result therefore does not depend on which class has which label, and any number of ways
    works. Before adaptation all classes are equally likely.

    Args:
        network: see `Algorithm`.
        head: its first row initialises the vector.
        objective: classification.
        **inner: see `InnerLoop`; the paper finds that 15 to 20 steps pay off.

    Raises:
        InputError: see `MAML`.
    """

    any_ways = only_classes = True
    learns_head = False

    def __init__(
        self, network: nn.Module, head: nn.Linear, objective: Objective, **inner: Any
    ) -> None:
        super().__init__(network, head, objective, **inner)
        self.vector = nn.Parameter(head.weight[0].detach().clone())

    def start(self, task: Episode) -> State:
        """The network, and a head of one vector for all classes."""
        ways = self.objective.width(task)
        # The same bias for all classes would change nothing, so there is none to learn.
        bias = torch.zeros_like(self.vector[0]).expand(ways)
        head = {"head.weight": self.vector.expand(ways, -1), "head.bias": bias}
        return super().start(task) | head
