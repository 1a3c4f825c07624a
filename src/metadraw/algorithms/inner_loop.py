"""The inner loop: optimiser steps from given parameters, as pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from metadraw.algorithms.gradient import grad
from metadraw.algorithms.inner_optimizers import KEPT, GradientDescent, InnerOptimizer
from metadraw.algorithms.recompute import Params, can_be_recomputed
from metadraw.errors import check_positive, check_switch, check_whole

_PLAIN = GradientDescent()


@dataclass(frozen=True)
class InnerLoop:
    """How a task is learned by gradient steps; its fields are keys of an algorithm's config.

    Attributes:
        inner_lr: alpha, the learning rate, above 0; the initial value if rates are learned.
        inner_steps: K, steps in meta-training.
        eval_inner_steps: steps in meta-validation and meta-test.
        first_order: treat each step's gradient as a constant in the meta-gradient.
        inner_optimizer: turns a gradient into a step.

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
        whole(inner_steps=self.inner_steps)
        whole(eval_inner_steps=self.eval_inner_steps)
        check_switch("algorithm.first_order", self.first_order)

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
            start: the parameters to start from.
            steps: number of steps, at least 0.
            lr: learned rates that replace ``inner_lr``.
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
        loss: maps parameters by name to a scalar.
        params: the parameters to step from, with the optimiser's state.
        lr: alpha, the inner learning rate: one for all, or one per name, either a scalar or of its
            parameter's shape.
        first_order: treat the gradient as a constant in any derivative of the result.
        optimizer: turns a gradient into a step.

    Returns:
        The parameters after the step, with the optimiser's state.
    """
    kept = {name: value for name, value in params.items() if KEPT in name}
    params = {name: p for name, p in params.items() if name not in kept}
    if first_order:
        # Detached parameters, so that no graph is recorded; detached gradients, because the loss
        # may depend on other tensors, too.
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
    """Repeat `gradient_step` ``steps`` times.

    Args:
        loss: see `gradient_step`.
        params: the parameters to start from.
        steps: K, at least 0.
        lr: see `gradient_step`.
        first_order: see `gradient_step`.
        optimizer: see `gradient_step`.

    Returns:
        The K + 1 states of the parameters, from ``params`` itself to the adapted ones.
    """
    path = [params]
    for _ in range(steps):
        path.append(
            gradient_step(loss, path[-1], lr=lr, first_order=first_order, optimizer=optimizer)
        )
    return path


def positive(**setting: float) -> float:
    """Return the value of the one setting given, if it is positive.

    Raises:
        InputError: it is not above 0.
    """
    ((key, value),) = setting.items()
    return check_positive(f"algorithm.{key}", value)


def whole(**setting: int) -> int:
    """Return the value of the one setting given, if it is a whole number of at least 1.

    Raises:
        InputError: it is not.
    """
    ((key, value),) = setting.items()
    return check_whole(f"algorithm.{key}", value)
