"""A run's checkpoints: without paths of the machine, and with the best one kept on resuming."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only

from metadraw.errors import InputError
from metadraw.training.learner import MetaLearner

log = logging.getLogger(__name__)


class Checkpoint(ModelCheckpoint):
    """Lightning's `ModelCheckpoint`, with paths in its state relative to its folder.

    A checkpoint can therefore move to another folder or machine, and reveals nothing of the first.
    """

    def state_dict(self) -> dict[str, Any]:
        """The state, with paths relative to the folder of checkpoints."""
        state = super().state_dict()
        assert self.dirpath is not None
        return _with_paths(state, partial(os.path.relpath, start=self.dirpath)) | {"dirpath": ""}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore this state in the current folder."""
        if not state_dict["dirpath"]:
            assert self.dirpath is not None
            state_dict = _with_paths(state_dict, partial(os.path.join, self.dirpath))
            state_dict |= {"dirpath": self.dirpath}
        super().load_state_dict(state_dict)


class BestCheckpoint(Checkpoint):
    """The checkpoint of the best validated weights.

    Unless ``save_on_train_epoch_end`` says otherwise, it saves at the end of an epoch that ends
    with meta-validation, where a run can be resumed, and right after meta-validation in the middle
    of an epoch. A metric of earlier weights never counts for the current ones.

    A resumed run keeps its best checkpoints so far, even if its folder was moved: Lightning forgets
    them when the folder changes, and would then report the best of the second part only.

    Args:
        **options: of `ModelCheckpoint`.

    Raises:
        InputError: several checkpoints would have the same name.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if self.save_top_k not in (0, 1) and not (
            self._enable_version_counter or "{" in (self.filename or "{epoch}")
        ):
            raise InputError(
                f"callbacks.best.save_top_k={self.save_top_k}: each would overwrite the previous "
                f"one, as {self.filename}.ckpt: needs callbacks.best.filename='{{epoch}}', or "
                "callbacks.best.enable_version_counter=true"
            )

    def _of_training(self) -> bool:
        """Whether the monitored value is known at the end of an epoch without validation."""
        return self.monitor is None or self.monitor.startswith("train/")

    def _should_save_on_train_epoch_end(self, trainer: L.Trainer) -> bool:
        if self._save_on_train_epoch_end is not None:
            return self._save_on_train_epoch_end
        return trainer.is_last_batch or self._of_training()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save, if these weights were validated and are among the best."""
        assert isinstance(pl_module, MetaLearner)
        if self._of_training() or pl_module.validated_at == trainer.global_step:
            super().on_train_epoch_end(trainer, pl_module)

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember the folder that the run resumes from."""
        self._beside = Path(trainer.ckpt_path or "").parent

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore this state, with a copy of the best checkpoints so far.

        They are searched for beside the checkpoint that the run resumes from, then where they were
        when it was written. A different file of the same name is recognised by its score.
        """
        assert self.dirpath is not None
        here = Path(self.dirpath)
        # The state of an older metadraw has absolute paths.
        there = Path(state_dict["dirpath"] or self._beside)
        if not state_dict["dirpath"]:
            state_dict = _with_paths(state_dict, partial(os.path.join, there))
        scores = dict(state_dict["best_k_models"])
        if (best := state_dict["best_model_path"]) and best not in scores:
            scores[best] = state_dict["best_model_score"]  # nothing is monitored
        paths = {}
        for path, score in scores.items():
            name = Path(path).relative_to(there)
            for source in (self._beside / name, Path(path)):
                if source.is_file() and (source == here / name or self._has(source, score)):
                    paths[path] = str(here / name)
                    _copy(source, here / name)
                    break
        if len(paths) < len(scores):
            log.info("the best checkpoint so far was not found: keeping the best from here on")
            if state_dict["best_model_path"] not in paths:
                return
        super().load_state_dict(
            state_dict
            | {
                "dirpath": self.dirpath,
                "best_model_path": paths.get(best, ""),
                "kth_best_model_path": paths.get(state_dict["kth_best_model_path"], ""),
                "best_k_models": {
                    paths[path]: score
                    for path, score in state_dict["best_k_models"].items()
                    if path in paths
                },
            }
        )

    def _has(self, path: Path, score: torch.Tensor | None) -> bool:
        """Whether a file is the checkpoint that had this score."""
        if self.monitor is None or score is None:
            return True
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        return checkpoint.get("metadraw_metrics", {}).get(self.monitor) == score.item()


@rank_zero_only
def _copy(source: Path, target: Path) -> None:
    if source != target:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _with_paths(state: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """The state of a `ModelCheckpoint`, with each path changed."""
    keys = ("best_model_path", "kth_best_model_path", "last_model_path")
    changed = {key: state[key] and change(state[key]) for key in keys}
    best = {change(path): score for path, score in state["best_k_models"].items()}
    return state | changed | {"best_k_models": best}
