"""UNICORN-MAML (Ye and Chao 2022, "How to Train Your MAML to Excel in Few-Shot Classification")."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metadraw.algorithms.inner_loop import Params
from metadraw.algorithms.maml import MAML
from metadraw.models.head import open_head


class UnicornMAML(MAML):
    """MAML whose head starts with the same learned vector for every class.

    So a task's result does not depend on which class has which label, and any number of ways
    works. Before adaptation all classes are the same.

    Args:
        network: see `Algorithm`; its last linear layer is the head.
        **settings: see `MAML`; the paper finds that 15 to 20 inner steps pay.

    Raises:
        InputError: a network without a linear layer; see also `MAML`.
    """

    any_ways = True

    def __init__(self, network: nn.Module, **settings: Any) -> None:
        super().__init__(network, **settings)
        self.place, head = open_head(network)
        self.ways = head.out_features
        self.vector = nn.Parameter(head.weight[0].detach().clone())

    def start(self, support_x: Tensor, support_y: Tensor) -> Params:
        """The body, and a head of one vector for all classes; see `MAML.start`."""
        weight = self.vector.expand(self.ways, -1)
        # The same bias for all classes would change nothing, so there is none to learn.
        bias = torch.zeros_like(self.vector[0]).expand(self.ways)
        head = {f"{self.place}.weight": weight, f"{self.place}.bias": bias}
        return self.network_parameters() | head
