"""What a task is: an N-way k-shot episode, alone or in a batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Episode(NamedTuple):
    """One task, or a batch of them when every field has a leading dimension ``T``.

    ``N`` ways, ``K`` shots and ``Q`` queries a class; rows are grouped by label, and the
    label of a class is its position in the random order in which the classes were drawn.
    """

    support_x: Tensor  # ([T,] N*K, channels, H, W) float32 in 0..1
    support_y: Tensor  # ([T,] N*K) int64 in 0..N-1
    query_x: Tensor  # ([T,] N*Q, channels, H, W) float32 in 0..1
    query_y: Tensor  # ([T,] N*Q) int64 in 0..N-1
    # ([T,] N) int64: the class behind each label, an index into the data's C classes. Where
    # augmentation makes new classes, id % C is that index and id // C the orientation.
    classes: Tensor
    number: Tensor  # ([T]) int64: which episode of its split this is

    def to(self, target: torch.device | str | torch.dtype) -> Episode:
        """The same episode on another device, or with images of another float dtype."""
        if isinstance(target, torch.dtype):
            return self._replace(
                support_x=self.support_x.to(target), query_x=self.query_x.to(target)
            )
        return Episode(*(field.to(target) for field in self))

    def task(self, position: int) -> Episode:
        """The one task at ``position`` of a batch."""
        return Episode(*(field[position] for field in self))
