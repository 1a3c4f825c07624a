"""A whole training run, step by step."""

from __future__ import annotations

import logging
import signal
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from metadraw.data.tasks import TaskDataModule
from metadraw.errors import DivergedError, InputError
from metadraw.files import WholeCheckpoints, write_whole
from metadraw.results import record
from metadraw.training import console, loggers, resume
from metadraw.training.checkpoints import BestCheckpoint
from metadraw.training.factory import (
    build,
    check_parameters,
    imitate,
    read_checkpoint,
    start_from,
)
from metadraw.training.learner import MetaLearner
from metadraw.training.options import check_callbacks, check_training

log = logging.getLogger(__name__)
say = rank_zero_only(log.info)  # once, not by every process


def train(cfg: DictConfig) -> dict[str, Any]:
    """Meta-train, meta-validate and meta-test; write everything to ``cfg.paths.output_dir``.

    An unfinished run of the same config in that folder resumes after its last whole epoch; a
    finished one is not repeated.

    The folder then holds ``config.yaml`` (resolved; runs again unchanged), ``metrics.csv``,
    ``curves.png``, ``episode.png``, ``checkpoints/best.ckpt``, ``checkpoints/last.ckpt``,
    ``results.json`` and ``tasks.csv``.

    Returns:
        The contents of ``results.json``.

    Raises:
        InputError: something in the config cannot work, or the folder holds a run of another
            config; raised before training.
        DivergedError: a loss was not finite; the last good checkpoint is kept.
    """
    batches = {split: cfg.data[f"{split}_batches"] for split in ("train", "val", "test")}
    check_training(cfg.trainer, batches, trained=cfg.get("init_from") is not None)
    if cfg.get("tags") is not None and not OmegaConf.is_list(cfg.tags):
        raise InputError(f"tags={cfg.tags}: must be a list, e.g. tags=[{cfg.tags}]")
    if OmegaConf.is_config(cfg.get("notes")):
        raise InputError(f"notes={cfg.notes}: must be text")
    _check_search(cfg)
    folder = Path(cfg.paths.output_dir)
    resume.refuse_another_config(cfg, folder)
    if (results := resume.finished(folder)) is not None:
        say("already finished: %s", folder)
        return results
    git = record.git()
    ckpt_path = cfg.ckpt_path or resume.last_checkpoint(folder)
    init_from = cfg.get("init_from")
    if cfg.get("init_statistics") == "frozen" and init_from is None and ckpt_path is None:
        raise InputError(
            "init_statistics=frozen: has no statistics without init_from: must be batch"
        )
    data, learner = build(cfg, restored=ckpt_path is not None)
    learner.algorithm.check_classes(data.class_count)
    if init_from is not None and ckpt_path is None:
        start_from(init_from, learner)
    if cfg.get("teacher") is not None and cfg.teacher.ckpt_path is not None:
        imitate(cfg.teacher, learner)
    trainer = make_trainer(cfg, learner)
    if learner.cuda_graph is not None and trainer.strategy.root_device.type != "cuda":
        raise InputError(
            f"learner.cuda_graph=true on {trainer.strategy.root_device.type}: needs an NVIDIA GPU "
            "(trainer=gpu), elsewhere it must be false"
        )
    if ckpt_path is not None:
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        checkpoint, given = read_checkpoint(ckpt_path), bool(cfg.ckpt_path)
        check_parameters(ckpt_path, checkpoint, learner)
        say("%s", resume.check(ckpt_path, checkpoint, learner, callbacks, given))

    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    save_config(cfg, folder)
    say("run folder: %s", folder)
    try:
        loggers.start(
            trainer.loggers,
            {**(learner.config or {}), "drawings": data.provenance},
            learner.objective,
        )
        try:
            trainer.fit(learner, data, ckpt_path=ckpt_path, weights_only=True)
        except DivergedError as error:
            raise DivergedError(f"{error}; {_kept(folder)}") from error
        except MisconfigurationException as error:  # about options that only Lightning checks
            raise InputError(" ".join(str(error).split())) from error
        except SystemExit as stopped:  # Lightning's reaction to Ctrl-C and SIGTERM
            # The shell's convention: 128 plus the number of the signal.
            code = 128 + (signal.SIGTERM if trainer.received_sigterm else signal.SIGINT)
            say("stopped in epoch %d: %s", trainer.current_epoch + 1, _kept(folder))
            raise SystemExit(code) from stopped
        progress = ("epochs", "outer_steps", "seconds_with_validation")  # from EpochLines
        done = {name: trainer.callback_metrics[name].item() for name in progress}
        path = chosen_checkpoint(trainer, folder)
        checkpoint = read_checkpoint(path)
        # Not through Trainer.test, which also restores callbacks, and these may restore weights.
        learner.load_state_dict(checkpoint["state_dict"])
        logged = checkpoint["metadraw_metrics"]
        metric = learner.objective.metric
        if f"val/{metric.name}" not in logged:  # saved without validation
            trainer.validate(learner, datamodule=data, verbose=False)
            logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
        test = tested(trainer, learner, data, folder)
        show_episode(data, learner, folder / "episode.png")
        results = record.write(
            folder / "results.json",
            config=learner.config,
            data=data.provenance,
            module=learner,
            test=test,
            val=record.of_split(logged, "val"),
            train=done,
            checkpoint=_within(folder, path),
            init_from=init_from,
            teacher=(cfg.get("teacher") or {}).get("ckpt_path"),
            git=git,
            tags=list(cfg.get("tags") or []),
            notes=cfg.get("notes"),
        )
        loggers.finish(trainer.loggers, results, metric.name, folder)
    finally:
        loggers.close(trainer.loggers)
    say("%s", record.sentence(test, metric))
    say("results: %s", folder / "results.json")
    if (folder / "curves.png").is_file():
        say("curves: %s", folder / "curves.png")
    return results


