"""The inner loop: gradient steps from given parameters, as one pure function."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.func import grad

Params = dict[str, Tensor]


def gradient_steps(
    loss: Callable[[Params], Tensor],
    params: Params,
    *,
    steps: int,
    lr: float,
    first_order: bool = False,
) -> list[Params]:
    """``steps`` full-batch gradient steps; differentiable with respect to ``params``.

    Args:
        loss: of parameters by name, a scalar.
        params: where to start.
        steps: K, at least 0.
        lr: alpha, the inner learning rate.
        first_order: take the gradients as constants in any derivative of the result.

    Returns:
        The K + 1 parameters along the way, the first ``params`` itself, the last the adapted ones.
    """
    path = [params]
    for _ in range(steps):
        here = path[-1]
        # Detached parameters, rather than detached gradients: nothing is recorded to begin with.
        at = {name: p.detach() for name, p in here.items()} if first_order else here
        gradient = grad(loss)(at)
        # Finn et al. 2017, equation 1: theta' = theta - alpha * grad L(theta).
        path.append({name: p - lr * gradient[name] for name, p in here.items()})
    return path
