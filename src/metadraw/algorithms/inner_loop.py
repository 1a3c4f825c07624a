"""The inner loop: steps of an optimiser from given parameters, as pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from metadraw.algorithms.gradient import grad
from metadraw.algorithms.inner_optimizers import KEPT, GradientDescent, InnerOptimizer
from metadraw.algorithms.recompute import Params, can_be_recomputed
from metadraw.errors import InputError

_PLAIN = GradientDescent()


@dataclass(frozen=True)
class InnerLoop:
    """How a task is learned by gradient steps; its fields are keys of an algorithm's config.

    Attributes:
        inner_lr: alpha, the learning rate, above 0; where rates are learned, what they start from.
        inner_steps: K, steps in meta-training.
        eval_inner_steps: steps in meta-validation and meta-test.
        first_order: take each step's gradient as a constant in the meta-gradient.
        inner_optimizer: what makes a step of a gradient.

    Raises:
        InputError: a rate that is not above 0, or a number of steps below 1.
    """

    inner_lr: float
    inner_steps: int
    eval_inner_steps: int
    first_order: bool = False
    inner_optimizer: InnerOptimizer = _PLAIN

    def __post_init__(self) -> None:
        positive(inner_lr=self.inner_lr)
        for key in ("inner_steps", "eval_inner_steps"):
            steps = getattr(self, key)
            if type(steps) is not int or steps < 1:
                raise InputError(f"algorithm.{key}={steps}: must be a whole number of at least 1")
        if not isinstance(self.first_order, bool):
            raise InputError(f"algorithm.first_order={self.first_order}: must be true or false")

    def path(
        self,
        loss: Callable[[Params], Tensor],
        start: Params,
        steps: int,
        lr: Tensor | Mapping[str, Tensor] | None = None,
    ) -> list[Params]:
        """`gradient_steps` with these settings.

        Args:
            loss: see `gradient_step`.
            start: where to start.
            steps: how many steps, at least 0.
            lr: learned rates, in place of ``inner_lr``.
        """
        return gradient_steps(
            loss,
            start,
            steps=steps,
            lr=self.inner_lr if lr is None else lr,
            first_order=self.first_order,
            optimizer=self.inner_optimizer,
        )


@can_be_recomputed
def gradient_step(
    loss: Callable[[Params], Tensor],
    params: Params,
    *,
    lr: float | Tensor | Mapping[str, Tensor],
    first_order: bool = False,
    optimizer: InnerOptimizer = _PLAIN,
) -> Params:
    """One full-batch step; differentiable with respect to ``params`` and ``lr``.

    Args:
        loss: of parameters by name, a scalar.
        params: where to step from, with what the optimiser keeps from step to step.
        lr: alpha, the inner learning rate: one for all, or one by name, which is a scalar or has
            its parameter's shape.
        first_order: take the gradient as a constant in any derivative of the result.
        optimizer: what makes a step of a gradient.

    Returns:
        The parameters after the step, with what the optimiser keeps.
    """
    kept = {name: value for name, value in params.items() if KEPT in name}
    params = {name: p for name, p in params.items() if name not in kept}
    if first_order:
        # Detached parameters, so that nothing is recorded to begin with; detached gradients,
        # because the loss may depend on more than these.
        with torch.no_grad():
            gradient = grad(loss)({name: p.detach() for name, p in params.items()})
        gradient = {name: g.detach() for name, g in gradient.items()}
    else:
        gradient = grad(loss)(params)
    return optimizer.step(params, gradient, lr, kept)


def gradient_steps(
    loss: Callable[[Params], Tensor],
    params: Params,
    *,
    steps: int,
    lr: float | Tensor | Mapping[str, Tensor],
    first_order: bool = False,
    optimizer: InnerOptimizer = _PLAIN,
) -> list[Params]:
    """``steps`` times the same `gradient_step`.

    Args:
        loss: see `gradient_step`.
        params: where to start.
        steps: K, at least 0.
        lr: see `gradient_step`.
        first_order: see `gradient_step`.
        optimizer: see `gradient_step`.

    Returns:
        The K + 1 parameters along the way, the first ``params`` itself, the last the adapted ones.
    """
    path = [params]
    for _ in range(steps):
        path.append(
            gradient_step(loss, path[-1], lr=lr, first_order=first_order, optimizer=optimizer)
        )
    return path


def positive(**setting: float) -> float:
    """The value of the one setting given.

    Raises:
        InputError: it is not above 0.
    """
    ((key, value),) = setting.items()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise InputError(f"algorithm.{key}={value}: must be a number above 0")
    return value
