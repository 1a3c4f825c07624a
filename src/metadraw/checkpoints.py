"""The best checkpoint of a run, also when the run was resumed in another folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint


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
