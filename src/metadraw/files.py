"""Files that are there whole or not at all."""

from __future__ import annotations

from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a text file: whoever reads it, and whenever this is killed, finds all of it or none."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    part.replace(path)
