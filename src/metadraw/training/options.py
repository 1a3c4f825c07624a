"""Which of Lightning's options cannot work with meta-gradients, and what to use instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lightning import Callback
from lightning.pytorch import callbacks as shipped
from omegaconf import DictConfig

from metadraw.errors import InputError, is_whole
from metadraw.training.checkpoints import BestCheckpoint
from metadraw.training.learner import MetaLearner

Wrong = Callable[[Any], bool]


def _given(value: Any) -> bool:
    return value is not None


#: Options of the Trainer: which values are refused, and why or what to use instead.
_TRAINER: dict[str, tuple[Wrong, str]] = {
    "logger": (_given, "use logger=wandb or logger=tensorboard"),
    "callbacks": (_given, "use +callbacks.NAME._target_=..."),
    "default_root_dir": (_given, "use hydra.run.dir"),
    "gradient_clip_val": (
        _given,
        "the outer step is manual: use learner.gradient_clip_norm",
    ),
    "gradient_clip_algorithm": (
        _given,
        "the outer step is manual: use learner.gradient_clip_norm",
    ),
    "accumulate_grad_batches": (
        lambda value: value != 1,
        "the outer step is manual: use a larger data.tasks_per_batch, with "
        "learner.tasks_per_chunk for the same memory",
    ),
    "precision": (
        lambda value: str(value) in ("16", "16-mixed", "16-true"),
        "half precision needs loss scaling, which meta-gradients do not pass through: use "
        "bf16-mixed, 32-true or 64-true",
    ),
    "fast_dev_run": (
        bool,
        "keeps no checkpoint to test: use trainer.max_epochs=1 data.train_batches=1 "
        "data.val_batches=1 data.test_batches=1",
    ),
    "barebones": (bool, "logs no metric to choose a checkpoint by: must be false"),
    "enable_checkpointing": (
        lambda value: value is False,
        "keeps no checkpoint to test: must be true",
    ),
    "inference_mode": (bool, "the inner loop needs gradients in evaluation too: must be false"),
    "use_distributed_sampler": (
        bool,
        "episodes divide themselves among processes: must be false",
    ),
    "sync_batchnorm": (bool, "each task is normalised by its own statistics: must be false"),
    "strategy": (
        lambda value: str(value).startswith(("fsdp", "deepspeed", "xla_fsdp", "model_parallel")),
        "meta-gradients need unsharded parameters: use ddp",
    ),
    "max_time": (
        lambda value: isinstance(value, str) and not value.strip("0:"),
        "leaves no time for a step: must be above 0",
    ),
    "log_every_n_steps": (
        lambda value: _given(value) and not is_whole(value, 0),
        "must be a whole number, 0 to look at the end of an epoch only",
    ),
    "num_sanity_val_steps": (
        lambda value: _given(value) and not is_whole(value, -1),
        "must be a whole number, -1 for all of meta-validation",
    ),
    "limit_train_batches": (lambda value: value == 0, "must be above 0: use data.train_batches=1"),
    "limit_val_batches": (lambda value: value == 0, "must be above 0: use data.val_batches=1"),
    "limit_test_batches": (lambda value: value == 0, "must be above 0: use data.test_batches=1"),
}

#: Options of every callback that saves checkpoints.
_CHECKPOINTS: dict[str, tuple[Wrong, str]] = {
    "train_time_interval": (
        _given,
        "Lightning saves by time only in automatic optimisation: use every_n_epochs",
    ),
    "filename": (
        lambda value: _given(value) and not isinstance(value, str),
        "must be text, or null",
    ),
}
#: Options of those that decide which weights are tested, and where a run resumes.
_BEST: dict[str, tuple[Wrong, str]] = {
    "save_top_k": (lambda value: value == 0, "keeps no checkpoint to test: must not be 0"),
    "save_last": (bool, "callbacks.last keeps last.ckpt: must be false"),
    "save_on_exception": (
        bool,
        "would replace the best checkpoint with one that was not validated: must be false",
    ),
    "every_n_train_steps": (
        bool,
        "the best checkpoint is chosen when it is validated: use trainer.val_check_interval",
    ),
}
_LAST: dict[str, tuple[Wrong, str]] = {
    "save_on_exception": (bool, "a run is resumed between epochs: must be false"),
    "every_n_train_steps": (bool, "a run is resumed between epochs: use every_n_epochs"),
}

#: Callbacks that need automatic optimisation, or change the contents of a checkpoint.
_CALLBACKS: dict[type[Callback], str] = {
    shipped.GradientAccumulationScheduler: "the outer step is manual: use a larger "
    "data.tasks_per_batch, with learner.tasks_per_chunk for the same memory",
    shipped.LearningRateFinder: "the outer step is manual: use sweep=optuna",
    shipped.BatchSizeFinder: "the number of tasks belongs to the method: set "
    "data.tasks_per_batch, with learner.tasks_per_chunk for less memory",
    shipped.StochasticWeightAveraging: "averages after the last checkpoint, so that the average "
    "would never be tested: use lightning.pytorch.callbacks.EMAWeightAveraging",
    shipped.ModelPruning: "renames the network's parameters, which inner loops find by name",
    shipped.BaseFinetuning: "needs automatic optimisation to freeze layers: use algorithm=anil or "
    "requires_grad=False in the network",
    shipped.SpikeDetection: "needs the loss of automatic optimisation: a non-finite loss stops a "
    "run without it",
    shipped.ThroughputMonitor: "measures batches of samples, but an outer step has tasks: see "
    "seconds in results.json",
}
_LOGGING = (shipped.LearningRateMonitor, shipped.DeviceStatsMonitor)


def check_trainer(trainer: DictConfig, batches: Mapping[str, int]) -> None:
    """Check that the Trainer's options can work, in training or evaluation.

    Args:
        trainer: its config.
        batches: how many batches the data have, by split.

    Raises:
        InputError: an option cannot work; the error says what to use instead.
    """
    _check("trainer", trainer, _TRAINER)
    for split, count in batches.items():
        if isinstance(count, int) and batches_of(trainer, split, count) < 1:
            option, limit = _limit(trainer, split)
            raise InputError(
                f"trainer.{option}={limit}: leaves none of data.{split}_batches={count}: must be "
                "more, or a whole number"
            )


def check_training(trainer: DictConfig, batches: Mapping[str, int], trained: bool = False) -> None:
    """Check that the Trainer's options lead to a checkpoint that can be tested.

    Args:
        trainer: its config.
        batches: how many batches the data have, by split.
        trained: the network already is, so that no epoch is needed.

    Raises:
        InputError: there is no whole epoch, or no meta-validation in it; see also `check_trainer`.
    """
    check_trainer(trainer, batches)
    epochs = trainer.get("max_epochs")
    if epochs == 0 and trained and not isinstance(epochs, bool):
        return
    if not is_whole(epochs, 1):
        raise InputError(
            f"trainer.max_epochs={epochs}: must be at least 1, a whole number, or with init_from "
            "0, to test the network as it is"
        )
    if (steps := trainer.get("max_steps", -1)) != -1 and not is_whole(steps, 1):
        raise InputError(f"trainer.max_steps={steps}: must be at least 1, or -1 for no limit")
    every = trainer.get("check_val_every_n_epoch", 1)
    if every is not None and not (is_whole(every, 1) and every <= epochs):
        raise InputError(
            f"trainer.check_val_every_n_epoch={every}: must be at least 1 and at most "
            f"trainer.max_epochs={epochs}: meta-validation chooses the checkpoint"
        )
    epoch = batches_of(trainer, "train", batches["train"])
    between = trainer.get("val_check_interval")
    if isinstance(between, int) and not (
        is_whole(between, 1) and (between <= epoch or every is None)
    ):
        raise InputError(
            f"trainer.val_check_interval={between}: must be at least 1 and at most the {epoch} "
            "batches of an epoch, or any number with trainer.check_val_every_n_epoch=null"
        )


def batches_of(trainer: Mapping[str, Any], split: str, batches: int) -> int:
    """How many of the data's batches of a split the Trainer's options leave."""
    _, limit = _limit(trainer, split)
    if limit is None:
        return batches
    return min(limit, batches) if isinstance(limit, int) else int(limit * batches)


def _limit(trainer: Mapping[str, Any], split: str) -> tuple[str, int | float | None]:
    """The option that limits the batches of a split, and its value."""
    overfit = trainer.get("overfit_batches") if split != "test" else None
    option = "overfit_batches" if overfit else f"limit_{split}_batches"
    return option, trainer.get(option)


def check_callbacks(
    configs: Mapping[str, Any], made: Mapping[str, Callback], learner: MetaLearner, logger: bool
) -> None:
    """Check that the callbacks can work, and that what they monitor is logged.

    Args:
        configs: their configs by name.
        made: the callbacks by the same names.
        learner: the learner that they will watch.
        logger: whether there is a logger.

    Raises:
        InputError: a callback cannot work; the error says what to use instead.
    """
    names = learner.logged_names()
    own = all(type(c).__module__.startswith(("lightning.", "metadraw.")) for c in made.values())
    for name, callback in made.items():
        key, config = f"callbacks.{name}", configs[name]
        for kind, instead in _CALLBACKS.items():
            if isinstance(callback, kind):
                raise InputError(f"{key}: {type(callback).__name__} {instead}")
        if isinstance(callback, _LOGGING) and not logger:
            raise InputError(
                f"{key}: {type(callback).__name__} writes to a logger: needs one, e.g. "
                "logger=tensorboard"
            )
        if isinstance(callback, shipped.ModelCheckpoint):
            _check(key, config, _CHECKPOINTS)
            if isinstance(callback, BestCheckpoint) or callback.monitor is not None:
                _check(key, config, _BEST)
            elif name == "last":
                _check(key, config, _LAST)
        monitor = getattr(callback, "monitor", None)
        if monitor is None:
            continue
        if own and monitor not in names:  # a user's callback may log further values
            raise InputError(
                f"{key}.monitor={monitor}: nothing of that name is logged: must be one of "
                f"{', '.join(names)}"
            )
        best, mode = _better(monitor, learner), getattr(callback, "mode", None)
        if best and mode and mode != best:
            raise InputError(
                f"{key}.mode={mode}: the best {monitor} is the "
                f"{'highest' if best == 'max' else 'lowest'}: must be {best}"
            )


def _better(monitor: str, learner: MetaLearner) -> str | None:
    """The ``mode`` of the monitored value, if it is a metric."""
    name = monitor.rpartition("/")[2].removesuffix("_before")
    metric = learner.objective.measured.get(name)
    return metric.mode if metric else None


def _check(key: str, config: Mapping[str, Any], table: Mapping[str, tuple[Wrong, str]]) -> None:
    for option, (wrong, instead) in table.items():
        value = config.get(option)
        if option in config and wrong(value):
            raise InputError(f"{key}.{option}={value}: {instead}")
