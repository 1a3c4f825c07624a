"""The curves of a run: one row an epoch in metrics.csv, and their figures."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only

from metadraw.figures import draw_curves, draw_learned
from metadraw.files import write_whole


class Curves(L.Callback):
    """Writes ``metrics.csv`` after every epoch and ``curves.png`` at the end.

    Also ``learned.png`` for an algorithm that learns more than the network.

    The rows travel in the checkpoint: a resumed run has the curves of the whole run.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        """Add a row: the epoch, counted from 1, outer steps and every logged mean."""
        row = {"epoch": trainer.current_epoch + 1.0, "step": float(trainer.global_step)}
        logged = trainer.callback_metrics
        row |= {name: value.item() for name, value in logged.items() if "/" in name}
        self.rows.append(row)
        self._write()

    def on_fit_end(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        """Draw the curves, also of a run that was killed after its last epoch, before this."""
        if trainer.is_global_zero and self.rows:
            draw_curves(self.rows, self.folder / "curves.png")
            draw_learned(self.rows, self.folder / "learned.png")

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
        """Go on from these rows."""
        self.rows = state_dict["rows"]
