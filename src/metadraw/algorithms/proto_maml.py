"""Proto-MAML (Triantafillou et al. 2020, "Meta-Dataset")."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from metadraw.algorithms.inner_loop import Params
from metadraw.algorithms.maml import MAML
from metadraw.models.head import class_means, nearest_prototype, open_head


class ProtoMAML(MAML):
    """MAML whose head starts from the prototypes of the support set, for any number of ways.

    Before adaptation it classifies as a prototypical network; the inner loop then changes body
    and head, and the meta-gradient goes through the prototypes, too.

    Args:
        network: see `Algorithm`; its last linear layer is the head.
        **settings: see `MAML`.

    Raises:
        InputError: a network without a linear layer; see also `MAML`.
    """

    any_ways = True

    def __init__(self, network: nn.Module, **settings: Any) -> None:
        super().__init__(network, **settings)
        self.place, head = open_head(network)
        self.ways = head.out_features

    def start(self, support_x: Tensor, support_y: Tensor) -> Params:
        """The body, and the head that is equal to a prototypical network; see `MAML.start`."""
        prototypes = class_means(self.network(support_x), support_y, self.ways)
        weight, bias = nearest_prototype(prototypes)
        head = {f"{self.place}.weight": weight, f"{self.place}.bias": bias}
        return self.network_parameters() | head
