"""MAML and FOMAML (Finn, Abbeel and Levine 2017, "Model-Agnostic Meta-Learning")."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metadraw.adaptation import Params, gradient_steps
from metadraw.algorithms.base import Algorithm
from metadraw.errors import InputError


class MAML(Algorithm):
    """Start every task from the same parameters, and learn those (algorithm 2 of the paper).

    The inner loop is K full-batch gradient steps on the support loss (equation 1); the outer loss
    is the adapted parameters' query loss, and its gradient goes through the inner loop.

    Args:
        network: see `Algorithm`.
        inner_lr: alpha, above 0.
        first_order: leave out the second derivatives (section 5.2, known as FOMAML).
        inner_steps: see `Algorithm`.
        eval_inner_steps: see `Algorithm`.

    Raises:
        InputError: an inner learning rate that is not above 0; see also `Algorithm`.
    """

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
        if not inner_lr > 0:
            raise InputError(f"algorithm.inner_lr={inner_lr}: must be above 0")
        self.inner_lr, self.first_order = inner_lr, first_order

    def adapt(self, support_x: Tensor, support_y: Tensor, steps: int) -> list[Params]:
        """The network's parameters before and after each gradient step; see `Algorithm.adapt`."""

        def support_loss(params: Params) -> Tensor:
            logits = functional_call(self.network, params, (support_x,))
            return F.cross_entropy(logits, support_y)

        return gradient_steps(
            support_loss,
            dict(self.network.named_parameters()),
            steps=steps,
            lr=self.inner_lr,
            first_order=self.first_order,
        )
