"""results.json: what a run measured, on what, with what."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from metadraw.files import write_csv, write_whole
from metadraw.objectives import Metric, Objective
from metadraw.results.metrics import confidence_interval

_WHOSE = {"query": "its own", "support": "the support set's", "running": "running"}
_PACKAGES = ("metadraw", "torch", "lightning", "hydra-core", "numpy", "torchmetrics")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    installed = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            installed[package] = "not installed"
    return installed


def git() -> dict[str, Any] | None:
    """The Git commit of metadraw's source, and whether files differ from it; `None` without."""
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
    means: dict[str, Any] = {
        name.removeprefix(f"{split}/"): round(value, 6)  # float32 has no more digits
        for name, value in logged.items()
        if name.startswith(f"{split}/")
    }
    return means | {"tasks": int(means["tasks"])}


def write(
    path: Path,
    *,
    config: Mapping[str, Any] | None,
    data: Mapping[str, Any],
    module: nn.Module,
    **measured: Any,
) -> dict[str, Any]:
    """Write ``results.json``: what was measured, and everything that it depends on.

    Args:
        path: the file.
        config: the run's config.
        data: where the tasks come from, with checksums.
        module: its parameters are counted.
        **measured: the measurements, and the run's tags and notes.

    Returns:
        What was written.
    """
    counts = [(p.numel(), p.requires_grad) for p in module.parameters()]
    results = {
        **measured,
        "algorithm": (config or {}).get("algorithm_name"),
        "parameters": {
            "total": sum(count for count, _ in counts),
            "meta_trained": sum(count for count, trained in counts if trained),
        },
        "data": data,
        "versions": versions(),
        "machine": {
            "platform": platform.platform(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "config": config,
    }
    # The existence of this file marks the run as finished.
    rank_zero_only(write_whole)(path, json.dumps(results, indent=2) + "\n")
    return results


@rank_zero_only
def write_tasks(
    path: Path, names: Sequence[str], evaluated: Tensor, groups: Sequence[str] | None = None
) -> None:
    """Write ``tasks.csv``: the metrics of each task of an evaluation, for paired comparisons.

    Args:
        path: the file.
        names: of the metrics.
        evaluated: ``[tasks, 1 + metrics]`` float64, see `MetaLearner.evaluated`.
        groups: the group of each task, if tasks have any, for a column ``group``.
    """
    rows: list[list[Any]] = [["number", *names, *(["group"] if groups else [])]]
    for row, (number, *values) in enumerate(evaluated.tolist()):
        group = groups[row : row + 1] if groups else []
        rows.append([int(number), *(f"{value:.9g}" for value in values), *group])
    write_csv(path, rows)


def by_group(
    objective: Objective, evaluated: Tensor, groups: Sequence[str]
) -> dict[str, dict[str, float]]:
    """The means of an evaluation's tasks in each group, such as a domain.

    Args:
        objective: the one that defines the metrics.
        evaluated: ``[tasks, 1 + metrics]`` float64, see `MetaLearner.evaluated`.
        groups: the group of each task.

    Returns:
        By group: the means by name, half the 95 % interval of the monitored one, and ``tasks``.
    """
    found = {}
    for group in sorted(set(groups)):
        own = evaluated[[row for row, other in enumerate(groups) if other == group], 1:]
        values = dict(zip(objective.names(), own.T, strict=True))
        means = {name: round(value.mean().item(), 6) for name, value in values.items()}
        monitored = objective.metric.name
        half = round(confidence_interval(values[monitored]).item(), 6)
        found[group] = {**means, f"{monitored}_ci95": half, "tasks": len(own)}
    return found


def sentence(test: Mapping[str, Any], metric: Metric) -> str:
    """An evaluation in one sentence."""
    steps = test["inner_steps"]
    adaptation = f"{steps} inner step{'s' if steps > 1 else ''}" if steps else "no inner loop"
    value, half, before = (test[f"{metric.name}{end}"] for end in ("", "_ci95", "_before"))
    groups = "; ".join(
        f"{name} {metric.show(*(each[f'{metric.name}{end}'] for end in ('', '_ci95')))}"
        for name, each in test.get("groups", {}).items()
    )
    return (
        f"meta-{test['split']} {metric.title} {metric.show(value, half)} "
        f"(95 % interval, {test['tasks']} tasks, {adaptation}, "
        f"query set normalised by {_WHOSE[test['query_statistics']]} statistics), "
        f"before adaptation {metric.show(before)}{f'; {groups}' if groups else ''}"
    )
