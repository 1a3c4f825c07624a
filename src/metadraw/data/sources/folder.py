"""Drawings from ``<class>.npy`` files that the user has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from metadraw.data.sources import PIXELS, SIDE, choose_rows
from metadraw.errors import InputError


def load(folder: Path, classes: Sequence[str], samples: int, seed: int) -> np.ndarray:
    """Drawings from a folder in the format of the data set's own ``numpy_bitmap`` folder.

    Args:
        folder: holds one ``<class>.npy`` for each class, ``uint8 [n, 784]``, any n >= samples.
        classes: C names.
        samples: S, drawings per class.
        seed: which drawings.

    Returns:
        ``uint8 [C, S, 28, 28]``.

    Raises:
        InputError: no such folder, or a file that is missing, damaged or in another format.
    """
    images = np.empty((len(classes), samples, PIXELS), np.uint8)
    for index, bitmaps in enumerate(_opened(folder, classes, samples)):
        images[index] = bitmaps[choose_rows(len(bitmaps), samples, seed, index)]
    return images.reshape(len(classes), samples, SIDE, SIDE)


def load_all(folder: Path, classes: Sequence[str]) -> list[np.ndarray]:
    """Every drawing in such a folder, memory-mapped: nothing is read before it is used.

    Args:
        folder: see `load`.
        classes: C names.

    Returns:
        C arrays, ``uint8 [n, 28, 28]`` each, in the order of the files' rows.

    Raises:
        InputError: see `load`.
    """
    return [bitmaps.reshape(-1, SIDE, SIDE) for bitmaps in _opened(folder, classes, 1)]


def _opened(folder: Path, classes: Sequence[str], samples: int) -> Iterator[np.ndarray]:
    if not folder.is_dir():
        raise InputError(
            f"data.path={folder} is not a folder; give one with {len(classes)} <class>.npy files"
        )
    missing = [name for name in classes if not (folder / f"{name}.npy").is_file()]
    if missing:
        raise InputError(
            f"data.path={folder} lacks {len(missing)} of {len(classes)} files: "
            f"{', '.join(f'{name}.npy' for name in missing[:3])}{' ...' * (len(missing) > 3)}"
        )
    for name in classes:
        yield _open(folder / f"{name}.npy", samples)


def _open(file: Path, samples: int) -> np.ndarray:
    try:
        bitmaps = np.load(file, mmap_mode="r", allow_pickle=False)
        form = f"{bitmaps.dtype} {bitmaps.shape}"
    except Exception as error:  # a damaged header raises nearly anything
        reason = " ".join(str(error).split())
        raise InputError(
            f"{file} is not a complete .npy file ({reason}); expected uint8 (n, {PIXELS})"
        ) from error
    if bitmaps.dtype != np.uint8 or bitmaps.ndim != 2 or bitmaps.shape[1] != PIXELS:
        raise InputError(f"{file} holds {form}; expected uint8 (n, {PIXELS})")
    if len(bitmaps) < samples:
        raise InputError(
            f"{file} holds {len(bitmaps)} drawings, fewer than data.samples_per_class={samples}"
        )
    return bitmaps
