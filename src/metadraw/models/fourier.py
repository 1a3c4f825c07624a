"""A network of coordinates, such as the places of pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metadraw.errors import check_positive, check_whole
from metadraw.models.mlp import MLP


class Fourier(nn.Sequential):
    """Sines and cosines of coordinates at random frequencies, then an `MLP`.

    Tancik et al. 2020 ("Fourier features let networks learn high frequency functions in low
    dimensional domains"): without them, such a network learns only smooth functions.

    Args:
        coordinates: how many numbers an input has.
        frequencies: how many frequencies, drawn once with the run's seed and never learned.
        scale: their standard deviation in cycles per unit, above 0.
        hidden: see `MLP`.

    Raises:
        InputError: an impossible number.

    Shape:
        ``[B, coordinates]`` float -> ``[B, hidden[-1]]``.
    """

    def __init__(
        self, *, coordinates: int, frequencies: int, scale: float, hidden: Sequence[int]
    ) -> None:
        check_whole("model.coordinates", coordinates)
        check_whole("model.frequencies", frequencies)
        check_positive("model.scale", scale)
        super().__init__(Waves(scale * torch.randn(coordinates, frequencies)), MLP(hidden=hidden))


class Waves(nn.Module):
    """Inputs ``[B, coordinates]`` -> their cosines and sines ``[B, 2 * frequencies]``.

    Args:
        frequencies: ``[coordinates, frequencies]``, in cycles per unit.
    """

    frequencies: Tensor

    def __init__(self, frequencies: Tensor) -> None:
        super().__init__()
        self.register_buffer("frequencies", frequencies)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        phase = 2 * math.pi * x @ self.frequencies
        return torch.cat([phase.cos(), phase.sin()], dim=-1)
