"""Batch norm, ReLU and 2x2 max pool in one, with first and second derivatives.

Images are folded (see `task_function.fold`), per-channel numbers are ``[T*C, 1, 1]``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# The mathematics, for one channel with n values in z. P picks the largest value of each 2x2 window,
# P' puts a value back where it was picked, d = z - mean, r = 1 / sqrt(var + eps), gamma >= 0:
#
#     p = relu(r gamma Pd + beta)
#
# Backward: the gradients of <g, p>, with q = g where p > 0 and 0 elsewhere:
#
#     gz     = r gamma (P'q - sum(q) / n - r^2 d sum(q Pd) / n)
#     ggamma = G = r sum(q Pd)
#     gbeta  = B = sum(q)
#
# Double backward: the gradients of <u, gz> + <v, ggamma> + <w, gbeta>, with b = r^2 sum(u d) / n,
# e = Pu - sum(u) / n - b Pd, A = sum(q e), x = r^2 gamma G:
#
#     g:     r gamma e + r v Pd + w where p > 0
#     gamma: r A
#     z:     t - sum(t) / n - r^2 d (sum(t d) + r gamma A) / n
#            with t = r (v - gamma b) P'q - x u / n, hence
#            sum(t) = r v B - r gamma b B - x sum(u) / n and sum(t d) = v G - 2 x b / r^2
#
# Full-size tensors enter linearly, as z, u and P'q, with one coefficient per channel. Everything
# else has a quarter of that size, after pooling, or is one number per channel. On a GPU a small
# operation takes as long as a large one, so the caller computes, for all blocks at once, the
# numbers that do not depend on images.


class Gradients(NamedTuple):
    """The gradients of <g, p>."""

    z: Tensor
    gamma: Tensor  # G / r
    beta: Tensor
    q: Tensor  # like p: g where p > 0, else 0


def norm_relu_pool(
    z: Tensor, gamma: Tensor, beta: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``max_pool2d(relu(batch_norm(z)), 2)`` with the batch's statistics; also the mean and r.

    Args:
        z: ``[B, T*C, H, W]``.
        gamma: not negative, so that the largest value stays the largest.
        beta: like gamma.
        eps: added to the variance.
    """
    # Not native_batch_norm, which accumulates in single precision when channels come last.
    mean = _mean(z)
    r = _mean((z - mean).square_()).add_(eps).rsqrt_()
    p = torch.addcmul(beta, F.max_pool2d(z, 2).sub_(mean), r * gamma).relu_()
    return p, mean, r


def backward(z: Tensor, p: Tensor, mean: Tensor, scale: Tensor, k: Tensor, g: Tensor) -> Gradients:
    """The gradients of <g, p>.

    Args:
        z: ``[B, T*C, H, W]``.
        p: ``[B, T*C, H // 2, W // 2]``.
        mean: of z.
        scale: r gamma.
        k: r^3 gamma.
        g: like p.
    """
    n, (picked, where) = _count(z), _pool(z, mean)
    q = torch.ops.aten.threshold_backward(g, p, 0)
    q_sum, q_picked = _sum(q), _sum(picked.mul_(q))
    slope = (k * q_picked).div_(n)
    constant = torch.addcmul(slope * mean, scale, q_sum, value=-1 / n)
    by_z = torch.addcmul(constant, z, slope, value=-1)
    _put_back(by_z, where, q * scale)
    return Gradients(by_z, q_picked, q_sum, q)


class Numbers(NamedTuple):
    """The per-channel numbers that `double_backward` needs, in the notation above."""

    mean: Tensor
    r2: Tensor
    scale: Tensor  # r gamma
    scale_beta: Tensor  # r gamma B
    x: Tensor
    r_v: Tensor
    r_v_beta: Tensor  # r v B
    v_gamma: Tensor  # v G
    w: Tensor


def double_backward(
    z: Tensor, p: Tensor, q: Tensor, u: Tensor, of: Numbers
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of <u, gz> + <v, ggamma> + <w, gbeta>: z, gamma (divided by r) and g."""
    n, (picked, where) = _count(z), _pool(z, of.mean)
    u_mean = _mean(u)
    b = torch.addcmul(_mean(u * z), of.mean, u_mean, value=-1).mul_(of.r2)

    e = _pick(u, where).sub_(u_mean).addcmul_(picked, b, value=-1)
    a = _sum(q * e)
    by_g = torch.addcmul(of.w, e, of.scale).addcmul_(picked, of.r_v)
    by_g = torch.ops.aten.threshold_backward(by_g, p, 0)

    t_sum = torch.addcmul(of.r_v_beta, of.scale_beta, b, value=-1)
    t_sum.addcmul_(of.x, u_mean, value=-1)
    slope = torch.addcmul(of.v_gamma, of.scale, a).mul_(of.r2)
    slope.addcmul_(of.x, b, value=-2).div_(n)
    constant = (slope * of.mean).sub_(t_sum, alpha=1 / n)
    by_z = torch.addcmul(constant, z, slope, value=-1).addcmul_(u, of.x, value=-1 / n)
    _put_back(by_z, where, q * torch.addcmul(of.r_v, of.scale, b, value=-1))
    return by_z, a, by_g


def _pool(z: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Pd and its int64 positions in H*W, which are faster to recompute than to keep."""
    picked, where = F.max_pool2d(z, 2, return_indices=True)
    return picked.sub_(mean), where


def _count(z: Tensor) -> int:
    """n, the number of values of a channel."""
    return z.shape[0] * z.shape[2] * z.shape[3]


def _sum(x: Tensor) -> Tensor:
    return x.sum(dim=(0, 2, 3)).view(-1, 1, 1)


def _mean(x: Tensor) -> Tensor:
    return x.mean(dim=(0, 2, 3)).view(-1, 1, 1)


def _flat(x: Tensor) -> Tensor:
    """``[B, T*C, H, W]`` -> ``[B, H*W, T*C]``, a view if x is folded."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _pick(x: Tensor, where: Tensor) -> Tensor:
    """P x."""
    picked = _flat(x).gather(1, _flat(where))
    return picked.unflatten(1, where.shape[2:]).permute(0, 3, 1, 2)


def _put_back(x: Tensor, where: Tensor, q: Tensor) -> None:
    """Add P'q to x."""
    _flat(x).scatter_add_(1, _flat(where), _flat(q))
