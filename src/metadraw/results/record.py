"""results.json: what a run measured, on what, with what."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from metadraw.data.datamodule import EpisodeDataModule
from metadraw.files import write_whole
from metadraw.results import metrics
from metadraw.training.learner import MetaLearner

_WHOSE = {"query": "its own", "support": "the support set's", "running": "running"}
_PACKAGES = ("metadraw", "torch", "lightning", "hydra-core", "numpy", "torchmetrics")


def versions() -> dict[str, str]:
    """Versions of Python and of what a result depends on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def git() -> dict[str, Any] | None:
    """The Git commit of metadraw's source, and whether a file differs from it; None without Git."""
    command = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit, changes = (
            subprocess.run([*command, *what], capture_output=True, text=True, check=True).stdout
            for what in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit.strip(), "dirty": bool(changes.strip())}


def of_split(logged: Mapping[str, float], split: str) -> dict[str, Any]:
    """What was logged for a split, by name without the split."""
    found: dict[str, Any] = {
        name.removeprefix(f"{split}/"): round(value, 6)  # float32 has no more digits
        for name, value in logged.items()
        if name.startswith(f"{split}/")
    }
    return found | {"tasks": int(found["tasks"])}


def evaluation(
    trainer: L.Trainer, learner: MetaLearner, split: str, seconds: float
) -> dict[str, Any]:
    """The results of ``trainer.test``, just run: means over tasks, interval, conditions."""
    logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
    found = of_split(logged, "test")
    return {
        "split": split,
        **found,
        "inner_steps": learner.algorithm.eval_inner_steps if learner.algorithm.inner_loop else 0,
        "query_statistics": learner.query_statistics,
        "seconds": round(seconds, 3),
        "tasks_per_second": round(found["tasks"] / seconds, 1),
    }


def write(
    path: Path, data: EpisodeDataModule, learner: MetaLearner, **measured: Any
) -> dict[str, Any]:
    """Write ``results.json``: what was measured, and everything that it depends on.

    Args:
        path: the file.
        data: whose drawings' source and checksum are told.
        learner: whose config is told.
        **measured: what was measured, and what the run was called.

    Returns:
        What was written.
    """
    counts = [(p.numel(), p.requires_grad) for p in learner.parameters()]
    results = {
        **measured,
        "algorithm": (learner.config or {}).get("algorithm_name"),
        "parameters": {
            "total": sum(count for count, _ in counts),
            "meta_trained": sum(count for count, trained in counts if trained),
        },
        "data": data.drawings.provenance,
        "versions": versions(),
        "machine": {
            "platform": platform.platform(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "config": learner.config,
    }
    # That this file is there says that the run is finished.
    rank_zero_only(write_whole)(path, json.dumps(results, indent=2) + "\n")
    return results


@rank_zero_only
def write_tasks(path: Path, evaluated: Tensor) -> None:
    """Write ``tasks.csv``: what each task of an evaluation gave, for paired comparisons.

    Args:
        path: the file.
        evaluated: ``[tasks, 1 + metrics]`` float64, see `MetaLearner.evaluated`.
    """
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["number", *metrics.NAMES])
    for number, *values in evaluated.tolist():
        rows.writerow([int(number), *(f"{value:.9g}" for value in values)])
    write_whole(path, text.getvalue())


def sentence(test: dict[str, Any]) -> str:
    """An evaluation in one line for people."""
    steps = test["inner_steps"]
    told = f"{steps} inner step{'s' if steps > 1 else ''}" if steps else "no inner loop"
    return (
        f"meta-{test['split']} accuracy {100 * test['acc']:.2f} ± {100 * test['acc_ci95']:.2f} % "
        f"(95 % interval, {test['tasks']} tasks, {told}, "
        f"query set normalised by {_WHOSE[test['query_statistics']]} statistics), "
        f"before adaptation {100 * test['acc_before']:.2f} %"
    )
