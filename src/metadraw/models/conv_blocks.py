"""A row of [convolution, batch norm, ReLU, 2x2 max pool] blocks as one function, fast twice over.

Mapped over tasks by `torch.vmap`, images and all that is computed of them lie folded, one task
beside the other, for grouped convolutions and arithmetic by vectors of all tasks' channels.
PyTorch's own layers change layout between the two, and take slow ways for second derivatives. And
it is one call for all blocks, not one a layer, because the way of a call through `torch.func`
takes longer than the arithmetic of a small one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metadraw.models.convolve import by_images, by_weight, convolve
from metadraw.models.norm_relu_pool import Pooled, Slopes, norm_relu_pool, second_slopes, slopes
from metadraw.models.task_function import LastDerivative, TaskFunction, fold, unfold


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
        weights: of each block's convolution, ``[C', C, k, k]`` of x's dtype, k odd. Without biases:
            batch norm would take them away again.
        gammas: of each block's batch norm, ``[C']``.
        betas: like gammas.
        eps: added to variances.

    Returns:
        ``[B, C', H // 2, W // 2]`` for one block, and so on; differentiable twice.
    """
    # In few tensors, for each costs time on its way.
    parameters = (*weights, torch.cat(tuple(gammas)), torch.cat(tuple(betas)))
    found: Any = _Forward.apply(len(weights), eps, x[None], *(p[None] for p in parameters))
    last: Tensor = found[2 * len(weights) - 1]
    return last.squeeze(0)  # not last[0], whose derivative is a copy


# By the names of `metadraw.models.norm_relu_pool`, z and p being the images after each block's
# convolution and pool, the four numbers a channel side by side for all blocks:
#
#     _Forward         x, parameters                               -> zs, ps, means, rs
#     _Backward        those, and gradients by zs and ps           -> by parameters, gzs, qs, by x
#     _SecondBackward  those, and gradients by parameters and x    -> by all of these
#
# All zs and ps are outputs of the first and inputs of the second, so that PyTorch adds up all
# derivatives by them before it goes through the second.


