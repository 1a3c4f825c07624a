"""Experiment trackers in addition to metrics.csv: any number of Lightning's loggers."""

from __future__ import annotations

import importlib
import logging
import os
import secrets
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from metadraw.errors import InputError
from metadraw.objectives import Objective

log = logging.getLogger(__name__)
#: Pictures of a run folder that trackers show, if they exist.
_PICTURES = ("episode", "curves", "learned")
#: Seconds to wait for W&B's server.
_PATIENCE = 10


class TensorBoard(TensorBoardLogger):
    """Lightning's logger, with one event file for the whole run.

    Lightning finalises a logger after training and again after testing, which would close the file,
    and the next value would open another one. Here only `close` closes it.
    """

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write pending values, and keep the file open."""
        self.save()
        if self._experiment is not None:
            self._experiment.flush()


def make(cfg: DictConfig | None, folder: Path) -> list[Logger]:
    """The loggers of a config.

    Args:
        cfg: one config per logger, under any names; `None` for no logger.
        folder: the run folder; a run that is resumed there is the same run in W&B.

    Raises:
        InputError: an entry that is not a logger, or a package that is not installed.
    """
    cfg = cfg or DictConfig({})
    named = {"logger": cfg} if "_target_" in cfg else cfg  # a single one, in older run folders
    return [_make(name, one, folder) for name, one in named.items() if one is not None]


def _make(name: Any, cfg: Any, folder: Path) -> Logger:
    if not isinstance(cfg, DictConfig) or "_target_" not in cfg:
        raise InputError(f"logger.{name}={cfg}: must be the config of a logger, with a _target_")
    try:
        more = _of_wandb(cfg, folder) if cfg._target_.endswith("WandbLogger") else {}
        return instantiate(cfg, **more)
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, ModuleNotFoundError):
            raise InputError(
                f"logger={name}: a package is missing ({cause.msg}): "
                "pip install 'metadraw[wandb,tensorboard]'"
            ) from error
        raise


def _of_wandb(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """W&B's arguments besides its config: the run's identifier, and whether to upload."""
    more = {"id": _kept_id(folder / "wandb_id.txt"), "resume": "allow"}
    if "mode" in cfg or cfg.get("offline"):
        return more
    # Passed explicitly: W&B may have read the environment in an earlier job of this process.
    if mode := os.environ.get("WANDB_MODE"):
        return more | {"mode": {"dryrun": "offline", "run": "online"}.get(mode, mode)}
    if (reason := _why_offline()) is None:
        return more
    rank_zero_only(log.info)("W&B: %s, the run is kept offline, for `wandb sync`", reason)
    return more | {"mode": "offline", "resume": None}  # there is nothing to resume


def _kept_id(path: Path) -> str:
    """An identifier in W&B's format, always the same for a run folder."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(secrets.token_hex(4), encoding="utf-8")
    return path.read_text(encoding="utf-8")


def _why_offline() -> str | None:
    """Why W&B cannot upload: no key, or no answer; `None` if it can."""
    wandb: Any = importlib.import_module("wandb")
    # A dependency of W&B that reads keys from the same file.
    netrc: Any = importlib.import_module("requests.utils")
    settings = wandb.setup().settings
    named = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
    if not (
        any(os.environ.get(name) for name in named)
        or settings.api_key
        or netrc.get_netrc_auth(settings.base_url)
    ):
        return "no WANDB_API_KEY in the environment or .env, and no `wandb login`"
    try:
        urllib.request.urlopen(settings.base_url, timeout=_PATIENCE).close()
    except urllib.error.HTTPError:
        return None  # that is an answer
    except OSError as error:
        return f"{settings.base_url} does not answer ({getattr(error, 'reason', error)})"
    return None


@rank_zero_only
def start(loggers: Sequence[Logger], config: dict[str, Any], objective: Objective) -> None:
    """Log the config to each tracker, and tell W&B which values of each metric are best.

    Raises:
        InputError: W&B refuses the run, e.g. for a wrong key; raised before training.
    """
    for logger in loggers:
        if not isinstance(logger, WandbLogger):
            logger.log_hyperparams(config)
            continue
        wandb: Any = importlib.import_module("wandb")
        try:
            run = logger.experiment
        except (wandb.Error, TypeError, ValueError) as error:
            raise InputError(
                f"logger=wandb: {shorten(str(error), 300)}: to keep the run offline, set "
                "WANDB_MODE=offline"
            ) from error
        logger.log_hyperparams(config)
        # Plotted against epochs, unless a panel chooses otherwise, e.g. tasks_seen.
        run.define_metric("val/*", step_metric="epoch")
        for name, metric in objective.measured.items():
            run.define_metric(f"val/{name}", step_metric="epoch", summary=metric.mode)
        if run.settings.mode == "online":
            log.info("W&B: %s", run.url)


@rank_zero_only
def finish(loggers: Sequence[Logger], results: dict[str, Any], metric: str, folder: Path) -> None:
    """Add the best validation result and the run's pictures to W&B and TensorBoard."""
    best = {f"best_val_{metric}": results["val"][metric]}
    pictures = {name: folder / f"{name}.png" for name in _PICTURES}
    pictures = {name: path for name, path in pictures.items() if path.is_file()}
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.summary.update(best)
            for name, path in pictures.items():
                logger.log_image(name, [str(path)])
        elif isinstance(logger, TensorBoardLogger):
            import matplotlib.image

            logger.log_hyperparams(results["config"], best)  # for a table of runs by result
            for name, path in pictures.items():
                pixels = matplotlib.image.imread(path)[..., :3]
                logger.experiment.add_image(name, pixels, dataformats="HWC")


def close(loggers: Sequence[Logger]) -> None:
    """End each tracker's run, so that the next job of a multirun starts its own."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            importlib.import_module("wandb").finish()
        elif isinstance(logger, TensorBoard):
            logger.experiment.close()
        else:
            logger.finalize("success")
