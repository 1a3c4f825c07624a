"""UNICORN-MAML (Ye and Chao 2022, "How to Train Your MAML to Excel in Few-Shot Classification")."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metadraw.adaptation import Params, gradient_steps
from metadraw.algorithms.base import Algorithm, positive
from metadraw.models.head import open_head


class UnicornMAML(Algorithm):
    """MAML whose head starts with the same learned vector for every class.

    So a task's result does not depend on which class has which label, and any number of ways
    works. Before adaptation all classes are the same.

    Args:
        network: see `Algorithm`; its last linear layer is the head.
        inner_lr: alpha, above 0.
        first_order: leave out the second derivatives.
        inner_steps: see `Algorithm`; the paper finds that 15 to 20 pay.
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
        self.vector = nn.Parameter(head.weight[0].detach().clone())
        self.inner_lr, self.first_order = positive(inner_lr=inner_lr), first_order

    def adapt(self, support_x: Tensor, support_y: Tensor, steps: int) -> list[Params]:
        """Body and head before and after each gradient step; see `Algorithm.adapt`."""
        start = self.network_parameters()
        start[f"{self.place}.weight"] = self.vector.expand(self.ways, -1)
        # The same bias for all classes would change nothing, so there is none to learn.
        start[f"{self.place}.bias"] = torch.zeros_like(self.vector[0]).expand(self.ways)
        return gradient_steps(
            self.loss_on(support_x, support_y),
            start,
            steps=steps,
            lr=self.inner_lr,
            first_order=self.first_order,
        )
