"""Drawings from the data set's own bitmaps: 345 files of about 100 MB, of which little is read.

Only each file's header and the rows that were chosen are fetched, by HTTP ranges.
Drawings by Google (Quick, Draw! Dataset, CC BY 4.0).
"""

from __future__ import annotations

import asyncio
import io
import os
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import aiohttp
import numpy as np
from fsspec.implementations.http import HTTPFileSystem
from tqdm import tqdm

from metadraw.data.sources import PIXELS, SIDE, choose_rows
from metadraw.errors import InputError

URL = "https://storage.googleapis.com/quickdraw_dataset/full/numpy_bitmap"
RENDERER = "Quick, Draw! numpy_bitmap"
_HEADER = 128  # bytes that hold the .npy header: 80 in old files, 128 in new ones
_CONCURRENT = 48  # ranges at a time
_WAITS = (1.0, 3.0, 9.0)  # seconds before each further try
_TIMEOUT = aiohttp.ClientTimeout(total=60, connect=5, sock_read=20)
_PASSING = (aiohttp.ClientError, asyncio.TimeoutError, OSError)


def load(
    classes: Sequence[str], samples: int, seed: int, base_url: str, partial: Path
) -> np.ndarray:
    """Drawings from ``<base_url>/<class>.npy``, ``uint8 [n, 784]`` each.

    Args:
        classes: C names.
        samples: S, drawings a class.
        seed: which drawings.
        base_url: where the files are.
        partial: folder that keeps finished classes; those found there are not fetched again.

    Returns:
        ``uint8 [C, S, 28, 28]``.

    Raises:
        InputError: not reachable, no support for ranges, a file missing or of another form.
    """
    remote = _Remote()
    urls = [f"{base_url}/{quote(name)}.npy" for name in classes]
    try:  # once and without retries: an offline machine is told at once
        remote.read(urls[0], [0], _HEADER)
    except _PASSING as error:
        raise InputError(f"{urls[0]}: {_reason(error)}") from error
    except InputError as error:
        raise InputError(f"class {classes[0]!r}: {urls[0]}: {error}") from error

    partial.mkdir(parents=True, exist_ok=True)
    images = np.empty((len(classes), samples, PIXELS), np.uint8)
    for index, name in enumerate(tqdm(classes, desc="Quick, Draw!", unit="class")):
        file = partial / f"{name}.npy"
        drawings = _kept(file, samples)
        if drawings is None:
            drawings = _fetch(remote, name, urls[index], samples, seed, index)
            unfinished = file.with_suffix(".tmp")
            with unfinished.open("wb") as stream:
                np.save(stream, drawings)
            os.replace(unfinished, file)
        images[index] = drawings
    return images.reshape(len(classes), samples, SIDE, SIDE)


def _kept(file: Path, samples: int) -> np.ndarray | None:
    """A class from an earlier, broken-off download, if it is there and sound."""
    try:
        drawings = np.load(file, allow_pickle=False)
    except Exception:  # damaged files raise nearly anything
        return None
    sound = drawings.dtype == np.uint8 and drawings.shape == (samples, PIXELS)
    return drawings if sound else None


def _fetch(remote: _Remote, name: str, url: str, samples: int, seed: int, index: int) -> np.ndarray:
    """``uint8 [S, 784]`` of one class, tried again after what may pass."""
    waits = iter(_WAITS)
    while True:
        try:
            [header] = remote.read(url, [0], _HEADER)
            rows, first = _layout(header, remote.size)
            if rows < samples:
                raise InputError(f"{rows} drawings, fewer than data.samples_per_class={samples}")
            chosen = choose_rows(rows, samples, seed, index)
            parts = remote.read(url, [first + PIXELS * int(row) for row in chosen], PIXELS)
            return np.frombuffer(b"".join(parts), np.uint8).reshape(samples, PIXELS)
        except InputError as error:
            raise InputError(f"class {name!r}: {url}: {error}") from error
        except _PASSING as error:
            wait = next(waits, None)
            if wait is None:
                raise InputError(
                    f"class {name!r}: {url}: {_reason(error)}, {len(_WAITS) + 1} times; what "
                    "was fetched is kept, run again to go on"
                ) from error
            time.sleep(wait)


def _layout(header: bytes, size: int) -> tuple[int, int]:
    """How many rows a file of ``size`` bytes has, and where the first one starts."""
    stream = io.BytesIO(header)
    try:
        version = np.lib.format.read_magic(stream)
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    except Exception as error:  # what is no header raises nearly anything
        raise InputError("is not an .npy file") from error
    first = stream.tell()
    if version != (1, 0) or fortran_order or dtype != np.uint8 or shape[1:] != (PIXELS,):
        raise InputError(f"holds {dtype} {shape}; right is uint8 (n, {PIXELS})")
    if size != first + shape[0] * PIXELS:
        raise InputError(f"has {size} bytes; right for {shape} is {first + shape[0] * PIXELS}")
    return shape[0], first


class _Remote:
    """Ranges of remote files, each one exactly as asked for or an error."""

    def __init__(self) -> None:
        self.size = 0  # of the file read last, in bytes
        client = {
            "timeout": _TIMEOUT,
            "raise_for_status": self._check,
            "headers": {"Accept-Encoding": "identity"},
            "trust_env": True,  # proxies
        }
        self.files = HTTPFileSystem(client_kwargs=client, skip_instance_cache=True)

    def read(self, url: str, starts: Sequence[int], length: int) -> list[bytes]:
        """``length`` bytes from each start."""
        parts: list[bytes | Exception] = self.files.cat_ranges(
            [url] * len(starts),
            list(starts),
            [start + length for start in starts],
            batch_size=_CONCURRENT,
            on_error="return",
        )
        whole = []
        for part in parts:
            if isinstance(part, Exception):
                raise part
            if len(part) != length:
                raise OSError(f"{len(part)} bytes came instead of {length}")
            whole.append(part)
        return whole

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        """Called with each answer before its body is read: a whole file would be 100 MB."""
        try:
            if response.status in (408, 429) or response.status >= 500:
                raise OSError(f"HTTP {response.status} {response.reason}")
            if response.status >= 400:
                raise InputError(f"HTTP {response.status} {response.reason}")
            if response.status != 206:
                raise InputError(
                    f"HTTP {response.status}: the server does not support range requests"
                )
            asked = response.request_info.headers["Range"].replace("=", " ")
            given, _, size = response.headers.get("Content-Range", "").partition("/")
            if given != asked or not size.isdigit():
                raise OSError(f"range {given!r} of {size!r} came instead of {asked!r}")
            self.size = int(size)
        except BaseException:
            response.close()
            raise


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
