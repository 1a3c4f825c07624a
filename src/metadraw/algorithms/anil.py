"""ANIL (Raghu et al. 2020, "Rapid Learning or Feature Reuse?")."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from metadraw.algorithms.base import Algorithm, positive
from metadraw.algorithms.inner_loop import Params, gradient_steps
from metadraw.models.head import linear, open_head


class ANIL(Algorithm):
    """MAML whose inner loop changes the head only, on features that stay as they are (section 4).

    Features are computed once for all inner steps, so a step costs next to nothing.

    Args:
        network: see `Algorithm`; its last linear layer is the head.
        inner_lr: alpha, above 0.
        inner_steps: see `Algorithm`.
        eval_inner_steps: see `Algorithm`.

    Raises:
        InputError: an inner learning rate that is not above 0, or a network without a linear
            layer; see also `Algorithm`.
    """

    def __init__(
        self, network: nn.Module, *, inner_lr: float, inner_steps: int, eval_inner_steps: int
    ) -> None:
        super().__init__(network, inner_steps=inner_steps, eval_inner_steps=eval_inner_steps)
        self.place, self.head = open_head(network)
        self.inner_lr = positive(inner_lr=inner_lr)

    def adapt(self, support_x: Tensor, support_y: Tensor, steps: int) -> list[Params]:
        """The head before and after each gradient step; see `Algorithm.adapt`."""
        features = self.network(support_x)
        start: Params = {f"{self.place}.{n}": p for n, p in self.head.named_parameters()}

        def support_loss(head: Params) -> Tensor:
            return F.cross_entropy(linear(features, head, self.place), support_y)

        return gradient_steps(support_loss, start, steps=steps, lr=self.inner_lr)
