"""Drawings on disk: a folder with ``drawings.npy`` and ``meta.json``, complete or absent.

``meta.json`` describes the array fully (shape, classes, provenance with its SHA-256), so a stored
array is sound exactly if what it says equals what is found.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from metadraw.errors import InputError

VERSION = 1
Provenance = dict[str, str | int]
_log = logging.getLogger(__name__)


class DamagedError(OSError):
    """Something is stored, but not what its folder should hold; one line says what is off."""


def provenance(
    images: Sequence[np.ndarray] | np.ndarray, origin: Mapping[str, str | int]
) -> Provenance:
    """Where arrays come from, with the SHA-256 of their bytes in C order, one after the other."""
    digest = hashlib.sha256()
    for array in images:
        digest.update(np.ascontiguousarray(array).data)
    return {**origin, "sha256": digest.hexdigest()}


def read(
    folder: Path, classes: Sequence[str], shape: Sequence[int], origin: Mapping[str, str | int]
) -> tuple[np.ndarray, Provenance] | None:
    """A stored array and its provenance, or None if there is no such folder.

    Args:
        folder: of this one array.
        classes: C names.
        shape: of the array.
        origin: where the drawings should come from.

    Returns:
        ``uint8 [*shape]`` with its provenance, or None.

    Raises:
        DamagedError: the folder holds anything else.
    """
    if not folder.is_dir():
        return None
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        stored = np.load(folder / "drawings.npy", mmap_mode="r", allow_pickle=False)
        if stored.dtype != np.uint8 or stored.shape != tuple(shape):
            raise ValueError(f"drawings.npy holds {stored.dtype} {stored.shape}")
        images = np.array(stored)
        right = _describe(images, classes, origin)
        if meta != right:
            off = [key for key in right if meta.get(key) != right[key]]
            raise ValueError(f"meta.json does not fit drawings.npy in {', '.join(off)}")
    except Exception as error:  # damaged files raise nearly anything
        raise DamagedError(" ".join(str(error).split())) from error
    return images, right["provenance"]


def write(
    folder: Path, images: np.ndarray, classes: Sequence[str], origin: Mapping[str, str | int]
) -> tuple[np.ndarray, Provenance]:
    """Store an array where none is; call it with the lock held.

    Args:
        folder: of this one array.
        images: uint8.
        classes: C names.
        origin: where the drawings come from.

    Returns:
        What `read` gives for it.

    Raises:
        OSError: it could not be written, or reads back otherwise; nothing is left.
    """
    unfinished = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)  # left by a process that was killed
    try:
        unfinished.mkdir(parents=True)
        with (unfinished / "drawings.npy").open("wb") as array:
            np.save(array, images)
            os.fsync(array.fileno())
        with (unfinished / "meta.json").open("w", encoding="utf-8") as meta:
            json.dump(_describe(images, classes, origin), meta, indent=1)
            meta.flush()
            os.fsync(meta.fileno())
        stored = read(unfinished, classes, images.shape, origin)
        assert stored is not None
        os.rename(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return stored


def read_or_make(
    folder: Path,
    classes: Sequence[str],
    shape: Sequence[int],
    origin: Mapping[str, str | int],
    make: Callable[[], np.ndarray],
) -> tuple[np.ndarray, Provenance]:
    """A stored array and its provenance, made and stored where there is none that is whole.

    Args:
        folder: of this one array.
        classes: C names.
        shape: of the array.
        origin: where the drawings come from.
        make: gives ``uint8 [*shape]``; called once for any number of processes.

    Returns:
        What `read` gives.

    Raises:
        OSError: it could not be written.
    """
    try:
        # First without the lock: a finished cache may lie where nothing can be written.
        if stored := read(folder, classes, shape, origin):
            return stored
    except DamagedError:
        pass  # another process may be about to mend it
    with lock(folder.with_name(f"{folder.name}.lock")):
        try:
            if stored := read(folder, classes, shape, origin):
                return stored
        except DamagedError as error:
            _log.warning("drawings: removing the damaged cache %s (%s)", folder, error)
            shutil.rmtree(folder)
        return write(folder, make(), classes, origin)


@contextmanager
def told(root: Path) -> Iterator[None]:
    """Turn what goes wrong with the cache into one line.

    Args:
        root: the folder of all caches, ``data.cache_dir``.

    Raises:
        InputError: for an OSError.
    """
    try:
        yield
    except OSError as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"data.cache_dir={root}: cannot keep the drawings there: {reason}; free some space or "
            "give a folder that can be written"
        ) from error


@contextmanager
def lock(file: Path) -> Iterator[None]:
    """Hold a lock between processes; a log line says so if another one holds it.

    Args:
        file: the lock file, made if it is not there.

    Raises:
        OSError: it cannot be made.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    held = filelock.FileLock(file)
    try:
        held.acquire(timeout=0)
    except filelock.Timeout:
        _log.info("drawings: waiting for another process that loads them (%s)", file)
        held.acquire()
    try:
        yield
    finally:
        held.release()


def _describe(
    images: np.ndarray, classes: Sequence[str], origin: Mapping[str, str | int]
) -> dict[str, Any]:
    return {
        "version": VERSION,
        "shape": list(images.shape),
        "dtype": str(images.dtype),
        "classes": list(classes),
        "provenance": provenance(images, origin),
    }
