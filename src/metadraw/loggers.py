"""Experiment trackers beside metrics.csv: W&B and TensorBoard through Lightning's loggers."""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from metadraw.errors import InputError

log = logging.getLogger(__name__)


def make(cfg: DictConfig | None, folder: Path) -> Logger | bool:
    """The logger of a config, or False for none.

    Args:
        cfg: the config.
        folder: the run folder; a run that is resumed there is the same one in W&B.

    Raises:
        InputError: its package is not installed.
    """
    if not cfg:
        return False
    more = {}
    if cfg._target_.endswith("WandbLogger"):
        _offline_without_key()
        more = {"id": _kept_id(folder / "wandb_id.txt"), "resume": "allow"}
    try:
        return instantiate(cfg, **more)
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, ModuleNotFoundError):
            raise InputError(
                f"logger={cfg._target_.rsplit('.')[-1]}: a package is missing ({cause.msg}): "
                "pip install 'metadraw[wandb,tensorboard]'"
            ) from error
        raise


def _kept_id(path: Path) -> str:
    """An identifier of W&B's kind, the same one for the same run folder."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(secrets.token_hex(4), encoding="utf-8")
    return path.read_text(encoding="utf-8")


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
        # Against epochs, unless a panel says otherwise, for example tasks_seen.
        logger.experiment.define_metric("val/*", step_metric="epoch")
        logger.experiment.define_metric("val/acc", step_metric="epoch", summary="max")
        logger.experiment.define_metric("val/loss", step_metric="epoch", summary="min")


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
