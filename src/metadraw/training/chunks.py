"""How many tasks are computed at once: as many as fit into memory, by what one of them takes."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from math import ceil
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.func import vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from metadraw.data.episode import Episode

#: What the tensors of a chunk may take. With what a process needs anyway, and what libraries take
#: for themselves, that makes about 2 GB.
BYTES = 5 << 28
#: The same on a GPU, where few large operations are faster: this part of all of its memory, so that
#: the same GPU always gives the same chunks.
_PART_OF_GPU = 1 / 8


def bytes_of_a_task(function: Callable[[Episode], Any], batch: Episode) -> int:
    """The most that is in memory at one time while a function is computed of one task.

    The first task is computed, as ``torch.vmap`` does it, and every tensor counted from when it is
    made until it is freed. No random state is changed.

    Args:
        function: of one task.
        batch: of at least one task, on any device.
    """
    first = tree_map(lambda values: values[:1].clone(), batch)
    with isolate_rng(), _Living() as living:
        vmap(function, randomness="different")(first)
    return living.most


def tasks_at_once(tasks: int, bytes_of_each: int, device: torch.device | str = "cpu") -> int:
    """Into how large chunks tasks are divided, all of about the same size.

    Args:
        tasks: at least 1.
        bytes_of_each: see `bytes_of_a_task`.
        device: that computes them.
    """
    room, device = BYTES, torch.device(device)
    if device.type == "cuda":
        room = int(torch.cuda.get_device_properties(device).total_memory * _PART_OF_GPU)
    fitting = max(1, room // max(1, bytes_of_each))
    return ceil(tasks / ceil(tasks / fitting))


class _Living(TorchDispatchMode):
    """Counts the bytes of all tensors that are made in this context and still there."""

    def __init__(self) -> None:
        super().__init__()
        self.most = self._now = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        self.most = max(self.most, self._now)
        return output

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if (key := storage._cdata) not in self._seen:  # not one more view
            self._seen.add(key)
            self._now += (size := storage.nbytes())
            weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._now -= size
