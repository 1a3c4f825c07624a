"""What algorithms share that learn a task in one look at its support features."""

from __future__ import annotations

from torch import nn

from metadraw.algorithms.base import Algorithm
from metadraw.objectives import Objective


class FeatureBased(Algorithm):
    """An algorithm without an inner loop and without a head of its own, for any number of ways.

    Args:
        network: see `Algorithm`.
        head: not used.
        objective: see `Algorithm`.

    Raises:
        InputError: see `Algorithm`.
    """

    any_ways = True
    learns_head = False

    def __init__(self, network: nn.Module, head: nn.Linear, objective: Objective) -> None:
        super().__init__(network, head, objective)
