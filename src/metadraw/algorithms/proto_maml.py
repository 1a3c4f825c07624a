"""Proto-MAML (Triantafillou et al. 2020, "Meta-Dataset")."""

from __future__ import annotations

from torch import Tensor, nn

from metadraw.adaptation import Params, gradient_steps
from metadraw.algorithms.base import Algorithm, positive
from metadraw.models.head import class_means, nearest_prototype, open_head


class ProtoMAML(Algorithm):
    """MAML whose head starts from the prototypes of the support set, for any number of ways.

    Before adaptation it classifies as a prototypical network; the inner loop then changes body
    and head, and the meta-gradient goes through the prototypes, too.

    Args:
        network: see `Algorithm`; its last linear layer is the head.
        inner_lr: alpha, above 0.
        first_order: leave out the second derivatives.
        inner_steps: see `Algorithm`.
        eval_inner_steps: see `Algorithm`.

    Raises:
        InputError: an inner learning rate that is not above 0, or a network without a linear
            layer; see also `Algorithm`.
    """

    any_ways = True

    def __init__(
        self,
        network: nn.Module,
        *,
        inner_lr: float,
        first_order: bool,
        inner_steps: int,
        eval_inner_steps: int,
    ) -> None:
        super().__init__(network, inner_steps=inner_steps, eval_inner_steps=eval_inner_steps)
        self.place, head = open_head(network)
        self.ways = head.out_features
        self.inner_lr, self.first_order = positive(inner_lr=inner_lr), first_order

    def adapt(self, support_x: Tensor, support_y: Tensor, steps: int) -> list[Params]:
        """Body and head before and after each gradient step; see `Algorithm.adapt`."""
        # The linear layer that is equal to a prototypical network.
        prototypes = class_means(self.network(support_x), support_y, self.ways)
        weight, bias = nearest_prototype(prototypes)
        start = self.network_parameters()
        start |= {f"{self.place}.weight": weight, f"{self.place}.bias": bias}
        return gradient_steps(
            self.loss_on(support_x, support_y),
            start,
            steps=steps,
            lr=self.inner_lr,
            first_order=self.first_order,
        )
