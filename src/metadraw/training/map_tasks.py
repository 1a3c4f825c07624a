"""How what an algorithm does with one task is done with each task of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch.func import vmap
from torch.utils._pytree import tree_map

from metadraw.data.episode import Episode

Result = TypeVar("Result")

#: ``vmap``: all tasks of a chunk at once, as one computation. ``loop``: one after the other, which
#: is slower and works for every network that `torch.autograd` can differentiate.
CHOICES = ("vmap", "loop")


def map_tasks(
    function: Callable[[Episode], Result], batch: Episode, how: str, chunk: int | None
) -> Result:
    """The results of a function for each of T tasks.

    Args:
        function: of one task: tensors in any structure of tuples and dicts.
        batch: of T tasks.
        how: one of `CHOICES`.
        chunk: with ``vmap``, tasks at once; all of them if `None`.

    Returns:
        The same structure, each tensor with a first dimension of size T.
    """
    if how == "vmap":
        return vmap(function, randomness="different", chunk_size=chunk)(batch)
    # A task's gradient is taken within the function: no graph leads out of it.
    with torch.no_grad():
        results = [function(batch.task(position)) for position in range(len(batch.number))]
    return tree_map(lambda *values: torch.stack(values), *results)
