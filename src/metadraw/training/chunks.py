"""How many tasks are computed at once: as many as fit into memory, measured on one task."""

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

#: Memory for the tensors of a chunk. With the rest of the process and its libraries, that makes
#: about 2 GB.
BYTES = 5 << 28
#: The same on a GPU, where few large operations are faster: a fraction of its total memory, so that
#: the same GPU always uses the same chunks.
_PART_OF_GPU = 1 / 8


def bytes_of_a_task(function: Callable[[Episode], Any], batch: Episode) -> int:
    """The peak memory of the tensors that a function of one task creates.

    Computes the first task under ``torch.vmap`` and counts each tensor from its creation until it
    is freed. Random states do not change.

    Args:
        function: a function of one task.
        batch: at least one task, on any device.
    """
    first = tree_map(lambda values: values[:1].clone(), batch)
    with isolate_rng(), _Living() as living:
        vmap(function, randomness="different")(first)
    return living.most


def tasks_at_once(tasks: int, bytes_of_each: int, device: torch.device | str = "cpu") -> int:
    """The size of the chunks that tasks are divided into, all of about the same size.

    Args:
        tasks: at least 1.
        bytes_of_each: see `bytes_of_a_task`.
        device: the one that computes them.
    """
    room, device = BYTES, torch.device(device)
    if device.type == "cuda":
        room = int(torch.cuda.get_device_properties(device).total_memory * _PART_OF_GPU)
    fitting = max(1, room // max(1, bytes_of_each))
    return ceil(tasks / ceil(tasks / fitting))


class _Living(TorchDispatchMode):
    """Counts the bytes of all live tensors that were created in this context."""

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
        if (key := storage._cdata) not in self._seen:  # not just another view
            self._seen.add(key)
            self._now += (size := storage.nbytes())
            weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._now -= size
