"""A family of small convolutional networks of equal size, to search for a better one."""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise

import torch
from torch import Tensor, nn

from metadraw.errors import InputError, check_switch, check_whole, is_whole
from metadraw.models.conv4 import NORMS

_KERNELS = (1, 3, 5, 7)


class ConvNet(nn.Module):
    """Blocks of [convolution, norm, ReLU], some with a 2x2 max pool; then the mean over space.

    All blocks have the same width: the largest with which the network has at most as many
    parameters as it may have. Networks that differ in depth, kernel, norm or skips are thus
    compared at equal size (Kim et al. 2018, "Auto-Meta", search under such a limit). Four blocks
    with kernel 3 and four poolings are `Conv4` for images of 28 pixels.

    Args:
        parameters: the maximum number of parameters, without a head.
        depth: blocks.
        kernel: height and width of the convolutions in pixels: 1, 3, 5 or 7.
        norm: see `Conv4`.
        skip: add its input to the output of each block but the first, before pooling.
        poolings: how many blocks are followed by a pool, evenly spread, the last among them.
        image_channels: channels of an image.
        image_size: height and width of an image in pixels.

    Raises:
        InputError: an impossible value, or a limit that no width satisfies.

    Shape:
        ``[B, image_channels, image_size, image_size]`` float -> ``[B, width]``
        features.
    """

    def __init__(
        self,
        *,
        parameters: int,
        depth: int = 4,
        kernel: int = 3,
        norm: str = "batch",
        skip: bool = False,
        poolings: int = 4,
        image_channels: int = 1,
        image_size: int = 28,
    ) -> None:
        super().__init__()
        check_whole("model.parameters", parameters)
        check_whole("model.depth", depth)
        check_whole("model.image_size", image_size)
        check_whole("model.image_channels", image_channels)
        if not is_whole(kernel, 1) or kernel not in _KERNELS:
            raise InputError(
                f"model.kernel={kernel}: must be one of {', '.join(map(str, _KERNELS))}"
            )
        if norm not in NORMS:
            raise InputError(f"model.norm={norm}: must be one of {', '.join(NORMS)}")
        check_switch("model.skip", skip)
        if not is_whole(poolings, 0) or poolings > depth or image_size < 2**poolings:
            raise InputError(
                f"model.poolings={poolings}: must be a whole number in 0..model.depth={depth}, and "
                f"leave something of images of {image_size} pixels"
            )

        def blocks(width: int) -> nn.ModuleList:
            return nn.ModuleList(
                nn.Sequential(
                    nn.Conv2d(before, width, kernel, padding=kernel // 2),
                    NORMS[norm](width),
                    nn.ReLU(),
                )
                for before in [image_channels] + [width] * (depth - 1)
            )

        def size(width: int) -> int:
            with torch.device("meta"):  # without memory or random numbers
                return sum(p.numel() for p in blocks(width).parameters())

        width = bisect_right(range(1, parameters + 1), parameters, key=size)
        if width < 1:
            raise InputError(
                f"model.parameters={parameters}: must be at least {size(1)} with "
                f"model.depth={depth} and model.kernel={kernel}"
            )
        self.blocks, self.skip = blocks(width), skip
        done = [(i + 1) * poolings // depth for i in range(-1, depth)]
        self.pools = [after > before for before, after in pairwise(done)]

    def forward(self, x: Tensor) -> Tensor:
        """Features ``[B, width]`` of images ``[B, C, H, W]``."""
        for number, (block, pool) in enumerate(zip(self.blocks, self.pools, strict=True)):
            y = block(x)
            x = x + y if self.skip and number else y
            if pool:
                x = nn.functional.max_pool2d(x, 2)
        return x.mean(dim=(2, 3))
