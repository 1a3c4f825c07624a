"""The inner loop: gradient steps from given parameters, as pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from metadraw.algorithms.gradient import grad
from metadraw.algorithms.recompute import Params, can_be_recomputed


@can_be_recomputed
def gradient_step(
    loss: Callable[[Params], Tensor],
    params: Params,
    *,
    lr: float | Tensor | Mapping[str, Tensor],
    first_order: bool = False,
) -> Params:
    """One full-batch gradient step; differentiable with respect to ``params`` and ``lr``.

    Args:
        loss: of parameters by name, a scalar.
        params: where to step from.
        lr: alpha, the inner learning rate: one for all, or one by name, which is a scalar or has
            its parameter's shape.
        first_order: take the gradient as a constant in any derivative of the result.

    Returns:
        The parameters after the step.
    """
    if first_order:
        # Detached parameters, so that nothing is recorded to begin with; detached gradients,
        # because the loss may depend on more than these.
        with torch.no_grad():
            gradient = grad(loss)({name: p.detach() for name, p in params.items()})
        gradient = {name: g.detach() for name, g in gradient.items()}
    else:
        gradient = grad(loss)(params)
    # Finn et al. 2017, equation 1: theta' = theta - alpha * grad L(theta), one operation each.
    if isinstance(lr, (int, float)):
        return {name: p.add(gradient[name], alpha=-lr) for name, p in params.items()}
    rates = lr if isinstance(lr, Mapping) else dict.fromkeys(params, lr)
    return {name: p.addcmul(rates[name], gradient[name], value=-1) for name, p in params.items()}


def gradient_steps(
    loss: Callable[[Params], Tensor],
    params: Params,
    *,
    steps: int,
    lr: float | Tensor | Mapping[str, Tensor],
    first_order: bool = False,
) -> list[Params]:
    """``steps`` times the same `gradient_step`.

    Args:
        loss: see `gradient_step`.
        params: where to start.
        steps: K, at least 0.
        lr: see `gradient_step`.
        first_order: see `gradient_step`.

    Returns:
        The K + 1 parameters along the way, the first ``params`` itself, the last the adapted ones.
    """
    path = [params]
    for _ in range(steps):
        path.append(gradient_step(loss, path[-1], lr=lr, first_order=first_order))
    return path
