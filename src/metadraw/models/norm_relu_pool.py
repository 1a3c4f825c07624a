"""Batch norm, ReLU and 2x2 max pool as one function, with first and second derivatives."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from metadraw.models.task_function import LastDerivative, TaskFunction, fold, unfold


def norm_relu_pool(z: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """``max_pool2d(relu(batch_norm(z)), 2)`` by the batch's statistics, fast in second order.

    Args:
        z: ``[B, C, H, W]``.
        weight: gamma ``[C]``.
        bias: beta ``[C]``.
        eps: added to the variance.

    Returns:
        ``[B, C, H // 2, W // 2]``, differentiable twice.
    """
    p: Tensor = _Forward.apply(z[None], weight[None], bias[None], eps)[0]
    return p.squeeze(0)  # not p[0], whose derivative is a copy


# The mathematics, per channel, n its number of values in z. sigma is the sign of gamma, P picks
# the largest of each 2x2 window, P' puts back to where it was picked, r = 1 / sqrt(var + eps):
#
#     s = sigma r (z - mean)                so that pooling finds the largest of gamma s, too
#     p = relu(|gamma| P s + beta)
#
# First derivatives of <g, p>, with q = g where p > 0 and else 0, h = |gamma| q:
#
#     gz     = sigma r (P'h - m1 - m2 s)    m1 = sum(h) / n, m2 = sum(h Ps) / n
#     ggamma = sigma sum(q Ps)
#     gbeta  = sum(q)
#
# Their derivatives, of <u, gz> + <v, ggamma> + <w, gbeta>, with e = Pu - U / n - Ps V / n,
# U = sum(u), V = sum(u s), A = sum(q e):
#
#     by g:     (sigma r |gamma| e + sigma v Ps + w) where p > 0
#     by gamma: r A
#     by z:     sigma r (t - sum(t) / n - s sum(t s) / n) - |gamma| A r^2 s / n
#               with t = -sigma r (P'h V / n + m2 u) + sigma v P'q
#
# Everything in full size is linear in z, u and P'q, with one coefficient a channel; all else is
# in the size after pooling, a quarter, or a number a channel.


class _Kept(NamedTuple):
    """What derivatives need beside the inputs, all but the first without a derivative itself."""

    p: Tensor  # [T, B, C, H//2, W//2]
    picked: Tensor  # Ps, of the same shape
    where: Tensor  # int64 of the same shape, positions in H*W
    mean: Tensor  # [T, C]
    r: Tensor  # [T, C]


class _Forward(TaskFunction):
    """z ``[T, B, C, H, W]``, gamma and beta ``[T, C]`` -> `_Kept`."""

    @staticmethod
    def forward(z: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> _Kept:
        # Not by native_batch_norm, which adds up in single precision when channels come last.
        mean = _sum(fold(z), gamma) / _count(z)
        s = fold(z) - _wide(mean)
        r = (_sum(s.square(), gamma) / _count(z) + eps).rsqrt()
        s *= _wide(_sign(gamma) * r)
        picked, where = F.max_pool2d(s, 2, return_indices=True)
        p = torch.addcmul(_wide(beta), picked, _wide(gamma.abs())).relu_()
        p, picked, where = (unfold(x, len(z)) for x in (p, picked, where))
        return _Kept(p, picked, where, mean, r)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: _Kept) -> None:
        z, gamma, _, _ = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(z, gamma, *output)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        z, gamma, *kept = ctx.saved_tensors
        if g is None:
            return None, None, None, None
        return *_Backward.apply(z, gamma, g, *kept), None


class _Backward(TaskFunction):
    """z, gamma, g like p, and `_Kept` -> gz like z, ggamma and gbeta like gamma."""

    @staticmethod
    def forward(z: Tensor, gamma: Tensor, g: Tensor, *kept: Tensor) -> tuple[Tensor, ...]:
        k = _Kept(*kept)
        sigma, size, n = _sign(gamma), gamma.abs(), _count(z)
        q, q_sum, q_s = _passed(g, k, gamma)
        m1, m2 = size * q_sum / n, size * q_s / n
        slope = -k.r.square() * m2
        gz = _affine(z, slope, -slope * k.mean - sigma * k.r * m1)
        _put_back(gz, k.where, q, sigma * k.r * size)
        return unfold(gz, len(z)), sigma * q_s, q_sum

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, u: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor | None, ...]:
        by_z, by_gamma, by_g = _SecondBackward.apply(*ctx.saved_tensors, u, v, w)
        return by_z, by_gamma, by_g, *([None] * len(_Kept._fields))


class _SecondBackward(LastDerivative):
    """What `_Backward` has, u like gz, v like ggamma, w like gbeta -> like z, gamma and g."""

    @staticmethod
    def forward(z: Tensor, gamma: Tensor, g: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        *kept, u, v, w = rest
        k = _Kept(*kept)
        tasks, n = len(z), _count(z)
        sigma, size = _sign(gamma), gamma.abs()
        picked, folded_u = fold(k.picked), fold(u)
        q, q_sum, q_s = _passed(g, k, gamma)
        m1, m2 = size * q_sum / n, size * q_s / n
        u_sum = _sum(folded_u, gamma)
        u_s = sigma * k.r * (_sum(folded_u * fold(z), gamma) - k.mean * u_sum)

        e = torch.addcmul(_wide(-u_sum / n), picked, _wide(-u_s / n))
        e += _pick(folded_u, k.where)
        a = _sum(q * e, gamma)
        by_g = e.mul_(_wide(sigma * k.r * size)).addcmul_(picked, _wide(sigma * v))
        by_g = by_g.add_(_wide(w)) * (fold(k.p) > 0)

        t_sum = -sigma * k.r * (u_s * m1 + m2 * u_sum) + sigma * v * q_sum
        t_s = -2 * sigma * k.r * m2 * u_s + sigma * v * q_s
        slope = -(k.r.square() * t_s + k.r.pow(3) * sigma * size * a) / n
        by_z = _affine(z, slope, -slope * k.mean - sigma * k.r * t_sum / n)
        by_z.addcmul_(folded_u, _wide(-k.r.square() * m2))
        _put_back(by_z, k.where, q, k.r * v - k.r.square() * size * u_s / n)
        return unfold(by_z, tasks), k.r * a, unfold(by_g, tasks)


def _sign(gamma: Tensor) -> Tensor:
    """-1 or 1; 1 for 0, where the largest of each window is as good as any."""
    return torch.ones_like(gamma).copysign(gamma)


def _count(z: Tensor) -> int:
    """n, the number of values of a channel."""
    return z.shape[1] * z.shape[3] * z.shape[4]


def _wide(x: Tensor) -> Tensor:
    """A number a channel ``[T, C]``, to go with what is folded."""
    return x.reshape(-1, 1, 1)


def _sum(x: Tensor, like: Tensor) -> Tensor:
    """The sum over each channel of what is folded."""
    return x.sum(dim=(0, 2, 3)).view_as(like)


def _passed(g: Tensor, kept: _Kept, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, folded, sum(q) and sum(q Ps)."""
    q = fold(g) * (fold(kept.p) > 0)
    return q, _sum(q, gamma), _sum(q * fold(kept.picked), gamma)


def _affine(z: Tensor, slope: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(_wide(shift), fold(z), _wide(slope))


def _flat(x: Tensor) -> Tensor:
    """``[B, T*C, H, W]`` -> ``[B, H*W, T*C]``, a view of what is folded."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _pick(x: Tensor, where: Tensor) -> Tensor:
    """P x of what is folded."""
    where = fold(where)
    picked = _flat(x).gather(1, _flat(where))
    return picked.unflatten(1, where.shape[2:]).permute(0, 3, 1, 2)


def _put_back(x: Tensor, where: Tensor, q: Tensor, scale: Tensor) -> None:
    """Add scale P'q to x, which is folded."""
    _flat(x).scatter_add_(1, _flat(fold(where)), _flat(q * _wide(scale)))
