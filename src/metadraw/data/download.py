"""Fetches a whole file from any web server, and checks it."""

from __future__ import annotations

import hashlib
import http.client
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from metadraw.errors import InputError

_WAITS = (1.0, 3.0, 9.0)  # seconds before each further try
_TIMEOUT = 20  # seconds without a byte
_PIECE = 1 << 16  # bytes
_TRANSIENT = (
    *(urllib.error.URLError, http.client.HTTPException),
    *(ConnectionError, TimeoutError, ssl.SSLError),
)


def download(url: str, file: Path, md5: str) -> None:
    """Fetch a file that is not there yet; the caller must hold a lock.

    What was fetched of it stays beside it, and is continued if the server supports ranges. The file
    gets its name when its checksum is right.

    Args:
        url: of the file.
        file: where it is kept.
        md5: in hexadecimal.

    Raises:
        InputError: no connection, a refusal, or a file of another checksum.
        OSError: it cannot be written.
    """
    if file.is_file():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.part")
    waits = iter(_WAITS)
    while True:
        try:
            _fetch_rest(url, part)
            break
        except _TRANSIENT as error:
            status = error.code if isinstance(error, urllib.error.HTTPError) else None
            if status is not None and status < 500 and status not in (408, 429):
                raise InputError(f"{url}: {error}") from error
            # A machine that reaches nothing fails immediately.
            wait = next(waits, None) if status or _size(part) else None
            if wait is None:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise InputError(
                    f"{url}: {reason}; what was fetched is kept, run again to continue"
                ) from error
            time.sleep(wait)
    with part.open("rb") as stream:
        actual = hashlib.md5(stream.read()).hexdigest()
    if actual != md5:
        part.unlink()
        raise InputError(f"{url}: has MD5 {actual}, expected {md5}: it was discarded, run again")
    part.replace(file)


def _fetch_rest(url: str, part: Path) -> None:
    """Append what is missing of a file, or start again if the server sends all of it."""
    at = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={at}-"} if at else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if at and error.code == 416:  # nothing is missing
            return
        raise
    with response:
        if response.status == 206:
            start = response.headers.get("Content-Range", "").removeprefix("bytes ").split("-")[0]
            if start != str(at):
                raise ConnectionError(f"received the range from {start!r} instead of {at}")
        else:
            at = 0
        missing = int(response.headers.get("Content-Length", -1))
        progress = tqdm(desc=url.rpartition("/")[2], total=at + missing, initial=at, unit="B")
        with part.open("ab" if at else "wb") as stream, progress:
            while piece := response.read(_PIECE):
                stream.write(piece)
                progress.update(len(piece))
                missing -= len(piece)
    if missing > 0:
        raise ConnectionError(f"the connection was closed {missing} bytes before the end")


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0
