"""What a run prints while it is running: one line per epoch, and on a terminal a progress bar."""

from __future__ import annotations

import logging
import logging.config
import math
import sys
import time
import warnings
from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf

from metadraw.training.learner import MetaLearner

log = logging.getLogger(__name__)
#: Lightning's warnings that would mislead here.
_UNTRUE_HERE = (
    "The number of training batches .* is smaller than the logging interval",  # logged per epoch
    "The .* does not have many workers",  # episodes are made on the network's device
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # by Lightning itself
    "The dirpath has changed",  # checkpoints.BestCheckpoint handles that
    "Checkpoint directory .* exists and is not empty",  # when a run resumes
    r"Found .* module\(s\) in eval mode",  # batch norm whose statistics are frozen
)


class EpochLines(L.Callback):
    """Logs one line per epoch, with or without a progress bar.

    ``epoch  3/50  train 45.2  val 46.3 ± 2.4  best  12 s``: the objective's metric after adaptation
    (here accuracies in per cent), half the 95 % interval over the meta-validation tasks, whether
    it is the best so far, and how long the epoch took, with validation. An epoch without
    validation has no ``val``.

    Also logs ``epoch``, counted from 1, ``lr``, the outer learning rate of the epoch, and
    ``seconds``, its duration. At the end, the Trainer's ``callback_metrics`` have ``epochs``,
    ``outer_steps`` and ``seconds_with_validation`` of the whole run, resumed or not.
    """

    def __init__(self) -> None:
        self.best: float | None = None
        self.seconds = 0.0  # of all epochs
        self.job_logging: Any = (
            OmegaConf.to_container(HydraConfig.get().job_logging, resolve=True)
            if HydraConfig.initialized()
            else None
        )

    def setup(self, trainer: L.Trainer, learner: L.LightningModule, stage: str) -> None:
        """Set up the console, also in processes that Lightning spawns."""
        quiet()
        if self.job_logging and not logging.getLogger().hasHandlers():
            logging.config.dictConfig(self.job_logging)

    def on_train_epoch_start(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        """Start the clock."""
        self.began, self.validated = time.perf_counter(), False

    def on_validation_epoch_end(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        """Note that this epoch has validation."""
        self.validated = True
        learner.log("epoch", trainer.current_epoch + 1.0, sync_dist=True)

    def on_train_epoch_end(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        """Log the line and the numbers."""
        seconds = time.perf_counter() - self.began
        self.seconds += seconds
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        numbers = {"epoch": trainer.current_epoch + 1.0, "lr": float(rate), "seconds": seconds}
        learner.log_dict(numbers, sync_dist=True)
        logged = trainer.callback_metrics
        last = str(trainer.max_epochs)
        parts = [f"epoch {trainer.current_epoch + 1:>{len(last)}}/{last}"]
        assert isinstance(learner, MetaLearner)
        metric = learner.objective.metric
        scale, form = (100, "4.1f") if metric.percent else (1, ".4f")
        if f"train/{metric.name}" in logged:
            parts.append(f"train {scale * logged[f'train/{metric.name}'].item():{form}}")
        if self.validated:
            value, half = (logged[f"val/{metric.name}{end}"].item() for end in ("", "_ci95"))
            # One task has no interval.
            interval = "" if math.isnan(half) else f" ± {scale * half:{form.lstrip('4')}}"
            better = self.best is None or metric.better(value, self.best)
            self.best = value if better else self.best
            parts += [f"val {scale * value:{form}}{interval}", "best" if better else "    "]
        parts.append(f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s")
        # On a terminal, the bars make room for the line.
        with Tqdm.external_write_mode(file=sys.stdout):
            rank_zero_only(log.info)("  ".join(parts))

    def on_fit_end(self, trainer: L.Trainer, learner: L.LightningModule) -> None:
        """Leave how far the run is where a process that has spawned this one finds it."""
        trainer.callback_metrics.update(
            epochs=torch.tensor(trainer.current_epoch),
            outer_steps=torch.tensor(trainer.global_step),
            seconds_with_validation=torch.tensor(round(self.seconds, 3), dtype=torch.float64),
        )

    def state_dict(self) -> dict[str, Any]:
        """The best value and the time so far."""
        return {"best": self.best, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with them."""
        self.best, self.seconds = state_dict["best"], state_dict["seconds"]


class ProgressBar(TQDMProgressBar):
    """Lightning's bar on a terminal, removed when it is done; nothing in a file or a pipe.

    Args:
        refresh_rate: steps between updates of the bar; 0 turns it off.
    """

    def __init__(self, refresh_rate: int = 10) -> None:
        super().__init__(refresh_rate=refresh_rate if sys.stdout.isatty() else 0)

    def init_train_tqdm(self) -> Tqdm:
        """Lightning's bar, removed when it is done."""
        bar = super().init_train_tqdm()
        bar.leave = False
        return bar

    def init_test_tqdm(self) -> Tqdm:
        """Lightning's bar, removed when it is done."""
        bar = super().init_test_tqdm()
        bar.leave = False
        return bar

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Show the epoch, counted from 1 as everywhere else."""
        super().on_train_epoch_start(trainer)
        self.train_progress_bar.set_description(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        )

    def get_metrics(self, *arguments: Any) -> dict[str, Any]:
        """The metrics, without the run number of a tracker."""
        metrics = super().get_metrics(*arguments)
        metrics.pop("v_num", None)
        return metrics


def quiet() -> None:
    """Reduce Lightning's output to warnings, each shown once.

    Otherwise each Trainer lists missing accelerators and advertises products, and everything
    appears twice, because both Lightning's loggers and the root logger have handlers.
    """
    lightning = logging.getLogger("lightning")
    if logging.getLogger().hasHandlers():
        lightning.handlers.clear()
    for name in ("lightning", "lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _UNTRUE_HERE:
        warnings.filterwarnings("ignore", message=f".*{message}")
