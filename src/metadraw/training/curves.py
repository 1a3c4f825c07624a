"""The curves of a run: one row per epoch in metrics.csv, and their figures."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from metadraw.data.tasks import TaskDataModule
from metadraw.files import write_whole
from metadraw.results.figures import draw_curves, draw_learned, layers_in_words
from metadraw.training.learner import MetaLearner


class Curves(L.Callback):
    """Writes ``metrics.csv`` after every epoch and ``curves.png`` at the end.

    Also ``learned.png`` for an algorithm that learns more than the network. The rows are part of
    the checkpoint, so a resumed run has the curves of the whole run.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        """Add a row: the epoch, counted from 1, outer steps and every mean logged in it."""
        assert isinstance(learner, MetaLearner)
        validated = learner.validated_at > (self.rows[-1]["step"] if self.rows else 0)
        row: dict[str, float] = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
        logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
        # The learning rate and the duration, from `console.EpochLines`.
        row |= {n: float(f"{logged[n]:.6g}") for n in ("lr", "seconds") if n in logged}  # float32
        row |= {
            name: value
            for name, value in logged.items()
            if "/" in name and (validated or name.startswith("train/"))
        }
        self.rows.append(row)
        self._write()

    def on_fit_end(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        """Draw the curves, even if nothing was left to train."""
        if trainer.is_global_zero and self.rows:
            assert isinstance(learner, MetaLearner)
            objective = learner.objective
            data = getattr(trainer, "datamodule", None)
            chance = data.chance if isinstance(data, TaskDataModule) else None
            best = self._best_epoch(trainer.checkpoint_callback)
            draw_curves(
                self.rows, self.folder / "curves.png", objective.shown(), chance=chance, best=best
            )
            # Learned values are logged with meta-validation.
            if validated := [row for row in self.rows if f"val/{objective.metric.name}" in row]:
                algorithm = learner.algorithm
                words = layers_in_words(algorithm.network)
                if algorithm.head is not None:
                    words |= layers_in_words(nn.ModuleDict({"head": algorithm.head}))
                draw_learned(validated, self.folder / "learned.png", words)

    def _best_epoch(self, kept: Checkpoint | None) -> float | None:
        """The first epoch with the best value of the metric that the checkpoint monitors."""
        if not isinstance(kept, ModelCheckpoint) or kept.monitor is None:
            return None
        values = {row["epoch"]: row[kept.monitor] for row in self.rows if kept.monitor in row}
        choose = max if kept.mode == "max" else min
        return choose(values, key=values.__getitem__, default=None)

    @rank_zero_only
    def _write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_whole(self.folder / "metrics.csv", text.getvalue())

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with these rows."""
        self.rows = state_dict["rows"]
