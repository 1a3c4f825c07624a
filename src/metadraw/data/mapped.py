"""Drawings that stay on disk: memory-mapped arrays, read only where needed."""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class MappedImages:
    """The images of several arrays, one array after the other, indexed like one tensor.

    Args:
        arrays: ``uint8 [S, ...]`` each, of any lengths.
        image_shape: channels, height and width of an image, whatever the shape of the arrays.
        device: of the images and of their row numbers.
    """

    def __init__(
        self,
        arrays: Sequence[np.ndarray] | np.ndarray,
        image_shape: tuple[int, int, int],
        device: torch.device | str = "cpu",
    ) -> None:
        self.arrays, self.device = arrays, torch.device(device)
        for array in arrays:
            advise(array, "MADV_RANDOM")  # else 128 kB are read for each image
        self._ends = np.cumsum([len(array) for array in arrays])
        self.shape = torch.Size((int(self._ends[-1]), *image_shape))

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Images ``uint8 [..., channels, H, W]`` of row numbers ``[...]``, int64."""
        wanted = rows.flatten().cpu().numpy()
        order = np.argsort(wanted)  # one class after the other, each from its start to its end
        arrays = np.searchsorted(self._ends, wanted[order], side="right")
        images = np.empty((len(wanted), *self.shape[1:]), np.uint8)
        for number in np.unique(arrays):
            places = order[arrays == number]
            array = self.arrays[number]
            first = self._ends[number] - len(array)
            images[places] = array[wanted[places] - first].reshape(-1, *self.shape[1:])
            if not array.flags.writeable:  # changes might be lost
                advise(array, "MADV_DONTNEED")  # else everything read so far counts as in use
        return torch.from_numpy(images).view(*rows.shape, *self.shape[1:]).to(self.device)

    def to(self, device: torch.device | str) -> MappedImages | Tensor:
        """The images for a device: a tensor if they fit into half of a GPU's free memory."""
        device, free = torch.device(device), 0
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
        if self.shape.numel() > free // 2:
            return MappedImages(self.arrays, (*self.shape[1:],), device)
        images = torch.empty(self.shape, dtype=torch.uint8, device=device)
        for array, end in zip(self.arrays, self._ends, strict=True):
            part = torch.from_numpy(np.array(array))  # in memory, one class at a time
            images[end - len(array) : end] = part.view(-1, *self.shape[1:]).to(device)
        return images


def advise(array: np.ndarray, how: str) -> None:
    """Tell the operating system how a file is read, if it takes such advice.

    Args:
        array: memory-mapped; any other is ignored.
        how: the name of one of ``mmap``'s constants, such as ``MADV_RANDOM``.
    """
    mapping = getattr(array, "_mmap", None)
    if mapping is not None and hasattr(mmap, how):
        mapping.madvise(getattr(mmap, how))
