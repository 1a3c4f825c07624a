"""The fully connected network of the MAML paper's regression."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from metadraw.errors import check_wholes


class MLP(nn.Sequential):
    """Linear layers, each followed by ReLU; the last output is the features.

    Finn et al. 2017 ("Model-Agnostic Meta-Learning", section 5.1) use two layers of 40 units.

    Args:
        hidden: units of each layer.

    Raises:
        InputError: no layer, or one without units.

    Shape:
        ``[B, ...]`` float, of any size, -> ``[B, hidden[-1]]``.
    """

    def __init__(self, *, hidden: Sequence[int]) -> None:
        check_wholes("model.hidden", hidden)
        layers: list[nn.Module] = [nn.Flatten(), nn.LazyLinear(hidden[0]), nn.ReLU()]
        for before, after in pairwise(hidden):
            layers += [nn.Linear(before, after), nn.ReLU()]
        super().__init__(*layers)
