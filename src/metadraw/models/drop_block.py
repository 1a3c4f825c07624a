"""DropBlock: dropout of whole squares of a feature map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DropBlock2d(nn.Module):
    """In training, set squares of each channel to zero, and scale up what is left.

    Ghiasi et al. 2018 ("DropBlock: A regularization method for convolutional networks", algorithm
    1): values next to each other say much the same, so single ones that are dropped take little
    away. The rate is constant. The paper (section 3) and MetaOptNet let it grow in training, by a
    counter of forward passes, through which one task would change the next.

    Args:
        rate: about the share of values to drop, at least 0, below 1. It is exact for squares that
            do not overlap.
        size: height and width of a square; on a smaller map, the map's.

    Shape:
        ``[B, C, H, W]`` float -> the same.
    """

    def __init__(self, rate: float, size: int) -> None:
        super().__init__()
        self.rate, self.size = rate, size

    def forward(self, x: Tensor) -> Tensor:
        """The map with squares of zeros; unchanged in evaluation."""
        if not self.training or self.rate == 0:
            return x
        height, width = x.shape[-2:]
        size = min(self.size, height, width)
        places = (height - size + 1) * (width - size + 1)
        # Equation 1: the probability that a square begins at a place where it fits into the map.
        gamma = self.rate * height * width / (size**2 * places)
        # Random numbers come in the order of memory, which torch.func may change. Those of bfloat16
        # are too coarse.
        begins = torch.rand_like(
            x[..., : height - size + 1, : width - size + 1],
            dtype=torch.float32,
            memory_format=torch.contiguous_format,
        )
        # A value is dropped if a square begins at most size - 1 above and to the left of it.
        kept = 1 - F.max_pool2d(F.pad((begins < gamma).float(), [size - 1] * 4), size, stride=1)
        return x * (kept * (kept.numel() / kept.sum().clamp(min=1))).to(x.dtype)

    def extra_repr(self) -> str:
        """Rate and size."""
        return f"rate={self.rate}, size={self.size}"
