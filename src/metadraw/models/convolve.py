"""Convolutions of many tasks at once, each with weights of its own, and their derivatives."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metadraw.models.task_function import LastDerivative, TaskFunction, fold, unfold


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """``conv2d(x, weight, padding=k // 2)``, fast in second order.

    Mapped over tasks by `torch.vmap` it stays one grouped convolution in channels-last layout,
    and so do its derivatives, where PyTorch's own change layout and take slow ways for second
    derivatives.

    Args:
        x: ``[B, I, H, W]``.
        weight: ``[O, I, k, k]`` of the same dtype, k odd.

    Returns:
        ``[B, O, H, W]``, differentiable twice.
    """
    (y,) = _Forward.apply(x[None], weight[None])
    assert isinstance(y, Tensor)
    return y.squeeze(0)  # not y[0], whose derivative is a copy


class _Forward(TaskFunction):
    """x ``[T, B, I, H, W]``, w ``[T, O, I, k, k]`` -> y ``[T, B, O, H, W]``."""

    @staticmethod
    def forward(x: Tensor, w: Tensor) -> tuple[Tensor]:
        return (unfold(_convolve(fold(x), w), len(w)),)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor]) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor]:
        # Nobody asks for the derivative by images, which is as much work as the one by weights.
        by_w, *by_x = _Backward.apply(*ctx.saved_tensors, g, ctx.needs_input_grad[0])
        return by_x[0] if by_x else None, by_w


class _Backward(TaskFunction):
    """x, w, and g like y -> the derivatives of <g, y> by w and, if wanted, by x."""

    @staticmethod
    def forward(x: Tensor, w: Tensor, g: Tensor, wanted_x: bool) -> tuple[Tensor, ...]:
        by_x, by_w = _derivatives(fold(x), w, fold(g), wanted_x, True)
        return (by_w, unfold(by_x, len(w))) if wanted_x else (by_w,)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:3])

    @staticmethod
    def backward(ctx: Any, *v: Tensor) -> tuple[Tensor | None, ...]:
        by_w, by_g, *by_x = _SecondBackward.apply(*ctx.saved_tensors, ctx.needs_input_grad[0], *v)
        return by_x[0] if by_x else None, by_w, by_g, None


class _SecondBackward(LastDerivative):
    """x, w, g, and v like what `_Backward` gives -> its derivatives by w, g and, if wanted, x.

    <v, `_Backward`> = <g, convolve(x, v_w) + convolve(v_x, w)>, for `_Backward` is linear.
    """

    @staticmethod
    def forward(
        x: Tensor, w: Tensor, g: Tensor, wanted_x: bool, v_w: Tensor, v_x: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        tasks, x, g = len(w), fold(x), fold(g)
        by_g = _convolve(x, v_w)
        if v_x is None:
            by_w = torch.zeros_like(w)
        else:
            v_x = fold(v_x)
            by_g += _convolve(v_x, w)
            _, by_w = _derivatives(v_x, w, g, False, True)
        if not wanted_x:
            return by_w, unfold(by_g, tasks)
        by_x, _ = _derivatives(x, v_w, g, True, False)
        return by_w, unfold(by_g, tasks), unfold(by_x, tasks)


def _convolve(x: Tensor, w: Tensor) -> Tensor:
    """Folded x and w ``[T, O, I, k, k]`` -> folded y."""
    return F.conv2d(x, w.flatten(0, 1), padding=w.shape[-1] // 2, groups=len(w))


def _derivatives(x: Tensor, w: Tensor, g: Tensor, by_x: bool, by_w: bool) -> tuple[Any, Any]:
    """Those of <g, `_convolve`> by x, folded, and by w, as far as they are wanted."""
    same = [w.shape[-1] // 2] * 2
    x, weight, _ = torch.ops.aten.convolution_backward(
        g,
        x,
        w.flatten(0, 1),
        None,
        [1, 1],
        same,
        [1, 1],
        False,
        [0, 0],
        len(w),
        [by_x, by_w, False],
    )
    return x, weight.view_as(w) if by_w else None
