"""Prototypical networks (Snell, Swersky and Zemel 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metadraw.algorithms.base import Algorithm
from metadraw.algorithms.inner_loop import Params
from metadraw.models.head import class_means, nearest_prototype, open_head


class ProtoNet(Algorithm):
    """Classify by the nearest class mean, in squared Euclidean distance of features.

    There is no inner loop: one look at the support set gives the prototypes (equation 1), and
    softmax over negative distances the classes' chances (equation 2). Before adaptation, when
    there is no prototype yet, all classes are the same.

    Args:
        network: see `Algorithm`; what its last linear layer takes are the features.

    Raises:
        InputError: a network without a linear layer; see also `Algorithm`.
    """

    any_ways = True
    inner_loop = False

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network, inner_steps=1, eval_inner_steps=1)
        self.place, head = open_head(network)
        self.ways = head.out_features

    def adapt(self, support_x: Tensor, support_y: Tensor, steps: int) -> list[Params]:
        """A head that knows nothing, and the one of the prototypes; see `Algorithm.adapt`."""
        prototypes = class_means(self.network(support_x), support_y, self.ways)
        heads = [nearest_prototype(c) for c in (torch.zeros_like(prototypes), prototypes)]
        return [
            {f"{self.place}.weight": weight, f"{self.place}.bias": bias} for weight, bias in heads
        ]
