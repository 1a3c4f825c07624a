"""The four-block convolutional network of few-shot learning, as in Cloudera's report FF15."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from metadraw.errors import InputError, check_switch, check_whole
from metadraw.models.batch_norm import TaskBatchNorm2d
from metadraw.models.fused.conv_blocks import conv_blocks

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": TaskBatchNorm2d,
    "layer": lambda channels: nn.GroupNorm(1, channels),
    "none": lambda channels: nn.Identity(),
}


class Conv4(nn.Sequential):
    """4 x [3x3 convolution, norm, ReLU, 2x2 max pool].

    Vinyals et al. 2016 ("Matching Networks for One Shot Learning", section 4.1.1), with the
    report's 20 channels: 28 x 28 images shrink to 20 features.

    Args:
        image_channels: channels of an image.
        image_size: height and width of an image in pixels, at least 16.
        hidden_channels: channels of every block.
        norm: ``batch`` (always the statistics of the current batch), ``layer`` (those of each
            example) or ``none``.
        fused: compute blocks with batch norm by faster functions with hand-written first and
            second derivatives.

    Raises:
        InputError: an unknown norm, sizes that leave nothing of an image, or ``fused`` that is
            neither true nor false.

    Shape:
        ``[B, image_channels, image_size, image_size]`` float -> ``[B, F]`` features.
    """

    def __init__(
        self,
        *,
        image_channels: int = 1,
        image_size: int = 28,
        hidden_channels: int = 20,
        norm: str = "batch",
        fused: bool = True,
    ) -> None:
        if norm not in NORMS:
            raise InputError(f"model.norm={norm}: must be one of {', '.join(NORMS)}")
        check_whole("model.hidden_channels", hidden_channels)
        check_whole("model.image_channels", image_channels)
        if check_whole("model.image_size", image_size) < 16:
            raise InputError(
                f"model.image_size={image_size}: four poolings need at least 16 pixels"
            )
        channels = [image_channels] + [hidden_channels] * 4
        blocks = [
            nn.Sequential(
                nn.Conv2d(before, after, kernel_size=3, padding=1),
                NORMS[norm](after),
                nn.ReLU(),
                nn.MaxPool2d(2),
            )
            for before, after in pairwise(channels)
        ]
        super().__init__(*blocks, nn.Flatten())
        self.fused = check_switch("model.fused", fused)

    def forward(self, x: Tensor) -> Tensor:
        """Features ``[B, F]`` of images ``[B, C, H, W]``."""
        blocks: list[list[Any]] = [list(block.children()) for block in list(self)[:4]]
        if not self._can_fuse(blocks, x):
            return super().forward(x)
        parameters = [(c.weight, norm.weight, norm.bias) for c, norm, *_ in blocks]
        weights, gammas, betas = zip(*parameters, strict=True)
        # Without the convolutions' biases: batch norm cancels them, so their gradient is zero.
        features = conv_blocks(x, weights, gammas, betas, blocks[0][1].eps)
        return self[4](features)

    def _can_fuse(self, blocks: list[list[Any]], x: Tensor) -> bool:
        norms = [norm for _, norm, *_ in blocks]
        return (
            self.fused
            and all(isinstance(norm, TaskBatchNorm2d) for norm in norms)
            and all(norm.training or norm.running_mean is None for norm in norms)
            # Hooks observe or change the input or output of a single layer.
            and not any(m._forward_hooks or m._forward_pre_hooks for m in self.modules())
            # Mixed precision is left to PyTorch's own layers, which support it.
            and not _autocast(x.device.type)
        )


def _autocast(device: str) -> bool:
    # The second call raises for devices without mixed precision, such as meta.
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
