"""A run folder is where a run goes on: what an earlier one of the same config has left there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from metadraw.errors import InputError

#: What makes no other run of it: where it runs, what it is called and who watches.
_ELSEWHERE = (
    *("defaults", "hydra", "paths", "callbacks", "logger", "task_name", "ckpt_path"),
    *("trainer.accelerator", "trainer.devices", "trainer.strategy", "data.cache_dir"),
)


def refuse_another_config(cfg: DictConfig, folder: Path) -> None:
    """Check that a folder has no run of another config.

    Raises:
        InputError: it has; the first difference is told.
    """
    if not (folder / "config.yaml").is_file():
        return
    before, now = (_flat(OmegaConf.to_container(c)) for c in (_read(folder), _resolved(cfg)))
    for key in [*now, *before]:
        if before.get(key) != now.get(key):
            raise InputError(
                f"{folder} holds a run with {key}={before.get(key)}, this one has "
                f"{key}={now.get(key)}: choose another folder (hydra.run.dir, or hydra.sweep.dir "
                "of a sweep), or remove that one"
            )


def finished(folder: Path) -> dict[str, Any] | None:
    """The contents of ``results.json``, which a run writes last, or none."""
    path = folder / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def last_checkpoint(folder: Path) -> str | None:
    """Where a run that did not finish can be resumed, or none."""
    path = folder / "checkpoints" / "last.ckpt"
    return str(path) if path.is_file() else None


def _read(folder: Path) -> DictConfig:
    found = OmegaConf.load(folder / "config.yaml")
    assert isinstance(found, DictConfig)
    return found


def _resolved(cfg: DictConfig) -> DictConfig:
    """Without what only a running job can resolve."""
    copy = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in _ELSEWHERE])
    OmegaConf.resolve(copy)
    return copy


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` -> ``{"a.b": 1}``, without what does not matter."""
    if key in _ELSEWHERE:
        return {}
    if not isinstance(value, dict):
        return {key: value}
    parts = [_flat(each, f"{key}.{name}".lstrip(".")) for name, each in value.items()]
    return {name: each for part in parts for name, each in part.items()}
