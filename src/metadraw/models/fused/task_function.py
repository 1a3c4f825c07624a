"""Functions of many tasks at once, with derivatives of their own, and the layout they work in."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function


class TaskFunction(Function):
    """A function of tensors whose first dimension is the tasks', which gives a tuple of such.

    What `torch.vmap` maps it over is more tasks.
    """

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        """The outputs for all, and their dimensions of the map."""
        outputs = cls.apply(*_merge(info.batch_size, in_dims, args))
        return tuple(x.unflatten(0, (info.batch_size, -1)) for x in outputs), (0,) * len(outputs)


class LastDerivative(TaskFunction):
    """One that has no derivative itself."""

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep nothing."""

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        """Say what has one.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "third derivatives are not written out: build the network with model.fused=false"
        )


def fold(x: Tensor) -> Tensor:
    """``[T, B, C, H, W]`` -> ``[B, T*C, H, W]``, channels last: what lies so is not copied.

    One task beside the other in the innermost dimension, so that all arithmetic but the
    convolutions' is by vectors of T*C, however few channels there are.
    """
    # Into that layout before the reshape, which would otherwise copy into another.
    return x.permute(1, 3, 4, 0, 2).contiguous().flatten(3, 4).permute(0, 3, 1, 2)


def unfold(x: Tensor, tasks: int) -> Tensor:
    """``[B, T*C, H, W]`` -> ``[T, B, C, H, W]``, a view."""
    return x.unflatten(1, (tasks, -1)).transpose(0, 1)


def _merge(size: int, in_dims: tuple[int | None, ...], args: tuple[Any, ...]) -> list[Any]:
    """Tensors with one more dimension of a map, made one with their first, the tasks'."""
    merged: list[Any] = []
    for dim, value in zip(in_dims, args, strict=True):
        if isinstance(value, Tensor):
            batched = value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
            value = batched.flatten(0, 1)
        merged.append(value)
    return merged
