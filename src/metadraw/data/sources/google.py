"""Drawings from the data set's own bitmaps: 345 files of about 100 MB, of which little is read.

Only each file's header and the chosen rows are fetched, by HTTP ranges; or whole files.
Drawings by Google (Quick, Draw! Dataset, CC BY 4.0).
"""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import io
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp
import numpy as np
from fsspec.implementations.http import HTTPFileSystem
from tqdm import tqdm

from metadraw.data.sources import PIXELS, SIDE, choose_rows
from metadraw.errors import InputError

_Result = TypeVar("_Result")

URL = "https://storage.googleapis.com/quickdraw_dataset/full/numpy_bitmap"
RENDERER = "Quick, Draw! numpy_bitmap"
_PART = 4 << 20  # bytes of a whole file in one range
_AT_ONCE = 64 << 20  # before they are written
_HEADER = 128  # bytes that hold the .npy header: 80 in old files, 128 in new ones
_CONCURRENT = 48  # ranges at a time
_WAITS = (1.0, 3.0, 9.0)  # seconds before each further try
_TIMEOUT = aiohttp.ClientTimeout(total=60, connect=5, sock_read=20)
_TRANSIENT = (aiohttp.ClientError, asyncio.TimeoutError, OSError)


def load(
    classes: Sequence[str], samples: int, seed: int, base_url: str, partial: Path
) -> np.ndarray:
    """Drawings from ``<base_url>/<class>.npy``, ``uint8 [n, 784]`` each.

    Args:
        classes: C names.
        samples: S, drawings per class.
        seed: which drawings.
        base_url: where the files are.
        partial: folder that keeps finished classes; those found there are not fetched again.

    Returns:
        ``uint8 [C, S, 28, 28]``.

    Raises:
        InputError: no connection, no support for ranges, or a missing or malformed file.
    """
    remote = _Remote()
    urls = [f"{base_url}/{quote(name)}.npy" for name in classes]
    _reach(remote, classes[0], urls[0])
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


def missing(classes: Sequence[str], folder: Path) -> list[str]:
    """The classes of which `download` has not yet fetched the whole file."""
    return [name for name in classes if not (folder / f"{name}.npy").is_file()]


def download(classes: Sequence[str], base_url: str, folder: Path) -> None:
    """Fetch every whole ``<class>.npy``: 39 GB of Quick, Draw!.

    An interrupted download resumes where it was. A file gets its name when it has the size in its
    header and, if the server reports one, the right MD5.

    Args:
        classes: C names.
        base_url: where the files are.
        folder: where they are kept, as ``<class>.npy``.

    Raises:
        InputError: no connection, no support for ranges, too little space, or a missing or
            malformed file.
    """
    lacking = missing(classes, folder)
    if not lacking:
        return
    remote, urls = _Remote(), {name: f"{base_url}/{quote(name)}.npy" for name in lacking}
    _reach(remote, lacking[0], urls[lacking[0]])
    sizes, md5s = {}, {}
    for name, url in tqdm(urls.items(), desc="Quick, Draw!: sizes", unit="class"):
        sizes[name] = _with_retries(functools.partial(_size, remote, url), name, url)
        md5s[name] = remote.md5
    folder.mkdir(parents=True, exist_ok=True)
    parts = {name: folder / f"{name}.npy.part" for name in lacking}
    there = sum(part.stat().st_size for part in parts.values() if part.is_file())
    needed, free = sum(sizes.values()) - there, shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"data.samples_per_class=all needs {needed / 1e9:.1f} GB more in {folder}, where "
            f"{free / 1e9:.1f} GB are free: free some space, or set data.cache_dir"
        )
    total = sum(sizes.values())
    with tqdm(
        desc="Quick, Draw!", total=total, initial=there, unit="B", unit_scale=True
    ) as progress:
        for name, url in urls.items():
            _fetch_whole(remote, name, url, sizes[name], md5s[name], parts[name], progress)
            os.replace(parts[name], folder / f"{name}.npy")


def _fetch_whole(
    remote: _Remote,
    name: str,
    url: str,
    size: int,
    md5: str | None,
    part: Path,
    progress: tqdm[Any],
) -> None:
    """Append the rest of one file to the part that is there, and check the whole file."""

    def fetch(start: int) -> list[bytes]:
        starts = range(start, min(size, start + _AT_ONCE), _PART)
        pieces = remote.read(url, [(first, min(first + _PART, size)) for first in starts])
        if remote.size != size:
            part.unlink()
            raise InputError("has changed on the server: run again")
        return pieces

    with part.open("ab") as file:
        while (at := file.tell()) < size:
            for piece in _with_retries(functools.partial(fetch, at), name, url):
                file.write(piece)
                progress.update(len(piece))
        file.flush()
        os.fsync(file.fileno())
    actual = base64.b64encode(hashlib.md5(np.memmap(part, mode="r").data).digest()).decode()
    if at != size or md5 not in (None, actual):
        part.unlink()
        raise InputError(
            f"class {name!r}: {url}: received {at} bytes with MD5 {actual}, the server says {size} "
            f"and {md5}: it was discarded, run again"
        )


