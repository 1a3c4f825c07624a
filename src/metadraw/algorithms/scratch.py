"""The baseline without any meta-training: a fresh network, trained on the support set alone."""

from __future__ import annotations

from torch import Tensor, nn

from metadraw.algorithms.base import Algorithm, positive
from metadraw.algorithms.inner_loop import Params, gradient_steps


class Scratch(Algorithm):
    """Train the untrained network on each task: what learning from a handful is worth alone.

    Every task starts from the same random parameters, those of the run's seed, and there is
    nothing to meta-train: a run goes through one epoch without steps, validates and tests.

    Args:
        network: see `Algorithm`.
        inner_lr: the learning rate, above 0.
        inner_steps: full-batch gradient steps.
        eval_inner_steps: the same in evaluation.

    Raises:
        InputError: a learning rate that is not above 0; see also `Algorithm`.
    """

    def __init__(
        self, network: nn.Module, *, inner_lr: float, inner_steps: int, eval_inner_steps: int
    ) -> None:
        super().__init__(network, inner_steps=inner_steps, eval_inner_steps=eval_inner_steps)
        self.requires_grad_(False)
        self.inner_lr = positive(inner_lr=inner_lr)

    def adapt(self, support_x: Tensor, support_y: Tensor, steps: int) -> list[Params]:
        """The network's parameters before and after each gradient step; see `Algorithm.adapt`."""
        return gradient_steps(
            self.loss_on(support_x, support_y),
            self.network_parameters(),
            steps=steps,
            lr=self.inner_lr,
            first_order=True,
        )
