"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch.plugins import TorchCheckpointIO


def write_whole(path: Path, text: str) -> None:
    """Write a text file: whoever reads it, and whenever this is killed, finds all of it or none."""
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)  # what there was no room for


class WholeCheckpoints(TorchCheckpointIO):
    """Writes each checkpoint beside its place, and then puts it there.

    Lightning writes it to the folder for temporary files. If that is on another disk, moving it is
    copying, and a run that is killed meanwhile has half a checkpoint in the place of the last one.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint, in its place only when it is whole."""
        if "://" in str(path):  # an object store writes whole files
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        part = Path(f"{path}.part")
        try:
            super().save_checkpoint(checkpoint, part, storage_options)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
