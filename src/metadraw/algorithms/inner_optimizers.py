"""Optimisers of the inner loop: pure functions of the parameters and the optimiser's state.

Unlike those of `torch.optim`, they can be differentiated. Their state travels with the parameters,
under names that contain ``@``: ``head.weight@momentum``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from metadraw.algorithms.recompute import Params
from metadraw.errors import check_part, check_positive

#: Part of the name of every value of the state, and of no parameter's name.
KEPT = "@"
_KEY = "algorithm.inner_optimizer"
Rates = float | Tensor | Mapping[str, Tensor]


class InnerOptimizer(ABC):
    """Turns a gradient into a step."""

    @abstractmethod
    def step(self, params: Params, gradient: Params, lr: Rates, kept: Params) -> Params:
        """One step; differentiable with respect to every input tensor.

        Args:
            params: the parameters to step from.
            gradient: of the loss, by the same names.
            lr: alpha: one for all, or one per name, either a scalar or of its parameter's shape.
            kept: the state after the previous step, by name; empty in the first step.

        Returns:
            The parameters and the state after the step.
        """


def descend(params: Params, direction: Params, lr: Rates) -> Params:
    """Theta' = theta - alpha * direction (Finn et al. 2017, equation 1), one operation each."""
    if isinstance(lr, (int, float)):
        return {name: p.add(direction[name], alpha=-lr) for name, p in params.items()}
    rates = lr if isinstance(lr, Mapping) else dict.fromkeys(params, lr)
    return {name: p.addcmul(rates[name], direction[name], value=-1) for name, p in params.items()}


class GradientDescent(InnerOptimizer):
    """Plain gradient descent, which all papers of the MAML family use."""

    def step(self, params: Params, gradient: Params, lr: Rates, kept: Params) -> Params:
        """See `InnerOptimizer.step`; there is no state."""
        return descend(params, gradient, lr)


class Momentum(InnerOptimizer):
    """Gradient descent with momentum, as `torch.optim.SGD` defines it.

    Args:
        momentum: the share of the last direction that is kept, at least 0 and below 1.

    Raises:
        InputError: the momentum is outside this range.
    """

    def __init__(self, momentum: float) -> None:
        self.momentum = check_part(f"{_KEY}.momentum", momentum)

    def step(self, params: Params, gradient: Params, lr: Rates, kept: Params) -> Params:
        """See `InnerOptimizer.step`; the state is the direction."""
        direction = {
            name: g + self.momentum * kept[f"{name}@momentum"] if kept else g
            for name, g in gradient.items()
        }
        return descend(params, direction, lr) | {f"{n}@momentum": d for n, d in direction.items()}


class Adam(InnerOptimizer):
    """Adam (Kingma and Ba 2015, algorithm 1), within the inner loop.

    Its epsilon is under the square root, so that the step is differentiable at a gradient of zero.

    Args:
        beta1: decay of the mean gradient, at least 0 and below 1.
        beta2: decay of the mean squared gradient, at least 0 and below 1.
        eps: the smallest denominator, above 0.

    Raises:
        InputError: one of these is outside its range.
    """

    def __init__(self, beta1: float, beta2: float, eps: float) -> None:
        self.beta1 = check_part(f"{_KEY}.beta1", beta1)
        self.beta2 = check_part(f"{_KEY}.beta2", beta2)
        self.eps = check_positive(f"{_KEY}.eps", eps)

    def step(self, params: Params, gradient: Params, lr: Rates, kept: Params) -> Params:
        """See `InnerOptimizer.step`; the state is both means and the number of steps."""
        some = next(iter(gradient.values()))
        steps = kept.get("@steps", some.new_zeros(())) + 1
        now: Params = {"@steps": steps}
        direction = {}
        for name, g in gradient.items():
            zeros = torch.zeros_like(g)
            first = torch.lerp(g, kept.get(f"{name}@mean", zeros), self.beta1)
            second = torch.lerp(g.square(), kept.get(f"{name}@square", zeros), self.beta2)
            now |= {f"{name}@mean": first, f"{name}@square": second}
            mean, square = first / (1 - self.beta1**steps), second / (1 - self.beta2**steps)
            direction[name] = mean / (square + self.eps**2).sqrt()
        return descend(params, direction, lr) | now
