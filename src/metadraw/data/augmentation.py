"""Turned, mirrored and moved drawings: integer operations, the same on any device bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor

#: In how many orientations a meta-training class is a class of its own, by ``data.new_classes``.
ORIENTATIONS = {"none": 1, "rotations": 4, "rotations_mirrors": 8}


def orient(pictures: Tensor, orientation: Tensor) -> Tensor:
    """Each picture in one of eight orientations: mirrored left-right or not, then turned.

    Args:
        pictures: ``[..., H, W]`` of any dtype; H = W where any is turned by 90 or 270 degrees.
        orientation: int64, broadcast to ``[...]``: r + 4m mirrors if m is 1, not 0, then turns
            counterclockwise by r quarters, 0 to 3.

    Returns:
        ``[..., H, W]`` of the same dtype.
    """
    height, width = pictures.shape[-2:]
    pixels = torch.arange(height * width, device=pictures.device).view(height, width)
    # [8, H*W]: from where each pixel of the result is taken.
    source = torch.stack(
        [
            seen.rot90(quarters).flatten()
            for seen in (pixels, pixels.fliplr())
            for quarters in range(4)
        ]
    )
    flat = pictures.flatten(-2)
    return flat.gather(-1, source[orientation].expand_as(flat)).view_as(pictures)


def shift(pictures: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """Each picture moved; what leaves it is lost, and what is left behind is 0.

    Args:
        pictures: ``[..., H, W]`` of any dtype.
        dx: int64, broadcast to ``[...]``: pixels to the right, or to the left where negative.
        dy: int64, broadcast to ``[...]``: pixels down, or up where negative.

    Returns:
        ``[..., H, W]`` of the same dtype.
    """
    height, width = pictures.shape[-2:]
    # [..., H, 1] and [..., 1, W]: from where each row and each column of the result is taken.
    y = (torch.arange(height, device=pictures.device) - dy[..., None])[..., :, None]
    x = (torch.arange(width, device=pictures.device) - dx[..., None])[..., None, :]
    source = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    flat = pictures.flatten(-2)
    moved = flat.gather(-1, source.flatten(-2).expand_as(flat)).view_as(pictures)
    return moved * ((y >= 0) & (y < height) & (x >= 0) & (x < width))
