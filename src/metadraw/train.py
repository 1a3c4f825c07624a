"""The whole of a training run, as one straight recipe."""

from __future__ import annotations

import logging
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from metadraw import loggers, results, resume
from metadraw.checkpoints import WholeCheckpointIO
from metadraw.data.datamodule import EpisodeDataModule
from metadraw.errors import DivergedError, InputError
from metadraw.factory import build, check_parameters, read_checkpoint
from metadraw.figures import draw_episode
from metadraw.files import write_whole
from metadraw.learner import MetaLearner

log = logging.getLogger(__name__)
say = rank_zero_only(log.info)  # once, not by every process
# Lightning's own use of a PyTorch name that is about to go; nothing a user could change.
warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")


def train(cfg: DictConfig) -> dict[str, Any]:
    """Meta-train, meta-validate, meta-test; leaves everything in ``cfg.paths.output_dir``.

    A run of the same config that was begun there goes on after its last whole epoch; one that was
    finished is not run again.

    That folder then holds ``config.yaml`` (resolved; runs again as it is), ``metrics.csv``,
    ``curves.png``, ``episode.png``, ``checkpoints/best.ckpt``, ``checkpoints/last.ckpt``,
    ``results.json`` and ``tasks.csv``.

    Returns:
        The contents of ``results.json``.

    Raises:
        InputError: something in the config cannot work, or the folder holds a run of another
            config; before any training.
        DivergedError: a loss was not finite; the last good checkpoint is kept.
    """
    check_trainer(cfg.trainer)
    folder = Path(cfg.paths.output_dir)
    resume.refuse_another_config(cfg, folder)
    if (found := resume.finished(folder)) is not None:
        say("already finished: %s", folder)
        return found
    data, learner = build(cfg)
    learner.algorithm.check_classes(data.class_count)
    ckpt_path = cfg.ckpt_path or resume.last_checkpoint(folder)
    if ckpt_path is not None:
        check_parameters(ckpt_path, read_checkpoint(ckpt_path), learner)
        say("resumed from %s", ckpt_path)

    folder.mkdir(parents=True, exist_ok=True)
    save_config(cfg, folder)
    say("run folder: %s", folder)
    trainer = make_trainer(cfg)
    logger = trainer.logger
    try:
        loggers.start(logger, {**(learner.config or {}), "drawings": data.drawings.provenance})
        began = time.perf_counter()
        try:
            trainer.fit(learner, data, ckpt_path=ckpt_path, weights_only=True)
        except DivergedError as error:
            raise DivergedError(f"{error}; {_kept(folder)}") from error
        except SystemExit as stopped:  # by which Lightning ends at Ctrl-C and SIGTERM
            # As a shell has it: 128 and the number of the signal.
            code = 128 + (signal.SIGTERM if trainer.received_sigterm else signal.SIGINT)
            say("stopped in epoch %d: %s", trainer.current_epoch + 1, _kept(folder))
            raise SystemExit(code) from stopped
        trained = time.perf_counter()
        best = trainer.checkpoint_callback
        assert isinstance(best, ModelCheckpoint)
        trainer.test(
            learner,
            datamodule=data,
            ckpt_path=best.best_model_path,
            verbose=False,
            weights_only=True,
        )
        test = results.evaluation(trainer, learner, "test", time.perf_counter() - trained)
        results.write_tasks(folder / "tasks.csv", learner.evaluated)

        show_episode(data, learner, folder / "episode.png")
        epochs = trainer.current_epoch
        found = results.write(
            folder / "results.json",
            data,
            learner,
            test=test,
            val=results.of_split(read_checkpoint(best.best_model_path)["metadraw_metrics"], "val"),
            train={
                "epochs": epochs,
                "outer_steps": trainer.global_step,
                "seconds_with_validation": round(trained - began, 3),
            },
            checkpoint=best.best_model_path,
        )
        loggers.finish(logger, found, folder)
    finally:
        loggers.close(logger)
    say("%s", results.sentence(test))
    say("curves: %s", folder / "curves.png")
    return found


