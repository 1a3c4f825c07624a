"""Fetches a whole file from any web server, and checks it."""

from __future__ import annotations

import hashlib
import http.client
import time
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from metadraw.errors import InputError

_WAITS = (1.0, 3.0, 9.0)  # seconds before each further try
_TIMEOUT = 20  # seconds without a byte
_PIECE = 1 << 16  # bytes


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
        before = _size(part)
        try:
            _fetch_rest(url, part)
            break
        except (
            urllib.error.URLError,
            http.client.HTTPException,
            ConnectionError,
            TimeoutError,
        ) as e:
            answered = isinstance(e, urllib.error.HTTPError)
            if isinstance(e, urllib.error.HTTPError) and e.code < 500 and e.code not in (408, 429):
                raise InputError(f"{url}: HTTP {e.code} {e.reason}") from e
            # A machine without a connection fails immediately.
            wait = next(waits, None) if answered or _size(part) or before else None
            if wait is None:
                raise InputError(
                    f"{url}: {' '.join(str(e).split()) or type(e).__name__}; what was fetched is "
                    "kept, run again to continue"
                ) from e
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
        start = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
        if response.status != 206 or start != str(at):
            at = 0
        if response.status == 206 and start != str(at):
            part.unlink(missing_ok=True)
            raise ConnectionError(f"received the range from {start or 'nowhere'}")
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
