"""Experiment trackers beside metrics.csv: W&B and TensorBoard through Lightning's loggers."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from metadraw.errors import InputError

log = logging.getLogger(__name__)


def make(cfg: DictConfig | None) -> Logger | bool:
    """The logger of a config, or False for none.

    Raises:
        InputError: its package is not installed.
    """
    if not cfg:
        return False
    if cfg._target_.endswith("WandbLogger"):
        _offline_without_key()
    try:
        return instantiate(cfg)
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, ModuleNotFoundError):
            raise InputError(
                f"logger={cfg._target_.rsplit('.')[-1]}: a package is missing ({cause.msg}): "
                "pip install 'metadraw[wandb,tensorboard]'"
            ) from error
        raise


def _offline_without_key() -> None:
    try:
        import wandb
    except ModuleNotFoundError:
        return
    if "WANDB_MODE" not in os.environ and not wandb.api.api_key:
        os.environ["WANDB_MODE"] = "offline"
        log.info("W&B: no WANDB_API_KEY in the environment or .env, the run is kept offline")


@rank_zero_only
def start(logger: Logger | None, config: dict[str, Any]) -> None:
    """Tell the tracker what is run, and that best values are the highest accuracies."""
    if logger is None:
        return
    logger.log_hyperparams(config)
    if isinstance(logger, WandbLogger):
        logger.experiment.define_metric("val/acc", summary="max")
        logger.experiment.define_metric("val/loss", summary="min")


@rank_zero_only
def finish(logger: Logger | None, results: dict[str, Any], folder: Path) -> None:
    """Add the best validation accuracy and the picture of an episode."""
    picture = folder / "episode.png"
    if isinstance(logger, WandbLogger):
        logger.experiment.summary["best_val_acc"] = results["val"]["acc"]
        logger.log_image("episode", [str(picture)])
    elif isinstance(logger, TensorBoardLogger):
        import matplotlib.image

        pixels = matplotlib.image.imread(picture)[..., :3]
        logger.experiment.add_image("episode", pixels, dataformats="HWC")


def close(logger: Logger | None) -> None:
    """End the tracker's run, so that the next job of a multirun starts its own."""
    if isinstance(logger, WandbLogger):
        import wandb

        wandb.finish()
    elif logger is not None:
        logger.finalize("success")