class _Forward(TaskFunction):
    """x ``[T, B, C, H, W]``, weights, gammas ``[T, sum of C']``, betas -> zs, ps, means, rs."""

    @staticmethod
    def forward(n: int, eps: float, x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        weights, (gammas, betas) = _parts(rest, n, 2)
        tasks, x, found = len(x), fold(x), []
        numbers = (_split(each, weights) for each in (gammas, betas))
        for w, gamma, beta in zip(weights, *numbers, strict=True):
            turn = _turn(gamma)
            z = convolve(x, w.flatten(0, 1) * turn[..., None])
            found.append(norm_relu_pool(z, gamma * turn, beta, eps))
            x = found[-1].p
        zs, ps, _, means, rs = zip(*found, strict=True)
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
    """And gradients by zs and ps, or none -> by parameters, gzs, qs, and, if wanted, by x."""

    @staticmethod
    def forward(n: int, wanted: bool, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        *known, by_zs, by_ps = _parts(rest, *_known(n), n, n)
        tasks, found, by_x = len(x), [], None
        for i, block in reversed(list(enumerate(_blocks(x, *known)))):
            g = torch.zeros_like(block.pooled.p) if by_x is None else by_x
            g = g if by_ps[i] is None else g + fold(by_ps[i])
            first = slopes(block.pooled, g)
            gz = first.z if by_zs[i] is None else first.z.add_(fold(by_zs[i]))
            by_w = by_weight(block.x, block.weight, gz) * block.turn[..., None]
            by_x = by_images(block.x, block.weight, gz) if i or wanted else None
            found.append((by_w, first.gamma * block.turn, first.beta, gz, first.q))
        by_ws, by_gammas, by_betas, gzs, qs = zip(*found[::-1], strict=True)
        return (
            *(by_w.unflatten(0, (tasks, -1)) for by_w in by_ws),
            *(_join(tasks, by_gammas), _join(tasks, by_betas)),
            *_unfold(tasks, *gzs, *qs, *([] if by_x is None else [by_x])),
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.n, _, *tensors = inputs
        _, by_gammas_betas, gzs, qs, _ = _parts(output, *_first(ctx.n), 1)
        ctx.mark_non_differentiable(*gzs, *qs)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors[: -2 * ctx.n], *by_gammas_betas, *gzs, *qs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        n, needed = ctx.n, ctx.needs_input_grad
        u_ws, u_gammas_betas, _, _, v = _parts(gradients, *_first(n), 1)
        parameters = ctx.saved_tensors[1 : 1 + n + 2]
        us = [
            torch.zeros_like(p) if u is None else u
            for p, u in zip(parameters, (*u_ws, *u_gammas_betas), strict=True)
        ]
        found = _SecondBackward.apply(n, needed[2], *ctx.saved_tensors, *us, *(v or [None]))
        by_parameters, by_zs, by_ps, *by_gradients, by_x = _parts(
            found, n + 1, n, n - 1, n, n, needed[2]
        )
        given = zip(chain(*by_gradients), needed[-2 * n :], strict=True)
        return (
            *(None, None, *(by_x or [None])),
            *(*by_parameters, None),  # by betas
            *(*by_zs, *by_ps, None, None, None),  # by the last p, means and rs
            *(g if need else None for g, need in given),
        )


class _SecondBackward(LastDerivative):
    """And gradients by parameters, and x or none -> by weights, gammas, zs, ps but the last, the
    gradients by zs and by ps, and, if wanted, x.
    """  # noqa: D205

    @staticmethod
    def forward(n: int, wanted: bool, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        *known, by_gammas_betas, gzs, qs, u_ws, u_gammas_betas, (v,) = _parts(
            rest, *_known(n), *_first(n)[1:], n, 2, 1
        )
        tasks, v, found, by_xs = len(x), None if v is None else fold(v), [], []
        numbers = zip(*(_split(y, u_ws) for y in (*by_gammas_betas, *u_gammas_betas)), strict=True)
        for i, block in enumerate(_blocks(x, *known)):
            by_gamma, by_beta, u_gamma, u_beta = next(numbers)
            gz, u_w = fold(gzs[i]), u_ws[i].flatten(0, 1) * block.turn[..., None]
            u, by_w = convolve(block.x, u_w), torch.zeros_like(u_w)
            if v is not None:
                u += convolve(v, block.weight)
                by_w = by_weight(v, block.weight, gz) * block.turn[..., None]
            if i or wanted:
                by_xs.append(by_images(block.x, u_w, gz))
            first = Slopes(gz, by_gamma * block.turn, by_beta, fold(qs[i]))
            by_z, by_gamma, v = second_slopes(block.pooled, first, u, u_gamma * block.turn, u_beta)
            found.append((by_w, by_gamma * block.turn, by_z, u, v))
        by_ws, by_gammas, by_zs, us, vs = zip(*found, strict=True)
        return (
            *(by_w.unflatten(0, (tasks, -1)) for by_w in by_ws),
            _join(tasks, by_gammas),
            *_unfold(tasks, *by_zs, *by_xs[wanted:], *us, *vs, *by_xs[:wanted]),
        )


class _Block(NamedTuple):
    """A block, folded, its channels turned over where gamma is negative, so that it is not."""

    turn: Tensor  # 1 or -1
    weight: Tensor
    x: Tensor
    pooled: Pooled


def _known(n: int) -> tuple[int, ...]:
    """How many parameters and outputs `_Forward` has: weights, gammas and betas, zs, ps, ..."""
    return n, 2, n, n, 2


def _first(n: int) -> tuple[int, ...]:
    """How many outputs `_Backward` has: by weights, by gammas and betas, gzs, qs."""
    return n, 2, n, n


def _blocks(
    x: Tensor,
    weights: Sequence[Tensor],
    gammas_betas: Sequence[Tensor],
    zs: Sequence[Tensor],
    ps: Sequence[Tensor],
    means_rs: Sequence[Tensor],
) -> Iterator[_Block]:
    numbers = (_split(each, weights) for each in (gammas_betas[0], *means_rs))
    images = [x, *ps[:-1]]
    for w, x, z, p, gamma, mean, r in zip(weights, images, zs, ps, *numbers, strict=True):
        turn = _turn(gamma)
        pooled = Pooled(fold(z), fold(p), gamma * turn, mean, r)
        yield _Block(turn, w.flatten(0, 1) * turn[..., None], fold(x), pooled)


def _turn(gamma: Tensor) -> Tensor:
    """-1 where gamma is negative."""
    return torch.ones_like(gamma).copysign(gamma)


def _parts(values: Sequence[Any], *sizes: int) -> list[Sequence[Any]]:
    """What came one after the other; the last part may be missing."""
    ends = list(accumulate(sizes))
    return [values[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def _split(numbers: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """``[T, sum of C']`` -> ``[T*C', 1, 1]`` of each block."""
    parts = numbers.split([w.shape[1] for w in weights], dim=1)
    return [part.reshape(-1, 1, 1) for part in parts]


def _join(tasks: int, numbers: Sequence[Tensor]) -> Tensor:
    """What `_split` was given."""
    return torch.cat([each.view(tasks, -1) for each in numbers], dim=1)


def _unfold(tasks: int, *images: Tensor) -> list[Tensor]:
    return [unfold(image, tasks) for image in images]
