"""Rotated, mirrored and shifted drawings: integer operations, bit-identical on every device."""

from __future__ import annotations

import torch
from torch import Tensor

#: How many orientations of a meta-training class count as classes, by ``data.new_classes``.
ORIENTATIONS = {"none": 1, "rotations": 4, "rotations_mirrors": 8}


def orient(pictures: Tensor, orientation: Tensor) -> Tensor:
    """Each picture in one of eight orientations: mirrored left-right or not, then turned.

    Args:
        pictures: ``[..., H, W]`` of any dtype; H = W if any is turned by 90 or 270 degrees.
        orientation: int64, broadcast to ``[...]``: r + 4m first mirrors if m is 1, then turns
            counterclockwise by r quarters, 0 to 3.

    Returns:
        ``[..., H, W]`` of the same dtype.
    """
    height, width = pictures.shape[-2:]
    pixels = torch.arange(height * width, device=pictures.device).view(height, width)
    # [8, H*W]: the source of each pixel of the result.
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
    """Each picture shifted; pixels that leave it are lost, and the gap is 0.

    Args:
        pictures: ``[..., H, W]`` of any dtype.
        dx: int64, broadcast to ``[...]``: pixels to the right, or to the left where negative.
        dy: int64, broadcast to ``[...]``: pixels down, or up where negative.

    Returns:
        ``[..., H, W]`` of the same dtype.
    """
    height, width = pictures.shape[-2:]
    # [..., H, 1] and [..., 1, W]: the source of each row and each column of the result.
    y = (torch.arange(height, device=pictures.device) - dy[..., None])[..., :, None]
    x = (torch.arange(width, device=pictures.device) - dx[..., None])[..., None, :]
    source = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    flat = pictures.flatten(-2)
    moved = flat.gather(-1, source.flatten(-2).expand_as(flat)).view_as(pictures)
    return moved * ((y >= 0) & (y < height) & (x >= 0) & (x < width))
