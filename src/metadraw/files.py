"""Atomic writes: a file is complete or absent."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.plugins import TorchCheckpointIO


def write_whole(path: Path, text: str) -> None:
    """Write a text file atomically: readers find all of it or nothing, even after a kill."""
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)  # left over if the disk is full


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file likewise."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_whole(path, text.getvalue())


class WholeCheckpoints(TorchCheckpointIO):
    """Writes each checkpoint to a temporary file beside its path, then renames it.

    Lightning writes to the system's temporary folder. If that is on another disk, the move is a
    copy, and a run that is killed meanwhile overwrites its last checkpoint with half a new one.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint, which appears at its path only when complete."""
        if "://" in str(path):  # an object store writes whole files
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        part = Path(f"{path}.part")
        try:
            super().save_checkpoint(checkpoint, part, storage_options)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
