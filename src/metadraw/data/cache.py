"""Drawings on disk: a folder with ``drawings.npy`` and ``meta.json``, complete or absent.

``meta.json`` describes the array fully (shape, classes, provenance with its SHA-256): a stored
array is valid if and only if it matches. An array above `LARGEST` stays on disk, memory-mapped, and
its SHA-256 is computed once, when it is written.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from metadraw.data.mapped import advise
from metadraw.errors import InputError

VERSION = 1
#: The largest array that is read into memory, in bytes.
LARGEST = 1 << 30
_SAMPLES = 16  # rows per class in the checksum, if there are too many for all of them
Provenance = dict[str, str | int]
_log = logging.getLogger(__name__)


class DamagedError(OSError):
    """A folder does not hold the array that it should; one line says how it differs."""


def is_mapped(images: Sequence[np.ndarray] | np.ndarray) -> bool:
    """Whether any of these arrays is memory-mapped."""
    return any(isinstance(array, np.memmap) for array in images)


def provenance(
    images: Sequence[np.ndarray] | np.ndarray, origin: Mapping[str, str | int]
) -> Provenance:
    """The origin of arrays, with the SHA-256 of their bytes in C order, one after the other.

    Memory-mapped arrays may take minutes to read: for them, ``sha256_of_samples`` covers each
    array's shape and 16 of its rows, evenly spaced.
    """
    digest, mapped = hashlib.sha256(), is_mapped(images)
    for array in images:
        if mapped:
            digest.update(str(array.shape).encode())
            advise(array, "MADV_RANDOM")  # else 128 kB are read for each row
            array = array[np.linspace(0, len(array) - 1, min(_SAMPLES, len(array)), dtype=int)]
        digest.update(np.ascontiguousarray(array).data)
    return {**origin, "sha256_of_samples" if mapped else "sha256": digest.hexdigest()}


def checksum(provenance: Mapping[str, Any]) -> str:
    """The SHA-256 in a provenance, of all bytes or of samples; empty if there is none."""
    return str(provenance.get("sha256") or provenance.get("sha256_of_samples") or "")


def read(
    folder: Path, classes: Sequence[str], shape: Sequence[int], origin: Mapping[str, str | int]
) -> tuple[np.ndarray, Provenance] | None:
    """A stored array and its provenance, or `None` if there is no such folder.

    Args:
        folder: of this one array.
        classes: C names.
        shape: of the array.
        origin: the expected origin of the drawings.

    Returns:
        ``uint8 [*shape]`` with its provenance, or `None`; memory-mapped if it is above `LARGEST`.

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
        mapped = stored.nbytes > LARGEST
        images = stored if mapped else np.array(stored)
        known = meta["provenance"]["sha256"] if mapped else provenance(images, {})["sha256"]
        expected = _describe(images.shape, classes, {**origin, "sha256": known})
        if meta != expected:
            wrong = [key for key in expected if meta.get(key) != expected[key]]
            raise ValueError(f"meta.json does not match drawings.npy in {', '.join(wrong)}")
    except Exception as error:  # damaged files raise nearly anything
        raise DamagedError(" ".join(str(error).split())) from error
    return images, expected["provenance"]


def write(
    folder: Path,
    images: Iterable[np.ndarray],
    shape: Sequence[int],
    classes: Sequence[str],
    origin: Mapping[str, str | int],
) -> tuple[np.ndarray, Provenance]:
    """Store a new array; the caller must hold the lock.

    Args:
        folder: of this one array.
        images: its uint8 entries one by one: they need not be in memory together.
        shape: of the array.
        classes: C names.
        origin: where the drawings come from.

    Returns:
        What `read` returns for it.

    Raises:
        OSError: it could not be written, or reads back differently; nothing is left behind.
    """
    unfinished = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)  # left by a process that was killed
    try:
        unfinished.mkdir(parents=True)
        digest = hashlib.sha256()
        with (unfinished / "drawings.npy").open("wb") as array:
            header = {"descr": "|u1", "fortran_order": False, "shape": tuple(shape)}
            np.lib.format.write_array_header_1_0(array, header)
            for image in images:
                digest.update(np.ascontiguousarray(image).data)
                array.write(np.ascontiguousarray(image).data)
            array.flush()
            os.fsync(array.fileno())
        with (unfinished / "meta.json").open("w", encoding="utf-8") as meta:
            described = _describe(shape, classes, {**origin, "sha256": digest.hexdigest()})
            json.dump(described, meta, indent=1)
            meta.flush()
            os.fsync(meta.fileno())
        stored = read(unfinished, classes, shape, origin)
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
    make: Callable[[], Iterable[np.ndarray]],
) -> tuple[np.ndarray, Provenance]:
    """A stored array and its provenance; made and stored first if missing or damaged.

    Args:
        folder: of this one array.
        classes: C names.
        shape: of the array.
        origin: where the drawings come from.
        make: returns the entries of ``uint8 [*shape]``; called once for any number of processes.

    Returns:
        What `read` returns.

    Raises:
        OSError: it could not be written.
    """
    try:
        # First without the lock: a finished cache may be read-only.
        if stored := read(folder, classes, shape, origin):
            return stored
    except DamagedError:
        pass  # another process may be about to repair it
    with lock(folder.with_name(f"{folder.name}.lock")):
        try:
            if stored := read(folder, classes, shape, origin):
                return stored
        except DamagedError as error:
            _log.warning("drawings: removing the damaged cache %s (%s)", folder, error)
            shutil.rmtree(folder)
        return write(folder, make(), shape, classes, origin)


@contextmanager
def told(root: Path) -> Iterator[None]:
    """Report errors of the cache in one line.

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
            "choose a writable folder"
        ) from error


@contextmanager
def lock(file: Path) -> Iterator[None]:
    """Hold a lock between processes; a log line says if it has to wait.

    Args:
        file: the lock file, created if missing.

    Raises:
        OSError: it cannot be created.
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
    shape: Sequence[int], classes: Sequence[str], provenance: Provenance
) -> dict[str, Any]:
    return {
        "version": VERSION,
        "shape": list(shape),
        "dtype": "uint8",
        "classes": list(classes),
        "provenance": provenance,
    }
