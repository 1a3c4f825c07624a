"""Batch norm, ReLU and 2x2 max pool in one, with first and second derivatives.

Images are folded (see `metadraw.models.task_function.fold`), numbers of channels ``[T*C, 1, 1]``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# The mathematics, per channel, n its number of values in z. P picks the largest of each 2x2
# window, P' puts back to where it was picked, r = 1 / sqrt(var + eps), gamma >= 0:
#
#     s = r (z - mean)
#     p = relu(gamma P s + beta)
#
# First derivatives of <g, p>, with q = g where p > 0 and else 0:
#
#     gz     = r (gamma P'q - m1 - m2 s)    m1 = gamma sum(q) / n, m2 = gamma sum(q Ps) / n
#     ggamma = sum(q Ps)
#     gbeta  = sum(q)
#
# Their derivatives, of <u, gz> + <v, ggamma> + <w, gbeta>, with e = Pu - U / n - Ps V / n,
# U = sum(u), V = sum(u s), A = sum(q e):
#
#     by g:     r gamma e + v Ps + w where p > 0
#     by gamma: r A
#     by z:     r (t - sum(t) / n - s sum(t s) / n) - gamma A r^2 s / n
#               with t = -r (gamma P'q V / n + m2 u) + v P'q
#
# Everything in full size is linear in z, u and P'q, with one coefficient a channel; all else is
# in the size after pooling, a quarter, or a number a channel.


class Pooled(NamedTuple):
    """What a block has computed."""

    z: Tensor  # [B, T*C, H, W]
    p: Tensor  # [B, T*C, H // 2, W // 2]
    gamma: Tensor
    mean: Tensor
    r: Tensor


class Slopes(NamedTuple):
    """The derivatives of <g, p>."""

    z: Tensor
    gamma: Tensor
    beta: Tensor
    q: Tensor  # like p: g where p is not constant


def norm_relu_pool(z: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Pooled:
    """``max_pool2d(relu(batch_norm(z)), 2)`` by the batch's statistics.

    Args:
        z: ``[B, T*C, H, W]``.
        gamma: not negative, so that the largest value stays the largest.
        beta: like gamma.
        eps: added to the variance.
    """
    # Not by native_batch_norm, which adds up in single precision when channels come last.
    mean = _sum(z) / _count(z)
    r = (_sum((z - mean).square_()) / _count(z) + eps).rsqrt()
    p = F.max_pool2d(z, 2).sub_(mean).mul_(r * gamma).add_(beta).relu_()
    return Pooled(z, p, gamma, mean, r)


def slopes(of: Pooled, g: Tensor) -> Slopes:
    """The first derivatives, of <g, p>."""
    z, p, gamma, mean, r = of
    n, (picked, where) = _count(z), _pool(of)
    q = torch.ops.aten.threshold_backward(g, p, 0)
    q_sum, q_s = _sum(q), _sum(picked.mul_(q))
    m1, m2 = gamma * q_sum / n, gamma * q_s / n
    slope = -r.square() * m2
    by_z = torch.addcmul(-slope * mean - r * m1, z, slope)
    _put_back(by_z, where, q * (r * gamma))
    return Slopes(by_z, q_s, q_sum, q)


def second_slopes(
    of: Pooled, first: Slopes, u: Tensor, v: Tensor, w: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The derivatives of <u, first.z> + <v, first.gamma> + <w, first.beta> by z, gamma and g."""
    z, p, gamma, mean, r = of
    n, q, (picked, where) = _count(z), first.q, _pool(of)
    m2 = gamma * first.gamma / n
    u_sum = _sum(u)
    u_s = r * (_sum(u * z) - mean * u_sum)

    e = torch.addcmul(-u_sum / n, picked, -u_s / n).add_(_pick(u, where))
    a = _sum(q * e)
    by_g = e.mul_(r * gamma).addcmul_(picked, v).add_(w)
    by_g = torch.ops.aten.threshold_backward(by_g, p, 0)

    t_sum = -r * (u_s * gamma * first.beta / n + m2 * u_sum) + v * first.beta
    t_s = -2 * r * m2 * u_s + v * first.gamma
    slope = -(r.square() * t_s + r.pow(3) * gamma * a) / n
    by_z = torch.addcmul(-slope * mean - r * t_sum / n, z, slope)
    by_z.addcmul_(u, -r.square() * m2)
    _put_back(by_z, where, q * (r * v - r.square() * gamma * u_s / n))
    return by_z, r * a, by_g


def _pool(of: Pooled) -> tuple[Tensor, Tensor]:
    """Ps, and where it was picked, int64 positions in H*W: sooner found again than kept."""
    picked, where = F.max_pool2d(of.z, 2, return_indices=True)
    return picked.sub_(of.mean).mul_(of.r), where


def _count(z: Tensor) -> int:
    """n, the number of values of a channel."""
    return z.shape[0] * z.shape[2] * z.shape[3]


def _sum(x: Tensor) -> Tensor:
    return x.sum(dim=(0, 2, 3)).view(-1, 1, 1)


def _flat(x: Tensor) -> Tensor:
    """``[B, T*C, H, W]`` -> ``[B, H*W, T*C]``, a view of what is folded."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _pick(x: Tensor, where: Tensor) -> Tensor:
    """P x."""
    picked = _flat(x).gather(1, _flat(where))
    return picked.unflatten(1, where.shape[2:]).permute(0, 3, 1, 2)


def _put_back(x: Tensor, where: Tensor, q: Tensor) -> None:
    """Add P'q to x."""
    _flat(x).scatter_add_(1, _flat(where), _flat(q))
