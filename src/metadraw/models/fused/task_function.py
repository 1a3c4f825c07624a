"""Functions of many tasks at once with custom derivatives, and the layout they work in."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function


class TaskFunction(Function):
    """A function that maps tensors with a leading dimension of tasks to a tuple of such tensors.

    The dimension that `torch.vmap` maps over becomes more tasks.
    """

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        """The outputs, and the dimension of each that is mapped."""
        outputs = cls.apply(*_merge(info.batch_size, in_dims, args))
        return tuple(x.unflatten(0, (info.batch_size, -1)) for x in outputs), (0,) * len(outputs)


class LastDerivative(TaskFunction):
    """A `TaskFunction` that cannot be differentiated itself."""

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep nothing."""

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        """Refuse, and name the alternative.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "third derivatives are not implemented: build the network with model.fused=false"
        )


def fold(x: Tensor) -> Tensor:
    """``[T, B, C, H, W]`` -> ``[B, T*C, H, W]``, channels last; no copy if x has that layout.

    Tasks are side by side in the innermost dimension, so that all arithmetic except convolutions
    works on vectors of T*C, however few channels there are.
    """
    # contiguous() first: the reshape alone would copy into another layout.
    return x.permute(1, 3, 4, 0, 2).contiguous().flatten(3, 4).permute(0, 3, 1, 2)


def unfold(x: Tensor, tasks: int) -> Tensor:
    """``[B, T*C, H, W]`` -> ``[T, B, C, H, W]``, a view."""
    return x.unflatten(1, (tasks, -1)).transpose(0, 1)


def _merge(size: int, in_dims: tuple[int | None, ...], args: tuple[Any, ...]) -> list[Any]:
    """The arguments, with the mapped dimension of tensors merged into their first, the tasks'."""
    merged: list[Any] = []
    for dim, value in zip(in_dims, args, strict=True):
        if isinstance(value, Tensor):
            batched = value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
            value = batched.flatten(0, 1)
        merged.append(value)
    return merged
