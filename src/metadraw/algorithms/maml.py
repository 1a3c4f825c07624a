"""MAML and FOMAML (Finn, Abbeel and Levine 2017, "Model-Agnostic Meta-Learning")."""

from __future__ import annotations

from torch import Tensor, nn

from metadraw.algorithms.base import Algorithm, positive
from metadraw.algorithms.inner_loop import Params, gradient_steps


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
        self.inner_lr, self.first_order = positive(inner_lr=inner_lr), first_order

    def start(self, support_x: Tensor, support_y: Tensor) -> Params:
        """Where a task starts: the network's parameters, whatever the support set.

        Args:
            support_x: ``[B, C, H, W]`` float.
            support_y: ``[B]`` int64, labels 0..N-1.

        Returns:
            Parameters of the network by name, as functions of the meta-parameters.
        """
        return self.network_parameters()

    def adapt(self, support_x: Tensor, support_y: Tensor, steps: int) -> list[Params]:
        """The network's parameters before and after each gradient step; see `Algorithm.adapt`."""
        return gradient_steps(
            self.loss_on(support_x, support_y),
            self.start(support_x, support_y),
            steps=steps,
            lr=self.inner_lr,
            first_order=self.first_order,
        )
