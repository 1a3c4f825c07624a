"""Resuming a run: in its own folder, or from a checkpoint with other settings."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning import Callback
from lightning.pytorch.callbacks import EarlyStopping, Timer
from omegaconf import DictConfig, OmegaConf

from metadraw.command.config import CONFIGS, compose
from metadraw.command.older import modern
from metadraw.errors import InputError
from metadraw.training import optimizers

if TYPE_CHECKING:
    from metadraw.training.learner import MetaLearner

#: Keys that may differ within one run: where it runs, its names and its trackers.
_ELSEWHERE = (
    *("defaults", "hydra", "paths", "callbacks", "logger", "task_name", "ckpt_path"),
    *("algorithm_name", "tags", "notes"),
    *("trainer.accelerator", "trainer.devices", "trainer.strategy", "data.cache_dir"),
    "data.drawings.cache_dir",
    "learner.cuda_graph",
)
#: How keys begin that decide how a checkpoint is evaluated, except `_TRAINING`, used in
#: meta-training only.
_EVALUATION = ("data.", "model.", "algorithm.", "learner.", "trainer.precision")
_TRAINING = (
    *("data.train_", "data.seed", "data.new_classes", "data.test_batches"),
    *("data.shift", "data.mirror", "data.rotation", "data.zoom", "data.shear"),
    *("algorithm.inner_steps", "algorithm.first_order"),
    *("learner.recompute_steps", "learner.tasks_per_chunk"),
    *("learner.gradient_clip_norm", "learner.map_tasks", "model.fused"),
)


def refuse_another_config(cfg: DictConfig, folder: Path) -> None:
    """Check that a folder has no run of another config.

    Raises:
        InputError: it has; the error names the first difference.
    """
    if not (folder / "config.yaml").is_file():
        return
    before, now = modern(_plain(_read(folder))), _plain(_resolved(cfg))
    for key in sorted(_changed(before, now)):
        was, typed = (_flat(config).get(key) for config in (before, now))
        raise InputError(
            f"{folder} holds a run with {key}={was}, this one has {key}={typed}: choose another "
            "folder (hydra.run.dir, or hydra.sweep.dir of a sweep), or remove that one"
        )


def finished(folder: Path) -> dict[str, Any] | None:
    """The contents of ``results.json``, which a run writes last, or `None`."""
    path = folder / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def last_checkpoint(folder: Path) -> str | None:
    """The checkpoint that an unfinished run resumes from, or `None`."""
    path = folder / "checkpoints" / "last.ckpt"
    return str(path) if path.is_file() else None


def check(
    path: str,
    checkpoint: dict[str, Any],
    learner: MetaLearner,
    callbacks: Iterable[Callback],
    given: bool,
) -> str:
    """Check that a run can resume from a checkpoint with the current config.

    Args:
        path: of the checkpoint.
        checkpoint: its contents, which `carry_over` changes.
        learner: with the config of the resumed run.
        callbacks: of the resumed run.
        given: whether the user named the checkpoint. Otherwise a killed run has left it in its
            folder, and there may be nothing left to train.

    Returns:
        One line for people: how far the run is, and which settings have changed.

    Raises:
        InputError: it cannot.
    """
    if "optimizer_states" not in checkpoint:
        raise InputError(
            f"ckpt_path={path}: holds the weights alone, because of save_weights_only=true: a run "
            "resumes from a full checkpoint, e.g. last.ckpt"
        )
    progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
    if progress["processed"] < progress["started"]:
        raise InputError(
            f"ckpt_path={path}: was saved in the middle of epoch {progress['started']}: a run "
            "resumes from a checkpoint that was saved between epochs, e.g. last.ckpt"
        )
    before, now = _flat(checkpoint["metadraw_config"]), _flat(learner.config)
    epochs, steps = epochs_of(checkpoint), checkpoint["global_step"]
    for key, done in {"max_epochs": epochs, "max_steps": steps}.items():
        most = now.get(f"trainer.{key}", -1)
        if given and -1 < most <= done:
            raise InputError(
                f"trainer.{key}={most}: nothing is left to train, ckpt_path={path} already has "
                f"{done} {key.removeprefix('max_')}: must be more, e.g. trainer.{key}={2 * done}"
            )
    for timer in (c for c in callbacks if isinstance(c, Timer)):
        state = checkpoint["callbacks"].get(timer.state_key, {"time_elapsed": {}})
        took, most = state["time_elapsed"].get("train", 0.0), timer.time_remaining()
        if given and most is not None and most <= took:
            raise InputError(
                f"trainer.max_time: is {most:.0f} s for the whole run, nothing is left to train: "
                f"ckpt_path={path} already took {took:.0f} s"
            )
    was, typed = (config.get("optimizer._target_") for config in (before, now))
    if was != typed:
        raise InputError(
            f"optimizer._target_={typed}: ckpt_path={path} has the state of {was}, which another "
            f"optimiser cannot use: must be {was}"
        )
    changed = _changed(checkpoint["metadraw_config"], learner.config or {})
    if "algorithm.inner_lr" in changed and any(
        name.startswith("algorithm.inner_lr") for name in checkpoint["state_dict"]
    ):
        raise InputError(
            f"algorithm.inner_lr={now['algorithm.inner_lr']}: is the initial value of learned "
            f"rates, but ckpt_path={path} has learned them already, from "
            f"{before['algorithm.inner_lr']}"
        )
    carry_over(checkpoint, learner, callbacks)  # as when the checkpoint is restored
    new = "; ".join(f"{key}={now.get(key)}, was {before.get(key)}" for key in sorted(changed))
    return f"resumed from {path} after epoch {epochs}" + (f", now with {new}" if new else "")


def carry_over(
    checkpoint: dict[str, Any], learner: MetaLearner, callbacks: Iterable[Callback]
) -> None:
    """Make a checkpoint, before it is restored, follow the config of the resumed run.

    Learned values stay: parameters, the optimiser's moments, what callbacks have counted. Settings
    follow the current config. If checkpoints are now evaluated differently, the best score so far
    is dropped, because scores are no longer comparable.

    Args:
        checkpoint: of a run.
        learner: with the config of the resumed run.
        callbacks: of the resumed run.

    Raises:
        InputError: the optimiser's state does not fit its new settings.
    """
    changed = _changed(checkpoint["metadraw_config"], learner.config or {})
    optimizers.carry_over(
        checkpoint,
        learner.outer_parameters(),
        learner.make_optimizer,
        learner.make_scheduler,
        changed=changed,
        epochs=epochs_of(checkpoint),
    )
    states = checkpoint["callbacks"]
    comparable = not any(k.startswith(_EVALUATION) and not k.startswith(_TRAINING) for k in changed)
    for callback in callbacks:
        if getattr(callback, "monitor", None) is not None and not comparable:
            states.pop(callback.state_key, None)
        if isinstance(callback, EarlyStopping) and callback.state_key in states:
            states[callback.state_key]["patience"] = callback.patience


def epochs_of(checkpoint: dict[str, Any]) -> int:
    """How many epochs a checkpoint has completed."""
    return checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> set[str]:
    """Keys whose values differ, except keys that an older metadraw lacked, at their default."""
    saved, flat = _flat(before), _flat(now)
    return {
        key
        for key in saved.keys() | flat.keys()
        if saved.get(key) != flat.get(key)
        and not (key not in saved and flat[key] in _defaults(key, before))
    }


def _defaults(key: str, saved: Mapping[str, Any]) -> list[Any]:
    """The defaults of a key in the shipped choices that a config may come from."""
    config = OmegaConf.create(dict(saved))
    group = key.partition(".")[0]
    shipped = _shipped(group, OmegaConf.select(config, f"{group}._target_"))
    # Merged under the saved values, because a default may follow another key.
    filled = [_resolved(DictConfig(OmegaConf.merge(choice, config))) for choice in shipped]
    return [_flat(_plain(choice)).get(key) for choice in filled]


@functools.cache
def _shipped(group: str, target: str | None) -> list[DictConfig]:
    """The shipped config with each choice of a group that has this target."""
    choices = [f"{group}={path.stem}" for path in sorted((CONFIGS / group).glob("*.yaml"))]
    composed = [compose(choice) for choice in choices] or [compose()]
    for config in composed:
        OmegaConf.set_struct(config, False)
    return [c for c in composed if OmegaConf.select(c, f"{group}._target_") == target]


def _read(folder: Path) -> DictConfig:
    cfg = OmegaConf.load(folder / "config.yaml")
    assert isinstance(cfg, DictConfig)
    return cfg


def _plain(cfg: DictConfig) -> dict[str, Any]:
    """The values of a config as saved."""
    plain = OmegaConf.to_container(cfg)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _resolved(cfg: DictConfig) -> DictConfig:
    """A config, resolved, without the keys that only a running job can resolve."""
    copy = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in _ELSEWHERE])
    OmegaConf.resolve(copy)
    return copy


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` -> ``{"a.b": 1}``, without `_ELSEWHERE`."""
    if key in _ELSEWHERE:
        return {}
    if not isinstance(value, dict):
        return {key: value}
    parts = [_flat(each, f"{key}.{name}".lstrip(".")) for name, each in value.items()]
    return {name: each for part in parts for name, each in part.items()}
