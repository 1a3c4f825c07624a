"""Convolutions of many tasks at once, each with its own weights, and their derivatives.

Images are folded (see `task_function.fold`), weights are ``[T*O, I, k, k]`` with odd k, and a
convolution keeps the size of its images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """``conv2d(x, weight, padding=k // 2)`` of each task: ``[B, T*I, H, W]`` -> T*O channels."""
    groups = x.shape[1] // weight.shape[1]
    return F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=groups)


def by_images(x: Tensor, weight: Tensor, g: Tensor) -> Tensor:
    """The derivative of <g, convolve(x, weight)> with respect to x."""
    return _derivatives(x, weight, g, [True, False, False])[0]


def by_weight(x: Tensor, weight: Tensor, g: Tensor) -> Tensor:
    """The derivative of <g, convolve(x, weight)> with respect to weight."""
    return _derivatives(x, weight, g, [False, True, False])[1]


def _derivatives(x: Tensor, weight: Tensor, g: Tensor, wanted: list[bool]) -> tuple[Tensor, ...]:
    same, groups = [weight.shape[-1] // 2] * 2, x.shape[1] // weight.shape[1]
    return torch.ops.aten.convolution_backward(
        g, x, weight, None, [1, 1], same, [1, 1], False, [0, 0], groups, wanted
    )
