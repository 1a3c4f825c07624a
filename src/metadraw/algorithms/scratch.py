"""The baseline without meta-training: a new network, trained on the support set alone."""

from __future__ import annotations

from typing import Any

from torch import nn

from metadraw.algorithms.maml import MAML
from metadraw.objectives import Objective


class Scratch(MAML):
    """Train an untrained network on each task, to see what a few examples alone can teach.

    Every task starts from the same random parameters, drawn with the run's seed. There is nothing
    to meta-train: a run goes through one epoch without steps, validates and tests.

    Args:
        network: see `Algorithm`.
        head: see `Algorithm`.
        objective: see `Algorithm`.
        **inner: see `InnerLoop`.

    Raises:
        InputError: see `MAML`.
    """

    def __init__(
        self, network: nn.Module, head: nn.Linear, objective: Objective, **inner: Any
    ) -> None:
        super().__init__(network, head, objective, **inner, first_order=True)
        self.requires_grad_(False)