def _reach(remote: _Remote, name: str, url: str) -> None:
    """Read a header once, without retries: an offline machine fails immediately."""
    try:
        _size(remote, url)
    except _TRANSIENT as error:
        raise InputError(f"{url}: {_reason(error)}") from error
    except InputError as error:
        raise InputError(f"class {name!r}: {url}: {error}") from error


def _size(remote: _Remote, url: str) -> int:
    """The size of a file in bytes, if its header agrees."""
    [header] = remote.read(url, [(0, _HEADER)])
    _layout(header, remote.size)
    return remote.size


def _kept(file: Path, samples: int) -> np.ndarray | None:
    """A class from an earlier, interrupted download, if it is there and valid."""
    try:
        drawings = np.load(file, allow_pickle=False)
    except Exception:  # damaged files raise nearly anything
        return None
    valid = drawings.dtype == np.uint8 and drawings.shape == (samples, PIXELS)
    return drawings if valid else None


def _fetch(remote: _Remote, name: str, url: str, samples: int, seed: int, index: int) -> np.ndarray:
    """``uint8 [S, 784]`` of one class."""

    def fetch() -> np.ndarray:
        [header] = remote.read(url, [(0, _HEADER)])
        rows, first = _layout(header, remote.size)
        if rows < samples:
            raise InputError(f"{rows} drawings, fewer than data.samples_per_class={samples}")
        chosen = choose_rows(rows, samples, seed, index)
        starts = [first + PIXELS * int(row) for row in chosen]
        parts = remote.read(url, [(start, start + PIXELS) for start in starts])
        return np.frombuffer(b"".join(parts), np.uint8).reshape(samples, PIXELS)

    return _with_retries(fetch, name, url)


def _with_retries(fetch: Callable[[], _Result], name: str, url: str) -> _Result:
    """The result of ``fetch()``, retried after transient errors."""
    waits = iter(_WAITS)
    while True:
        try:
            return fetch()
        except InputError as error:
            raise InputError(f"class {name!r}: {url}: {error}") from error
        except _TRANSIENT as error:
            wait = next(waits, None)
            if wait is None:
                raise InputError(
                    f"class {name!r}: {url}: {_reason(error)}, {len(_WAITS) + 1} times; what "
                    "was fetched is kept, run again to resume"
                ) from error
            time.sleep(wait)


def _layout(header: bytes, size: int) -> tuple[int, int]:
    """How many rows a file of ``size`` bytes has, and where the first one starts."""
    stream = io.BytesIO(header)
    try:
        version = np.lib.format.read_magic(stream)
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    except Exception as error:  # an invalid header raises nearly anything
        raise InputError("is not an .npy file") from error
    first = stream.tell()
    if version != (1, 0) or fortran_order or dtype != np.uint8 or shape[1:] != (PIXELS,):
        raise InputError(f"holds {dtype} {shape}; expected uint8 (n, {PIXELS})")
    if size != first + shape[0] * PIXELS:
        raise InputError(f"has {size} bytes; expected {first + shape[0] * PIXELS} for {shape}")
    return shape[0], first


class _Remote:
    """Ranges of remote files, each exactly as requested, or an error."""

    def __init__(self) -> None:
        self.size = 0  # of the file read last, in bytes
        self.md5: str | None = None  # likewise in base 64, if the server reports it
        client = {
            "timeout": _TIMEOUT,
            "raise_for_status": self._check,
            "headers": {"Accept-Encoding": "identity"},
            "trust_env": True,  # proxies
        }
        self.files = HTTPFileSystem(client_kwargs=client, skip_instance_cache=True)

    def read(self, url: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes from each start to before its end."""
        starts, ends = zip(*ranges, strict=True)
        parts: list[bytes | Exception] = self.files.cat_ranges(
            [url] * len(ranges),
            list(starts),
            list(ends),
            batch_size=_CONCURRENT,
            on_error="return",
        )
        whole = []
        for part, (start, end) in zip(parts, ranges, strict=True):
            if isinstance(part, Exception):
                raise part
            if len(part) != end - start:
                raise OSError(f"received {len(part)} bytes instead of {end - start}")
            whole.append(part)
        return whole

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        """Called for each response before its body is read: a whole file would be 100 MB."""
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
                raise OSError(f"received range {given!r} of {size!r} instead of {asked!r}")
            self.size = int(size)
            hashes = ",".join(response.headers.getall("x-goog-hash", [])).replace(" ", "")
            md5s = (h for h in hashes.split(",") if h.startswith("md5="))
            self.md5 = next((h.removeprefix("md5=") for h in md5s), None)
        except BaseException:
            response.close()
            raise


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
