"""Communication between the ranks of a run."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from torch import Tensor


def mean_over_ranks(means: dict[str, Tensor], tasks: int, ranks: int) -> dict[str, Tensor]:
    """Means over all ranks' tasks, from this rank's: ``torch.func`` bypasses DDP's averaging.

    Ranks may have different numbers of tasks, so sums are reduced and divided once.

    Args:
        means: over this rank's tasks, by name.
        tasks: the number of this rank's tasks.
        ranks: the number of ranks.
    """
    if ranks == 1:
        return means
    flat = torch.cat([mean.flatten() for mean in means.values()])
    total = torch.cat([flat * tasks, flat.new_tensor([tasks])])
    torch.distributed.all_reduce(total)
    parts = (total[:-1] / total[-1]).split([mean.numel() for mean in means.values()])
    return {
        name: part.view_as(mean).to(mean.dtype)
        for (name, mean), part in zip(means.items(), parts, strict=True)
    }


def rows_of_ranks(rows: Tensor, ranks: int) -> Tensor:
    """The rows of all ranks, ``[rows, columns]`` on the CPU, from those of this rank."""
    if ranks == 1:
        return rows
    parts: list[Any] = [None] * ranks
    torch.distributed.all_gather_object(parts, rows)
    return torch.cat(parts)
