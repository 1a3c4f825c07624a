"""Meta-SGD (Li et al. 2017, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning")."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metadraw.algorithms.base import Algorithm, positive
from metadraw.algorithms.inner_loop import Params, gradient_steps


class MetaSGD(Algorithm):
    """MAML that also learns an inner learning rate for every single parameter (algorithm 1).

    The rates have no sign imposed, so they are a direction of the step as much as its length.

    Args:
        network: see `Algorithm`.
        inner_lr: what every rate starts from, above 0.
        inner_steps: see `Algorithm`; the same rates in every step.
        eval_inner_steps: see `Algorithm`.

    Raises:
        InputError: an inner learning rate that is not above 0; see also `Algorithm`.
    """

    def __init__(
        self, network: nn.Module, *, inner_lr: float, inner_steps: int, eval_inner_steps: int
    ) -> None:
        super().__init__(network, inner_steps=inner_steps, eval_inner_steps=eval_inner_steps)
        positive(inner_lr=inner_lr)
        # In the order of the network's parameters, whose names a ParameterDict would not take.
        self.inner_lrs = nn.ParameterList(
            torch.full_like(p, inner_lr) for p in self.network_parameters().values()
        )

    def adapt(self, support_x: Tensor, support_y: Tensor, steps: int) -> list[Params]:
        """The network's parameters before and after each gradient step; see `Algorithm.adapt`."""
        params = self.network_parameters()
        # Algorithm 1, the inner update: theta' = theta - alpha o grad L(theta), by element.
        rates = dict(zip(params, self.inner_lrs, strict=True))
        return gradient_steps(self.loss_on(support_x, support_y), params, steps=steps, lr=rates)

    def learned(self) -> dict[str, Tensor]:
        """The mean rate of each layer."""
        rates = zip(self.network_parameters(), self.inner_lrs, strict=True)
        return {f"inner_lr/{name}": rate.mean() for name, rate in rates}
