"""A chain of [convolution, batch norm, ReLU, 2x2 max pool] blocks with hand-written derivatives.

Under `torch.vmap`, images and everything computed from them are folded: tasks lie side by side in
the channels, so that a convolution of all tasks is one grouped convolution, and arithmetic runs on
vectors of all tasks' channels. PyTorch's own layers change the layout between the two, and their
second derivatives take slow paths. All blocks are one call, because a call through `torch.func`
takes longer than the arithmetic of a small layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metadraw.models.fused.convolve import by_images, by_weight, convolve
from metadraw.models.fused.norm_relu_pool import Numbers, double_backward, norm_relu_pool
from metadraw.models.fused.norm_relu_pool import backward as block_backward
from metadraw.models.fused.task_function import LastDerivative, TaskFunction, fold, unfold


def conv_blocks(
    x: Tensor,
    weights: Sequence[Tensor],
    gammas: Sequence[Tensor],
    betas: Sequence[Tensor],
    eps: float,
) -> Tensor:
    """Images through all blocks, batch norm by the batch's statistics.

    Args:
        x: ``[B, C, H, W]``.
        weights: of each block's convolution, ``[C', C, k, k]`` of x's dtype, k odd and C' the same
            for all. Without biases: batch norm would take them away again.
        gammas: of each block's batch norm, ``[C']``.
        betas: like gammas.
        eps: added to variances.

    Returns:
        ``[B, C', H // 2, W // 2]`` for one block, and so on; differentiable twice.
    """
    # Few tensors, because each of them costs time on its way through torch.func.
    gamma, beta = torch.stack(tuple(gammas)), torch.stack(tuple(betas))
    # Pooling before the norm picks the right value only if gamma is not negative: where it is, its
    # sign moves into the convolution.
    sign = torch.ones_like(gamma).copysign(gamma.detach())
    signed = [w * t.view(-1, 1, 1, 1) for w, t in zip(weights, sign.unbind(), strict=True)]
    parameters = (*signed, gamma * sign, beta)
    found: Any = _Forward.apply(len(signed), eps, x[None], *(p[None] for p in parameters))
    last: Tensor = found[2 * len(signed) - 1]
    return last.squeeze(0)  # not last[0], whose derivative is a copy


# The letters are those of `norm_relu_pool`: z and p are a block's images after its convolution and
# its pool. A number per channel (gamma, beta, mean, r) is stored for all blocks together, as
# ``[T, n, C']``. `torch.autograd.Function` takes and gives flat tuples of tensors; each of these
# records names what is in one.
#
#     _Forward         x, parameters                       -> zs, ps, mean, r
#     _Backward        all of these, gradients of zs, ps   -> gradients of parameters, gzs, qs, of x
#     _DoubleBackward  all of these, gradients of those    -> gradients of all inputs of _Backward
#
# All zs and ps are outputs of _Forward and inputs of _Backward, so that PyTorch adds up their
# gradients before it enters _Backward's own backward pass.


class _Known(NamedTuple):
    """Inputs and outputs of `_Forward`, and the first inputs of the other two."""

    x: Tensor
    weights: list[Tensor]
    gamma: Tensor
    beta: Tensor
    zs: list[Tensor]
    ps: list[Tensor]
    mean: Tensor
    r: Tensor


class _Parameters(NamedTuple):
    """Parameters, or gradients with respect to them."""

    weights: list[Tensor]
    gamma: Tensor
    beta: Tensor


class _Second(NamedTuple):
    """Outputs of `_DoubleBackward`, before those with respect to each block's input images."""

    weights: list[Tensor]
    gamma: Tensor
    zs: list[Tensor]
    by_zs: list[Tensor]
    by_ps: list[Tensor]


def _read(record: Any, n: int, tensors: Iterator[Any]) -> Any:
    """The record of the next tensors: plurals have one for each of n blocks, if any is left."""
    fields = record._fields
    return record(
        *(_take(n, tensors) if name.endswith("s") else next(tensors, None) for name in fields)
    )


def _take(n: int, tensors: Iterator[Any]) -> list[Any]:
    """The next n tensors."""
    return list(islice(tensors, n))


class _Forward(TaskFunction):
    """x ``[T, B, C, H, W]``, weights, gammas ``[T, n, C']``, betas -> zs, ps, means, rs."""

    @staticmethod
    def forward(n: int, eps: float, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = _read(_Known, n, iter(tensors))
        tasks, x, found = len(given.x), fold(given.x), []
        numbers = map(_numbers, (given.gamma, given.beta))
        for w, gamma, beta in zip(given.weights, *numbers, strict=True):
            z = convolve(x, w.flatten(0, 1))
            x, mean, r = norm_relu_pool(z, gamma, beta, eps)
            found.append((z, x, mean, r))
        zs, ps, means, rs = zip(*found, strict=True)
        return *_unfold(tasks, *zs, *ps), _join(tasks, means), _join(tasks, rs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.n, _, *tensors = inputs
        ctx.mark_non_differentiable(*output[-2:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        *by_zs_ps, _, _ = gradients
        n, wanted = ctx.n, ctx.needs_input_grad[2]
        if all(g is None for g in by_zs_ps):
            return (None,) * len(ctx.needs_input_grad)
        found = _Backward.apply(n, wanted, *ctx.saved_tensors, *by_zs_ps)
        return None, None, found[-1] if wanted else None, *found[: n + 2]


class _Backward(TaskFunction):
    """Backward pass.

    Inputs: what the forward pass saved, and the gradients with respect to zs and ps (`None` if
    unused). Outputs: those with respect to the parameters, gzs, qs, and, if wanted, x's.
    """

    @staticmethod
    def forward(n: int, wanted: bool, *tensors: Any) -> tuple[Tensor, ...]:
        rest = iter(tensors)
        given, by_zs, by_ps = _read(_Known, n, rest), _take(n, rest), _take(n, rest)
        tasks, found, by_x = len(given.x), [], None
        gamma, mean, r = map(_numbers, (given.gamma, given.mean, given.r))
        scale = r * gamma
        k = scale * r * r
        for i in reversed(range(n)):
            w, z, p = given.weights[i].flatten(0, 1), fold(given.zs[i]), fold(given.ps[i])
            by_z, by_p = by_zs[i], by_ps[i]
            g = _sum(by_x, None if by_p is None else fold(by_p))
            first = block_backward(
                z, p, mean[i], scale[i], k[i], torch.zeros_like(p) if g is None else g
            )
            gz = first.z if by_z is None else first.z.add_(fold(by_z))
            images = fold(given.ps[i - 1] if i else given.x)
            by_x = by_images(images, w, gz) if i or wanted else None
            found.append((by_weight(images, w, gz), first.gamma, first.beta, gz, first.q))
        by_ws, by_gammas, by_betas, gzs, qs = zip(*found[::-1], strict=True)
        return (
            *(by_w.unflatten(0, (tasks, -1)) for by_w in by_ws),
            *(_by_task(tasks, torch.stack(by_gammas) * r), _join(tasks, by_betas)),
            *_unfold(tasks, *gzs, *qs, *([] if by_x is None else [by_x])),
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.n, _, *tensors = inputs
        rest = iter(output)
        first, gzs_qs = _read(_Parameters, ctx.n, rest), _take(2 * ctx.n, rest)
        ctx.mark_non_differentiable(*gzs_qs)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors[: -2 * ctx.n], first.gamma, first.beta, *gzs_qs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        n, needed = ctx.n, ctx.needs_input_grad
        rest = iter(gradients)
        u, _ = _read(_Parameters, n, rest), _take(2 * n, rest)
        parameters = ctx.saved_tensors[1 : 1 + n + 2]
        us = [
            torch.zeros_like(p) if each is None else each
            for p, each in zip(parameters, (*u.weights, u.gamma, u.beta), strict=True)
        ]
        v = next(rest, None)
        rest = iter(_DoubleBackward.apply(n, needed[2], *ctx.saved_tensors, *us, v))
        second = _read(_Second, n, rest)
        by_x = next(rest) if needed[2] else None
        given = zip((*second.by_zs, *second.by_ps), needed[-2 * n :], strict=True)
        return (
            *(None, None, by_x),
            *(*second.weights, second.gamma, None),  # by beta
            *(*second.zs, *rest, None, None, None),  # ps, but for the last, mean and r
            *(g if need else None for g, need in given),
        )


class _DoubleBackward(LastDerivative):
    """Backward pass of the backward pass.

    Inputs: what that saved, and the gradients with respect to its outputs for parameters and x
    (`None` if unused). Outputs: the gradients with respect to its inputs.
    """

    @staticmethod
    def forward(n: int, wanted: bool, *tensors: Any) -> tuple[Tensor, ...]:
        rest = iter(tensors)
        given, by_gamma_beta = _read(_Known, n, rest), _take(2, rest)
        gzs, qs = _take(n, rest), _take(n, rest)
        us, v = _read(_Parameters, n, rest), next(rest)
        tasks, found, by_xs = len(given.x), [], []
        v = None if v is None else fold(v)
        gamma, mean, r, by_gamma, by_beta, u_gamma, u_beta = map(
            _numbers, (given.gamma, given.mean, given.r, *by_gamma_beta, us.gamma, us.beta)
        )
        scale, r_v = r * gamma, r * u_gamma
        numbers = Numbers(
            mean=mean,
            r2=r * r,
            scale=scale,
            scale_beta=scale * by_beta,
            x=scale * r * by_gamma,
            r_v=r_v,
            r_v_beta=r_v * by_beta,
            v_gamma=u_gamma * by_gamma,
            w=u_beta,
        )
        for i in range(n):
            w, u_w = given.weights[i].flatten(0, 1), us.weights[i].flatten(0, 1)
            z, p, gz = fold(given.zs[i]), fold(given.ps[i]), fold(gzs[i])
            images = fold(given.ps[i - 1] if i else given.x)
            u = convolve(images, u_w)
            if v is not None:
                u += convolve(v, w)
            by_w = torch.zeros_like(w) if v is None else by_weight(v, w, gz)
            if i or wanted:
                by_xs.append(by_images(images, u_w, gz))
            by_z, by_gamma_r, v = double_backward(
                z, p, fold(qs[i]), u, Numbers(*(number[i] for number in numbers))
            )
            found.append((by_w, by_gamma_r, by_z, u, v))
        by_ws, by_gammas, by_zs, by_gzs, by_gps = zip(*found, strict=True)
        return (
            *(by_w.unflatten(0, (tasks, -1)) for by_w in by_ws),
            _by_task(tasks, torch.stack(by_gammas) * r),
            *_unfold(tasks, *by_zs, *by_gzs, *by_gps, *by_xs),
        )


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return a + b if a is not None and b is not None else a if b is None else b


def _numbers(of_tasks: Tensor) -> Tensor:
    """``[T, n, C']`` -> ``[n, T*C', 1, 1]``."""
    return of_tasks.transpose(0, 1).reshape(of_tasks.shape[1], -1, 1, 1)


def _by_task(tasks: int, numbers: Tensor) -> Tensor:
    """Inverse of `_numbers`, a view."""
    return numbers.view(len(numbers), tasks, -1).transpose(0, 1)


def _join(tasks: int, numbers: Sequence[Tensor]) -> Tensor:
    """``[T*C', 1, 1]`` of each block -> ``[T, n, C']``."""
    return _by_task(tasks, torch.stack(tuple(numbers)))


def _unfold(tasks: int, *images: Tensor) -> list[Tensor]:
    return [unfold(image, tasks) for image in images]
