"""Maps a function of one task over the tasks of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.func import vmap
from torch.utils._pytree import tree_leaves, tree_map

from metadraw.data.episode import Episode
from metadraw.errors import InputError, is_whole
from metadraw.training.chunks import bytes_of_a_task, tasks_at_once

Result = TypeVar("Result")


class TaskMap:
    """Maps a function of one task over the tasks of a batch.

    Args:
        how: ``vmap``, all tasks of a chunk at once, as one computation; ``loop``, one after the
            other, which is slower and works for every network that `torch.autograd` can
            differentiate.
        tasks_per_chunk: with ``vmap``, tasks at once; `None`, all of them; ``auto``, as many as fit
            into memory, measured on one task of each kind.

    Raises:
        InputError: an invalid value.
    """

    def __init__(self, how: str, tasks_per_chunk: int | str | None) -> None:
        if how not in ("vmap", "loop"):
            raise InputError(f"learner.map_tasks={how}: must be vmap or loop")
        if tasks_per_chunk not in ("auto", None) and not is_whole(tasks_per_chunk, 1):
            raise InputError(
                f"learner.tasks_per_chunk={tasks_per_chunk}: must be a whole number of at least 1, "
                "auto, or null for no limit"
            )
        self.how, self.tasks_per_chunk = how, tasks_per_chunk
        self._bytes: dict[Any, int] = {}  # of a task, by kind and shapes

    def __call__(
        self, function: Callable[[Episode], Result], batch: Episode, kind: object
    ) -> Result:
        """The results of a function for each of T tasks.

        Args:
            function: maps one task to tensors in any structure of tuples and dicts.
            batch: T tasks.
            kind: what the function's memory depends on, besides the shapes of the batch.

        Returns:
            The same structure, each tensor with a first dimension of size T.
        """
        if self.how == "vmap":
            chunk = self.tasks_per_chunk
            chunk = self._fitting(function, batch, kind) if isinstance(chunk, str) else chunk
            return vmap(function, randomness="different", chunk_size=chunk)(batch)
        # A task's gradient is taken within the function: no graph leaves it.
        with torch.no_grad():
            results = [function(batch.task(position)) for position in range(len(batch.number))]
        return tree_map(lambda *values: torch.stack(values), *results)

    def forget(self) -> None:
        """Discard all measurements, because functions may have changed."""
        self._bytes.clear()

    def _fitting(self, function: Callable[[Episode], Any], batch: Episode, kind: object) -> int:
        """How many tasks fit into memory; measured once for all batches of the same kind."""
        key = kind, *(values.shape[1:] for values in tree_leaves(batch))
        if key not in self._bytes:
            self._bytes[key] = bytes_of_a_task(function, batch)
        return tasks_at_once(len(batch.number), self._bytes[key], batch.number.device)