def _check_search(cfg: DictConfig) -> None:
    """Check that a search, if this is a job of one, optimises in the objective's direction.

    Raises:
        InputError: it optimises in the other direction.
    """
    sweeper = HydraConfig.get().sweeper if HydraConfig.initialized() else {}
    direction, expected = sweeper.get("direction"), f"{cfg.objective.mode}imize"
    given = getattr(direction, "name", direction)  # it may be an enum
    if isinstance(given, str) and given != expected:
        raise InputError(
            f"hydra.sweeper.direction={given}: must be {expected} for "
            f"objective.monitor={cfg.objective.monitor}"
        )


def _within(folder: Path, path: str) -> str:
    """A path relative to a folder, or unchanged if it is outside."""
    return str(Path(path).relative_to(folder)) if Path(path).is_relative_to(folder) else path


def make_trainer(cfg: DictConfig, learner: MetaLearner) -> L.Trainer:
    """The Trainer of a config, with its callbacks and loggers.

    Args:
        cfg: the config; a callback that is null is left out.
        learner: the learner to train.

    Raises:
        InputError: a callback that cannot work.
    """
    console.quiet()
    configs = {key: node for key, node in (cfg.get("callbacks") or {}).items() if node is not None}
    callbacks = {key: _make(f"callbacks.{key}", node) for key, node in configs.items()}
    check_callbacks(configs, callbacks, learner, logger=bool(cfg.get("logger")))
    bars = [callback for callback in callbacks.values() if isinstance(callback, ProgressBar)]
    show = cfg.trainer.get("enable_progress_bar")
    show = bool(bars) if show is None else show
    others = [callback for callback in callbacks.values() if callback not in bars]
    trainer: L.Trainer = _make(
        "trainer",
        cfg.trainer,
        # EpochLines first: others read what it logs.
        callbacks=[console.EpochLines(), *others, *(bars if show else [])],
        enable_progress_bar=show,
        logger=loggers.make(cfg.get("logger"), Path(cfg.paths.output_dir)),
        default_root_dir=cfg.paths.output_dir,
    )
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # the default
        trainer.strategy.checkpoint_io = WholeCheckpoints()
    return trainer


def _make(key: str, node: DictConfig, **more: Any) -> Any:
    """Instantiate a config.

    Raises:
        InputError: it cannot be instantiated.
    """
    try:
        return instantiate(node, _convert_="all", **more)
    except InstantiationException as error:
        cause = error.__cause__ or error
        line = " ".join(str(cause).split()) or type(cause).__name__
        raise InputError(line if isinstance(cause, InputError) else f"{key}: {line}") from error


def chosen_checkpoint(trainer: L.Trainer, folder: Path) -> str:
    """The checkpoint to test: the best, else another callback's, else one saved now."""
    savers = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    savers.sort(key=lambda callback: not isinstance(callback, BestCheckpoint))
    if savers and savers[0].best_model_path:
        return savers[0].best_model_path
    trainer.save_checkpoint(path := str(folder / "checkpoints" / "best.ckpt"))
    return path


@rank_zero_only
def save_config(cfg: DictConfig, folder: Path) -> None:
    """Write ``config.yaml``: every value, resolved, except the run folder, new in each re-run."""
    copy = OmegaConf.masked_copy(cfg, [str(key) for key in cfg])
    copy.paths.output_dir = "RUN_FOLDER"
    OmegaConf.resolve(copy)
    text = OmegaConf.to_yaml(copy).replace("RUN_FOLDER", "${paths.output_dir}")
    text = text.replace(
        "output_dir: ${paths.output_dir}", "output_dir: ${hydra:runtime.output_dir}"
    )
    head = "# python train.py --config-dir THIS_FOLDER --config-name config\n"
    write_whole(folder / "config.yaml", f"{head}defaults:\n- hydra: default\n- _self_\n{text}")


def tested(
    trainer: L.Trainer, learner: MetaLearner, data: TaskDataModule, folder: Path
) -> dict[str, Any]:
    """Test on `TaskDataModule.test_split`, and write ``tasks.csv``.

    Returns:
        The results: means over tasks, interval, conditions and, if there are any, those by group.
    """
    split = data.test_split
    learner.make_room(data.batches["test"] * data.tasks_of(split))
    began = time.perf_counter()
    trainer.test(learner, datamodule=data, verbose=False)
    seconds = time.perf_counter() - began
    rows, objective = learner.evaluated, learner.objective
    groups = data.groups(split, rows[:, 0].long())
    record.write_tasks(folder / "tasks.csv", objective.names(), rows, groups)
    logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
    means = record.of_split(logged, "test")
    return {
        "split": split,
        **means,
        "inner_steps": learner.algorithm.eval_inner_steps if learner.algorithm.inner else 0,
        "query_statistics": learner.query_statistics,
        "seconds": round(seconds, 3),
        "tasks_per_second": round(means["tasks"] / seconds, 1),
        **({"groups": record.by_group(objective, rows, groups)} if groups else {}),
    }


@rank_zero_only
def show_episode(data: TaskDataModule, learner: MetaLearner, path: Path) -> None:
    """Draw the first test episode with the learner's predictions."""
    batch = data.episodes(data.test_split, learner.device)(torch.zeros(1, dtype=torch.int64))
    batch = batch.to(next(learner.parameters()).dtype)
    outcome = learner.evaluate(batch)
    data.picture(batch.task(0), path, *(outputs[0] for outputs in outcome))


def _kept(folder: Path) -> str:
    last = folder / "checkpoints" / "last.ckpt"
    if not last.exists():
        return "no epoch was finished"
    return f"the last good checkpoint is {last} (hydra.run.dir={folder} resumes from it)"
