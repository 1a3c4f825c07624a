"""What Cloudera's report FF15 published, and which runs have its settings."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from omegaconf import OmegaConf

from metadraw.command.config import compose
from metadraw.command.older import modern

#: The experiment with the report's settings, by drawings per class in meta-training.
EXPERIMENTS = {100: "report_100", 20: "report_20"}
# The parts of a config that determine a result, and the keys in them that may differ from the
# report's settings: random numbers, where drawings come from, and how the result is computed.
_PARTS = (
    *("data", "objective", "model", "algorithm", "optimizer", "scheduler", "learner", "trainer"),
    "callbacks",
)
_FREE = (
    *("data.seed", "data.eval_seed", "data.drawings_seed"),
    *("data.source", "data.path", "data.cache_dir", "data.base_url"),
    *("learner.tasks_per_chunk", "learner.recompute_steps", "learner.map_tasks", "model.fused"),
    "learner.cuda_graph",
    *("trainer.accelerator", "trainer.devices", "trainer.strategy", "trainer.log_every_n_steps"),
    *("callbacks.progress_bar", "callbacks.best.save_on_train_epoch_end"),
)


@cache
def published(samples: int, ways: int, shots: int) -> Mapping[str, float] | None:
    """Accuracy, weighted precision and loss of the published meta-test, from the report's code.

    Args:
        samples: drawings per class in meta-training, 100 or 20.
        ways: 5 or 10.
        shots: 1, 5 or 10.

    Returns:
        By ``accuracy``, ``weighted_precision`` and ``loss``; ``None`` for other numbers.
    """
    return next(iter(_published("meta_test.csv", samples, ways, shots)), None)


@cache
def published_curves(samples: int, ways: int, shots: int) -> Sequence[Mapping[str, float]]:
    """Epoch, ``val_acc``, ``val_loss`` and more for each published epoch; empty if none."""
    return _published("curves.csv", samples, ways, shots)


def setting_of(config: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """Samples, ways and shots of a run with all of the report's settings, else ``None``.

    All settings are those of ``experiment=report_100`` or ``report_20`` with the run's ways and
    shots. Settings that are newer than the run do not count.

    Args:
        config: of a run, from its ``config.yaml``; empty for a run that has not begun.
    """
    config = modern(config)
    data = config.get("data") or {}
    ways, shots = data.get("ways", 0), data.get("shots", 0)
    run = _flat({part: config.get(part) for part in _PARTS})
    for samples in EXPERIMENTS:
        if published(samples, ways, shots):
            expected = _expected(samples, ways, shots)
            if all(key in expected and expected[key] == value for key, value in run.items()):
                return samples, ways, shots
    return None


@cache
def _expected(samples: int, ways: int, shots: int) -> dict[str, Any]:
    """The report's settings by dotted key."""
    here = "paths.output_dir=RUN_FOLDER"
    typed = [f"experiment={EXPERIMENTS[samples]}", f"data.ways={ways}", f"data.shots={shots}"]
    cfg = OmegaConf.masked_copy(compose(*typed, here), [*_PARTS, "seed", "paths"])
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    return _flat({part: config[part] for part in _PARTS if part in config})


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` -> ``{"a.b": 1}``, without what the report leaves open."""
    if key in _FREE or (value is None and "." not in key):
        return {}
    if isinstance(value, Mapping):
        parts = [_flat(each, f"{key}.{name}".lstrip(".")) for name, each in value.items()]
        return {name: each for part in parts for name, each in part.items()}
    if isinstance(value, str):  # a config refers to the run's own folder
        value = value.replace("${paths.output_dir}", "RUN_FOLDER")
    return {key: value}


def _published(file: str, *setting: int) -> list[Mapping[str, float]]:
    with (files("metadraw.results") / "cloudera" / file).open(encoding="utf-8") as lines:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(lines)]
    keys = ("samples_per_class", "ways", "shots")
    return [row for row in rows if tuple(row[key] for key in keys) == setting]
