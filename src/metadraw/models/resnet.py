"""ResNet-12, the residual network of few-shot learning."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from metadraw.errors import InputError, check_part, check_whole, check_wholes, is_whole
from metadraw.models.batch_norm import TaskBatchNorm2d
from metadraw.models.drop_block import DropBlock2d


class Dropout(nn.Dropout):
    """Dropout that draws the same random numbers for any layout of memory.

    It draws them in the order of memory, which within ``torch.func`` may be another one: recomputed
    steps would drop other values.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The input with zeros in training; unchanged in evaluation."""
        return super().forward(x.contiguous()) if self.training and self.p else x


class Block(nn.Module):
    """Three convolutions with a shortcut around them, then max pooling, if any, and dropout."""

    def __init__(self, before: int, after: int, pool: bool, dropout: nn.Module) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for one, other in pairwise([before, after, after, after]):
            layers += [nn.Conv2d(one, other, 3, padding=1, bias=False), TaskBatchNorm2d(other)]
            layers += [nn.LeakyReLU(0.1)]
        self.chain = nn.Sequential(*layers[:-1])  # the last activation comes after the sum
        self.shortcut = nn.Sequential(
            nn.Conv2d(before, after, 1, bias=False), TaskBatchNorm2d(after)
        )
        pooling = nn.MaxPool2d(2) if pool else nn.Identity()
        self.end = nn.Sequential(nn.LeakyReLU(0.1), pooling, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, before, H, W]`` -> ``[B, after, H // 2, W // 2]``, or with H and W unchanged."""
        return self.end(self.chain(x) + self.shortcut(x))


class ResNet12(nn.Sequential):
    """Four residual blocks of three 3x3 convolutions, then the mean over all places.

    He et al. 2016 ("Deep Residual Learning for Image Recognition"), with the blocks of Oreshkin et
    al. 2018 ("TADAM", section 4.2) and Lee et al. 2019 ("Meta-Learning with Differentiable Convex
    Optimization", section 4.1).

    Args:
        widths: channels of each block.
        poolings: how many blocks end in max pooling, the first ones; all if `None`.
        image_channels: channels of an image.
        image_size: height and width of an image in pixels, at least 2 to the number of poolings.
        dropout: the share of values that each block drops in training.
        drop_block: the last two blocks drop squares of this height and width (`DropBlock2d`), as
            MetaOptNet has it; 0: single values, as the others.

    Raises:
        InputError: a width below 1, sizes that leave nothing of an image, an impossible share, or
            squares of a negative size.

    Shape:
        ``[B, image_channels, image_size, image_size]`` float -> ``[B, widths[-1]]`` features.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int],
        poolings: int | None = None,
        image_channels: int = 1,
        image_size: int = 28,
        dropout: float = 0.0,
        drop_block: int = 0,
    ) -> None:
        check_wholes("model.widths", widths)
        check_whole("model.image_channels", image_channels)
        if poolings is not None and not (is_whole(poolings, 0) and poolings <= len(widths)):
            raise InputError(
                f"model.poolings={poolings}: must be null for all, or a whole number in "
                f"0..{len(widths)}, the number of blocks"
            )
        pools = len(widths) if poolings is None else poolings
        if check_whole("model.image_size", image_size) < 2**pools:
            raise InputError(
                f"model.image_size={image_size}: {pools} poolings need at least {2**pools} pixels"
            )
        check_part("model.dropout", dropout)
        if not is_whole(drop_block, 0):
            raise InputError(
                f"model.drop_block={drop_block}: must be a whole number, 0 for plain dropout"
            )
        drops: list[nn.Module] = [Dropout(dropout) for _ in widths]
        if drop_block:
            drops[-2:] = [DropBlock2d(dropout, drop_block) for _ in drops[-2:]]
        channels = pairwise([image_channels, *widths])
        super().__init__(
            *(
                Block(*pair, number < pools, drop)
                for number, (pair, drop) in enumerate(zip(channels, drops, strict=True))
            )
        )
        # In which convolutions and batch norm are a fifth faster, on CPU and GPU.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """The mean over all places of the last block's output."""
        output: Tensor = super().forward(x)
        # AdaptiveAvgPool2d has no rule for vmap in this memory layout.
        return output.mean(dim=(2, 3))
