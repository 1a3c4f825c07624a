"""Rotated, mirrored, shifted, zoomed and sheared drawings.

What moves whole pixels is integer arithmetic, bit-identical on every device.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
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


class Affine(NamedTuple):
    """Random turns, zooms and slants, by bilinear interpolation; what is left behind is 0."""

    rotation: float  # degrees at most, in either direction
    zoom: float  # share of the size at most, larger or smaller
    shear: float  # degrees at most, in either direction

    def __call__(self, pictures: Tensor, angle: Tensor, size: Tensor, slant: Tensor) -> Tensor:
        """Each picture by its own three numbers in 0..1, of which 0.5 changes nothing.

        Args:
            pictures: ``[..., channels, H, W]`` float.
            angle: ``[...]``: 0 turns by ``rotation`` clockwise, 1 counterclockwise.
            size: ``[...]``: 0 makes smaller, 1 larger.
            slant: ``[...]``: 0 slants to the left, 1 to the right.

        Returns:
            The same shape and dtype.
        """
        turn = (2 * angle - 1) * math.radians(self.rotation)
        scale = (1 + self.zoom) ** (2 * size - 1)
        tangent = ((2 * slant - 1) * math.radians(self.shear)).tan()
        cos, sin = turn.cos() / scale, turn.sin() / scale
        # From where each pixel of the result is taken, in coordinates from -1 to 1.
        rows = [cos, -sin + tangent * cos, sin, cos + tangent * sin]
        linear = torch.stack(rows, dim=-1).unflatten(-1, (2, 2)).flatten(0, -3)
        matrices = F.pad(linear, (0, 1)).to(pictures.dtype)  # [B, 2, 3]
        flat = pictures.flatten(0, -4)
        grid = F.affine_grid(matrices, list(flat.shape), align_corners=False)
        return F.grid_sample(flat, grid, align_corners=False).view_as(pictures)
