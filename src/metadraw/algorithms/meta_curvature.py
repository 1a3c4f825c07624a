"""Meta-Curvature (Park and Oliva 2019)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from metadraw.algorithms.base import State, place
from metadraw.algorithms.inner_optimizers import InnerOptimizer, Rates
from metadraw.algorithms.maml import MAML
from metadraw.algorithms.recompute import Params
from metadraw.data.episode import Episode
from metadraw.objectives import Objective


class MetaCurvature(MAML):
    """MAML that also learns a linear map of each parameter's gradient.

    The gradient of a convolution's weight is a tensor of output channels, input channels and filter
    elements, and is multiplied along each by a learned square matrix; that of a linear layer's has
    the first two, and that of a bias the first. All start as the identity, which is MAML.

    Args:
        network: see `Algorithm`.
        head: see `Algorithm`.
        objective: see `Algorithm`.
        **inner: see `InnerLoop`.

    Raises:
        InputError: see `MAML`.
    """

    def __init__(
        self, network: nn.Module, head: nn.Linear, objective: Objective, **inner: Any
    ) -> None:
        super().__init__(network, head, objective, **inner)
        sizes = {name: unfolded(p).shape for name, p in self.adaptable().items()}
        self.modes = {name: len(shape) for name, shape in sizes.items()}
        # A list, in this order, because ParameterDict allows no dots in names.
        self.curvatures = nn.ParameterList(
            torch.eye(size) for shape in sizes.values() for size in shape
        )

    def adapt(self, task: Episode, steps: int) -> list[State]:
        """The parameters before and after each gradient step; see `Algorithm.adapt`."""
        by_name = self._by_name()

        def curve(gradient: Params) -> Params:
            return {name: multiplied(g, by_name[name]) for name, g in gradient.items()}

        inner = replace(self.inner, inner_optimizer=Curved(curve, self.inner.inner_optimizer))
        return inner.path(self.loss_on(task.support), self.start(task), steps)

    def _by_name(self) -> dict[str, list[Tensor]]:
        """The matrices of each adapted parameter, one for each of its dimensions."""
        matrices = iter(self.curvatures)
        return {name: [next(matrices) for _ in range(modes)] for name, modes in self.modes.items()}

    def learned(self) -> dict[str, Tensor]:
        """How far the matrices of each layer are from the identity: the norm of the difference."""
        return {
            f"curvature/{place(name)}": torch.stack(
                [(m - torch.eye(len(m), device=m.device)).square().sum() for m in matrices]
            ).sum()
            ** 0.5
            for name, matrices in self._by_name().items()
            if matrices
        }


class Curved(InnerOptimizer):
    """An inner optimiser whose gradient is mapped first.

    Args:
        curve: maps a gradient by name to another.
        optimizer: which turns that into a step.
    """

    def __init__(self, curve: Callable[[Params], Params], optimizer: InnerOptimizer) -> None:
        self.curve, self.optimizer = curve, optimizer

    def step(self, params: Params, gradient: Params, lr: Rates, kept: Params) -> Params:
        """See `InnerOptimizer.step`."""
        return self.optimizer.step(params, self.curve(gradient), lr, kept)


def unfolded(values: Tensor) -> Tensor:
    """Output channels, input channels and all filter elements, as far as there are any."""
    return values.flatten(2) if values.ndim > 2 else values


def multiplied(gradient: Tensor, matrices: list[Tensor]) -> Tensor:
    """A gradient times a matrix along each dimension (section 3, the n-mode products of MC).

    Where a task uses the first rows of a head, so do the matrices.
    """
    result = unfolded(gradient)
    for mode, matrix in enumerate(matrices):
        size = result.shape[mode]
        # In mixed precision a product is of lower precision, and both sides must be of one.
        result = result.to(matrix.dtype)
        product = torch.tensordot(matrix[:size, :size], result, dims=([1], [mode]))
        result = product.movedim(0, mode)
    return result.reshape(gradient.shape)
