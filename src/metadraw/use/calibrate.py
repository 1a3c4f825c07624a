"""Calibrating a checkpoint: a temperature and a threshold that stay with it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from metadraw.command.config import check_path, given
from metadraw.data.datamodule import EpisodeDataModule
from metadraw.data.tasks import least, most
from metadraw.errors import InputError, check_part, check_whole
from metadraw.files import WholeCheckpoints, write_whole
from metadraw.training.factory import read_checkpoint
from metadraw.use.calibration import answers, fit, measure
from metadraw.use.classifier import FewShot

log = logging.getLogger(__name__)


def calibrate(cfg: DictConfig) -> dict[str, dict[str, float]]:
    """Calibrate ``cfg.ckpt_path`` on meta-validation tasks, and test that on meta-test tasks.

    Temperature and threshold are written into the checkpoint, where `FewShot` reads them, and the
    measures of both splits into ``calibration.json``.

    Returns:
        What `measure` returns, by split, and the `Calibration`.

    Raises:
        InputError: no such checkpoint, an impossible value, or too few classes.
    """
    check_path(cfg, "ckpt_path", "a checkpoint")
    check_whole("tasks", cfg.tasks)
    check_part("refused", cfg.refused)
    few_shot = FewShot(cfg.ckpt_path)
    data = with_one_more_class(few_shot, given(cfg.data))
    found = {
        split: answers(few_shot.learner, data.episodes(split), cfg.tasks)
        for split in ("val", "test")
    }
    calibration = fit(found["val"], cfg.refused)
    results = {split: measure(each, calibration) for split, each in found.items()}
    results["calibration"] = calibration._asdict()

    saved = read_checkpoint(cfg.ckpt_path) | {"metadraw_calibration": calibration._asdict()}
    WholeCheckpoints().save_checkpoint(saved, cfg.ckpt_path)
    folder = Path(cfg.paths.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "calibration.json", json.dumps(results, indent=1) + "\n")
    test = results["test"]
    log.info(
        "calibrated %s: expected calibration error in meta-test %.1f %% (before: %.1f %%)",
        cfg.ckpt_path,
        100 * test["error"],
        100 * test["error_before"],
    )
    log.info(
        "none of these: said of %.1f %% of the pictures of given classes, and not said of %.1f %% "
        "of those of another class",
        100 * test["refused"],
        100 * test["accepted"],
    )
    log.info("results: %s", folder / "calibration.json")
    return results


def with_one_more_class(few_shot: FewShot, changes: dict[str, Any]) -> EpisodeDataModule:
    """Tasks as in training, with one class more than is to be learned.

    Args:
        few_shot: which learns them.
        changes: to the config of its data.

    Raises:
        InputError: ways that the checkpoint cannot learn, or impossible values.
    """
    cfg = OmegaConf.merge(few_shot.config["data"], changes)
    learned: EpisodeDataModule = instantiate(cfg)  # which checks the values
    few, many = (pick(learned.ways) for pick in (least, most))
    for ways in (few, many):
        few_shot.check_ways(ways)
    cfg.ways = [few + 1, many + 1]
    # Each task has its own number of ways and shots, without padding.
    cfg.tasks_per_batch, cfg.vary = 1, "batch"
    cfg.unlabelled = cfg.distractors = 0
    data: EpisodeDataModule = instantiate(cfg)
    data.setup()
    for split in ("val", "test"):
        if many >= (classes := len(data.splits[split])):
            raise InputError(
                f"data.ways={many}: calibration needs one class more in each split, to leave it "
                f"out, but the meta-{split} split has {classes}"
            )
    return data
