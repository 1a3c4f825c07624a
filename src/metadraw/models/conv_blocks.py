"""A row of [convolution, batch norm, ReLU, 2x2 max pool] blocks as one function, fast twice over.

Mapped over tasks by `torch.vmap`, images and all that is computed of them lie folded, one task
beside the other, for grouped convolutions and arithmetic by vectors of all tasks' channels.
PyTorch's own layers change layout between the two, and take slow ways for second derivatives. And
it is one call for all blocks, not one a layer, because the way of a call through `torch.func`
takes longer than the arithmetic of a small one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metadraw.models.convolve import by_images, by_weight, convolve
from metadraw.models.norm_relu_pool import Kept, Slopes, norm_relu_pool, second_slopes, slopes
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
    parameters = [p[None] for p in (*weights, *gammas, *betas)]
    states: Any = _Forward.apply(len(weights), eps, x[None], *parameters)
    last: Tensor = states[2 * len(weights) - 1]
    return last.squeeze(0)  # not last[0], whose derivative is a copy


# By the names of `metadraw.models.norm_relu_pool`, z and p being the images after each block's
# convolution and pool, and a name with an s all blocks':
#
#     _Forward         x, parameters                                -> zs, ps, kept
#     _Backward        those, and gradients by zs and ps            -> by parameters, gzs, qs, by x
#     _SecondBackward  those, and gradients by parameters and by x  -> by all of these
#
# All zs and ps are outputs of the first and inputs of the second, so that PyTorch adds up all
# derivatives by them before it goes through the second.


class _Forward(TaskFunction):
    """x ``[T, B, C, H, W]``, weights, gammas, betas -> zs, ps, and `Kept` field by field."""

    @staticmethod
    def forward(n: int, eps: float, x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        tasks, x = len(x), fold(x)
        found = []
        for w, gamma, beta in zip(*_columns(parameters, n), strict=True):
            turn = _turn(gamma)
            z = convolve(x, w.flatten(0, 1) * turn[..., None])
            x, kept = norm_relu_pool(z, fold(gamma) * turn, fold(beta), eps)
            found.append([unfold(value, tasks) for value in (z, x, *kept)])
        return _rows(found)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.n, _, *tensors = inputs
        ctx.mark_non_differentiable(*output[2 * ctx.n :])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        n, needed = ctx.n, ctx.needs_input_grad
        if all(g is None for g in gradients):
            return (None,) * len(needed)
        found = _Backward.apply(n, needed[2], *ctx.saved_tensors, *gradients[: 2 * n])
        return None, None, found[5 * n] if needed[2] else None, *found[: 3 * n]


class _Backward(TaskFunction):
    """And gradients by zs and ps, or none -> by parameters, gzs, qs, and, if wanted, by x."""

    @staticmethod
    def forward(n: int, wanted: bool, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        tasks, (*known, by_zs, by_ps) = len(x), _columns(rest, n)
        found = []
        by_x = None
        for i, block in reversed(list(enumerate(_blocks(x, *known)))):
            g = torch.zeros_like(block.p) if by_x is None else by_x
            g = g if by_ps[i] is None else g + fold(by_ps[i])
            first = slopes(block.z, block.p, block.gamma, g, block.kept)
            gz = first.z if by_zs[i] is None else first.z.add_(fold(by_zs[i]))
            by_w = by_weight(block.x, block.weight, gz) * block.turn[..., None]
            by_x = by_images(block.x, block.weight, gz) if i or wanted else None
            numbers = (first.gamma * block.turn, first.beta, gz, first.q)
            found.append([by_w.unflatten(0, (tasks, -1)), *(unfold(y, tasks) for y in numbers)])
        return *_rows(found[::-1]), *([] if by_x is None else [unfold(by_x, tasks)])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.n, _, *tensors = inputs
        ctx.mark_non_differentiable(*output[3 * ctx.n : 5 * ctx.n])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors[: -2 * ctx.n], *output[ctx.n : 5 * ctx.n])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        n, needed = ctx.n, ctx.needs_input_grad
        by_x = gradients[5 * n] if len(gradients) > 5 * n else None
        us = [
            torch.zeros_like(p) if u is None else u
            for u, p in zip(gradients, ctx.saved_tensors[1 : 3 * n + 1], strict=False)
        ]
        found = _SecondBackward.apply(n, needed[2], *ctx.saved_tensors, *us, by_x)
        by_weights, by_gammas, by_zs, by_gzs, by_gs = _columns(found[: 5 * n], n)
        by_ps, by_xs = found[5 * n : 6 * n - 1], found[6 * n - 1 :]
        given = zip((*by_gzs, *by_gs), needed[-2 * n :], strict=True)
        return (
            *(None, None, by_xs[0] if by_xs else None),
            *(*by_weights, *by_gammas, *[None] * n),
            *(*by_zs, *by_ps, None, *[None] * len(Kept._fields) * n),
            *(g if need else None for g, need in given),
        )


class _SecondBackward(LastDerivative):
    """And gradients by parameters, and by x or none -> by weights, gammas, zs, the gradients by
    zs and by ps, by ps but the last, and, if wanted, by x.
    """  # noqa: D205

    @staticmethod
    def forward(n: int, wanted: bool, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        tasks, v = len(x), None if rest[-1] is None else fold(rest[-1])
        *known, by_gammas, by_betas, gzs, qs, u_ws, u_gammas, u_betas = _columns(rest[:-1], n)
        found, by_xs = [], []
        for i, block in enumerate(_blocks(x, *known)):
            gz, u_w = fold(gzs[i]), u_ws[i].flatten(0, 1) * block.turn[..., None]
            by_gz, by_w = convolve(block.x, u_w), torch.zeros_like(u_w)
            if v is not None:
                by_gz += convolve(v, block.weight)
                by_w = by_weight(v, block.weight, gz) * block.turn[..., None]
            if i or wanted:
                by_xs.append(unfold(by_images(block.x, u_w, gz), tasks))
            first = Slopes(gz, fold(by_gammas[i]) * block.turn, fold(by_betas[i]), fold(qs[i]))
            us = by_gz, fold(u_gammas[i]) * block.turn, fold(u_betas[i])
            by_z, by_gamma, v = second_slopes(
                block.z, block.p, block.gamma, block.kept, first, *us
            )
            values = (by_gamma * block.turn, by_z, by_gz, v)
            found.append([by_w.unflatten(0, (tasks, -1)), *(unfold(y, tasks) for y in values)])
        return *_rows(found), *by_xs[wanted:], *by_xs[:wanted]


class _Block(NamedTuple):
    """One block, folded, its channels turned so that gamma is not negative."""

    turn: Tensor  # 1 or -1
    weight: Tensor
    gamma: Tensor
    x: Tensor
    z: Tensor
    p: Tensor
    kept: Kept


def _blocks(
    x: Tensor,
    weights: Sequence[Tensor],
    gammas: Sequence[Tensor],
    betas: Sequence[Tensor],
    zs: Sequence[Tensor],
    ps: Sequence[Tensor],
    *kept: Sequence[Tensor],
) -> Iterator[_Block]:
    for x, w, gamma, z, p, *keep in zip([x, *ps[:-1]], weights, gammas, zs, ps, *kept, strict=True):
        turn = _turn(gamma)
        weight = w.flatten(0, 1) * turn[..., None]
        x, gamma, z, p, *keep = map(fold, (x, gamma, z, p, *keep))
        yield _Block(turn, weight, gamma * turn, x, z, p, Kept(*keep))


def _turn(gamma: Tensor) -> Tensor:
    """-1 where gamma is negative: turning a channel over with its weights changes nothing."""
    return torch.ones_like(fold(gamma)).copysign(fold(gamma))


def _columns(values: Sequence[Any], n: int) -> list[Sequence[Any]]:
    """What came one after the other, n of each kind."""
    return [values[i : i + n] for i in range(0, len(values), n)]


def _rows(found: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...]:
    """What was found for each block, one kind after the other."""
    return tuple(chain(*zip(*found, strict=True)))
