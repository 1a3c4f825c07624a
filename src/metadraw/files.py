"""Files that are there whole or not at all."""

from __future__ import annotations

from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file: whoever reads it, and whenever this is killed, finds all of it or none.

    Args:
        path: the file; its folder must exist.
        content: text is written as UTF-8.

    Raises:
        OSError: it could not be written; the file that was there before stays.
    """
    # In the same folder: to move a file from another file system is to copy it.
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
