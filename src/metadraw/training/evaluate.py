"""Meta-testing a checkpoint."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from metadraw.command import keys
from metadraw.command.config import given
from metadraw.data.datamodule import EpisodeDataModule
from metadraw.data.tasks import TaskDataModule, check_split
from metadraw.errors import InputError
from metadraw.results import record
from metadraw.training.factory import read_checkpoint, restore
from metadraw.training.options import check_trainer
from metadraw.training.train import make_trainer, show_episode, tested

log = logging.getLogger(__name__)
say = rank_zero_only(log.info)  # once, not by every process


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Test ``cfg.ckpt_path``, and write ``results.json``, ``tasks.csv`` and ``episode.png``.

    Without changes, this repeats the meta-test of the training run exactly: episodes are fixed.

    Returns:
        The contents of ``results.json``.

    Raises:
        InputError: no such checkpoint, or one that cannot be tested with these changes.
    """
    if OmegaConf.is_missing(cfg, "ckpt_path"):
        raise InputError(
            "ckpt_path is missing: name a checkpoint, e.g. ckpt_path=RUN/checkpoints/best.ckpt"
        )
    check_split(cfg.split)
    changes = {group: given(cfg[group]) for group in ("algorithm", "learner", "trainer")}
    changes["data"] = given(cfg.data)
    if "_target_" in cfg.data:  # null is a value for another data set
        takes = keys.settings(cfg.data._target_)
        changes["data"] = {
            key: value
            for key, value in cfg.data.items()
            if value is not None or takes is None or key in takes
        }
    git = record.git()
    data, learner = restore(cfg.ckpt_path, OmegaConf.create(changes), [cfg.split])
    data.test_split = cfg.split
    check_trainer(cfg.trainer, {"test": data.batches["test"]})
    assert learner.config is not None
    cfg.trainer.precision = learner.config["trainer"]["precision"]
    _warn_of_white_ground(cfg, data)

    folder = Path(cfg.paths.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    trainer = make_trainer(cfg, learner)
    test = tested(trainer, learner, data, folder)
    show_episode(data, learner, folder / "episode.png")
    results = record.write(
        folder / "results.json",
        config=learner.config,
        data=data.provenance,
        module=learner,
        test=test,
        checkpoint=str(cfg.ckpt_path),
        git=git,
    )
    say("%s", record.sentence(test, learner.objective.metric))
    say("results: %s", folder / "results.json")
    return results


def _warn_of_white_ground(cfg: DictConfig, data: TaskDataModule) -> None:
    """Warn if a network trained on light ink on black is tested on dark drawings on white."""
    if not isinstance(data, EpisodeDataModule):
        return
    trained = read_checkpoint(cfg.ckpt_path)["metadraw_config"]["data"]
    on_ink = trained.get("prepare") in ("inverted", "ink")
    with suppress(ImportError):  # the data set's class may be missing on this machine
        on_ink = on_ink or getattr(get_class(trained["_target_"]), "ink", False)
    if not on_ink or data.ink:
        return
    tasks = data.episodes(cfg.split)(torch.arange(data.tasks_per_batch))
    if tasks.query.x.mean() > 0.5:
        say(
            "these pictures are mostly white, but the checkpoint was trained on light ink on "
            "black: data.prepare=ink converts them"
        )
