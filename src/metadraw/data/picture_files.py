"""Picture files, listed alike whether they lie in a folder or in a zip archive."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from metadraw.data.pictures import SUFFIXES
from metadraw.errors import InputError

_DEEPEST = 8  # folders within folders


class PictureFile(NamedTuple):
    """A file, in a folder or in an archive."""

    place: str  # the folder or archive
    path: tuple[str, ...]  # within it: names of folders, and that of the file
    stamp: tuple[int, int]  # its size in bytes, and its time of change or its checksum
    read: Callable[[], bytes]

    def __str__(self) -> str:
        return "/".join((self.place, *self.path))


def picture_files(place: Path, depth: int = _DEEPEST) -> list[PictureFile]:
    """All picture files in a folder or in a zip archive, sorted by path.

    Hidden files and folders are left out.

    Args:
        place: the folder or archive.
        depth: of a folder, how deep files may lie; 1 for those directly in it.

    Raises:
        InputError: it cannot be read.
    """
    try:
        files = _in_folder(place, (), depth) if place.is_dir() else _in_zip(place)
        return sorted(files, key=lambda file: file.path)
    except (OSError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{place}: cannot be read as a folder or zip archive: {reason}") from error


def _in_folder(place: Path, within: tuple[str, ...], depth: int) -> Iterator[PictureFile]:
    for entry in place.joinpath(*within).iterdir():
        path = (*within, entry.name)
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if depth > 1:
                yield from _in_folder(place, path, depth - 1)
        elif entry.suffix.lower() in SUFFIXES:
            stat = entry.stat()
            stamp = stat.st_size, stat.st_mtime_ns
            yield PictureFile(str(place), path, stamp, entry.read_bytes)


def _in_zip(place: Path) -> Iterator[PictureFile]:
    archive = zipfile.ZipFile(place)
    for member in archive.infolist():
        path = tuple(member.filename.split("/"))
        hidden = any(name.startswith((".", "__MACOSX")) for name in path)
        if not hidden and Path(path[-1]).suffix.lower() in SUFFIXES:
            stamp = member.file_size, member.CRC
            yield PictureFile(str(place), path, stamp, partial(archive.read, member))