def make_trainer(cfg: DictConfig) -> L.Trainer:
    """The Trainer of a config, with its callbacks and logger."""
    callbacks = list(instantiate(cfg.callbacks).values()) if cfg.get("callbacks") else []
    trainer: L.Trainer = instantiate(
        cfg.trainer,
        callbacks=callbacks,
        logger=loggers.make(cfg.get("logger"), Path(cfg.paths.output_dir)),
        default_root_dir=cfg.paths.output_dir,
    )
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # Lightning's own default
        trainer.strategy.checkpoint_io = WholeCheckpointIO()
    return trainer


def check_trainer(trainer: DictConfig) -> None:
    """Check for Trainer options that belong to automatic optimisation, or leave nothing to test.

    Raises:
        InputError: one of them is set; it names what to use instead.
    """
    if trainer.get("gradient_clip_val") is not None:
        raise InputError(
            f"trainer.gradient_clip_val={trainer.gradient_clip_val}: the outer step is a manual "
            "one: use learner.gradient_clip_norm"
        )
    batches = trainer.get("accumulate_grad_batches", 1)
    if batches != 1:
        raise InputError(
            f"trainer.accumulate_grad_batches={batches}: the outer step is a manual one: use a "
            "larger data.tasks_per_batch, with learner.tasks_per_chunk for the same memory"
        )
    if str(trainer.get("precision", "32-true")) in ("16", "16-mixed", "16-true"):
        raise InputError(
            f"trainer.precision={trainer.precision}: half precision needs loss scaling, which "
            "meta-gradients do not pass through: use bf16-mixed, 32-true or 64-true"
        )
    if not trainer.get("max_epochs") or trainer.max_epochs < 1:
        raise InputError(f"trainer.max_epochs={trainer.get('max_epochs')}: must be at least 1")
    if trainer.get("fast_dev_run"):
        raise InputError(
            f"trainer.fast_dev_run={trainer.fast_dev_run}: keeps no checkpoint to test: use "
            "trainer.max_epochs=1 data.train_batches=1 data.val_batches=1 data.test_batches=1"
        )
    for split in ("train", "val", "test"):
        if trainer.get(key := f"limit_{split}_batches", 1) == 0:
            raise InputError(f"trainer.{key}=0: must be above 0: use data.{split}_batches=1")
    if (trainer.get("check_val_every_n_epoch") or 1) > trainer.max_epochs:
        raise InputError(
            f"trainer.check_val_every_n_epoch={trainer.check_val_every_n_epoch}: must be at most "
            f"trainer.max_epochs={trainer.max_epochs}: meta-validation chooses the checkpoint"
        )


@rank_zero_only
def save_config(cfg: DictConfig, folder: Path) -> None:
    """``config.yaml``: every value as it was, but for the run folder, which a re-run has anew."""
    copy = OmegaConf.masked_copy(cfg, [str(key) for key in cfg])
    copy.paths.output_dir = "RUN_FOLDER"
    OmegaConf.resolve(copy)
    text = OmegaConf.to_yaml(copy).replace("RUN_FOLDER", "${paths.output_dir}")
    text = text.replace(
        "output_dir: ${paths.output_dir}", "output_dir: ${hydra:runtime.output_dir}"
    )
    head = "# python train.py --config-dir THIS_FOLDER --config-name config\n"
    write_whole(folder / "config.yaml", f"{head}defaults:\n- hydra: default\n- _self_\n{text}")


@rank_zero_only
def show_episode(data: EpisodeDataModule, learner: MetaLearner, path: Path) -> None:
    """A picture of the first episode that is tested, with the learner's predictions."""
    batch = data.episodes(data.test_split, learner.device)(torch.zeros(1, dtype=torch.int64))
    batch = batch.to(next(learner.parameters()).dtype)
    logits = learner.evaluate(batch).after[0]
    draw_episode(batch.task(0), data.drawings.classes, path, logits, ink=data.ink)


def _kept(folder: Path) -> str:
    last = folder / "checkpoints" / "last.ckpt"
    if not last.exists():
        return "no epoch was finished"
    return f"the last good checkpoint is {last} (hydra.run.dir={folder} goes on from there)"
