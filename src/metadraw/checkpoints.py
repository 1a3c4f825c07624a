"""The checkpoints of a run: whole at any moment, and the best one also in another folder."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from metadraw.files import write_whole


class WholeCheckpointIO(TorchCheckpointIO):
    """Lightning's `TorchCheckpointIO`, which leaves whole files wherever temporary ones are.

    Lightning writes to the folder for temporary files and moves the file from there. Between two
    file systems that is a copy, and a run that is killed meanwhile leaves half a checkpoint in
    place of the one before.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint beside its place, then exchange it for the one before."""
        if storage_options is not None or "://" in str(path):
            return super().save_checkpoint(checkpoint, path, storage_options)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_whole(Path(path), content.getvalue())


class BestCheckpoint(ModelCheckpoint):
    """Lightning's `ModelCheckpoint` for one best file, which a resumed run brings along.

    Lightning forgets the best score so far when the folder is another one; a resumed run would
    then call its best what is only the best of its second part.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from this state, with a copy of the best checkpoint so far."""
        before, score = Path(state_dict["best_model_path"]), state_dict["best_model_score"]
        assert self.dirpath is not None
        here = Path(self.dirpath) / before.name
        if before.is_file() and before != here:
            here.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(before, here)
        if here.is_file():
            moved = {
                "dirpath": self.dirpath,
                "best_model_path": str(here),
                "kth_best_model_path": str(here),
                "best_k_models": {str(here): score},
            }
            state_dict = state_dict | moved
        super().load_state_dict(state_dict)
