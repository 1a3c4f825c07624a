"""Compares runs on identical tasks, paired by task.

Tasks differ in difficulty far more than runs do. This cancels in the difference of two runs on the
same task, so its interval is much narrower than those of the two means.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import yaml  # a dependency of Hydra
from torch import Tensor

from metadraw.data.cache import checksum
from metadraw.errors import InputError
from metadraw.results.measured import monitored, objective_of
from metadraw.results.metrics import confidence_interval
from metadraw.results.sweep import read_sweep

_CLASSES = ("_target_", "split", "split_seed")  # of data, changed by eval.py with the data set only
_OF_A_RUN = ("config.yaml", "results.json", "tasks.csv", "error.txt", "checkpoints", ".hydra")
_TRAINING = (  # likewise; for meta-training only
    *("seed", "train_samples_per_class", "new_classes"),
    *("shift", "mirror", "rotation", "zoom", "shear"),
)
_SIZES = ("ways", "shots", "queries")
#: Of older runs, which lack these keys.
_OFF = {"rotation": 0.0, "zoom": 0.0, "shear": 0.0, "within_groups": False}


@dataclass(frozen=True)
class Run:
    """A tested run, read from its folder.

    Attributes:
        folder: as given.
        conditions: everything that determines the task of an episode number, by config key.
        drawings: their source, in words.
        query_statistics: ``query``, ``support`` or ``running``.
        metric: the name of the metric.
        percent: whether it is a share.
        values: the metric by episode number.
        overrides: as on the command line, if known.
    """

    folder: Path
    conditions: dict[str, Any]
    drawings: str
    query_statistics: str
    metric: str
    percent: bool
    values: dict[int, float]
    overrides: list[str]


def compare(
    folders: Sequence[str | Path],
    reference: str | Path | None = None,
    metric: str | None = None,
) -> str:
    """A Markdown table of runs: means, and paired differences from the reference, with notes.

    Args:
        folders: of runs of train.py or eval.py, in the order of the table. A sweep's folder stands
            for its finished runs, in the order of its command. Other folders, such as a sweep's
            report, are left out, and a note names them.
        reference: another run folder or one of these; by default the first.
        metric: a metric of each task, such as ``loss`` or ``acc_before``; by default the monitored
            one.

    Raises:
        InputError: fewer than two runs, one that cannot be read, or runs on different tasks.
    """
    paths, left_out = _runs_of([Path(folder) for folder in folders])
    if reference is not None and Path(reference).resolve() not in [p.resolve() for p in paths]:
        paths.insert(0, Path(reference))
    if len(paths) < 2:
        no_runs = f" ({', '.join(left_out)}: no finished run)" if left_out else ""
        raise InputError(f"runs to compare: {len(paths)}{no_runs}: name at least two run folders")
    runs = [read(path, metric) for path in paths]
    resolved = [path.resolve() for path in paths]
    base = 0 if reference is None else resolved.index(Path(reference).resolve())
    for run in runs:
        check_same_tasks(runs[base], run)

    numbers = sorted(set.intersection(*(set(run.values) for run in runs)))
    if len(numbers) < 2:
        raise InputError(
            f"tasks that all runs have: {len(numbers)}: an interval needs at least 2: test the "
            "runs on the same tasks with eval.py, e.g. data.test_batches=100"
        )
    values = torch.tensor(  # [runs, tasks]
        [[run.values[number] for number in numbers] for run in runs], dtype=torch.float64
    )
    metric, percent = runs[base].metric, runs[base].percent
    scale, digits = (100, 2) if percent else (1, 4)
    mixed = len({run.query_statistics for run in runs}) > 1
    table = [
        ["run", f"{metric} (%)" if percent else metric]
        + ["difference (points)" if percent else "difference"]
        + ["query statistics"] * mixed
    ]
    names = labels(runs)
    for index, (label, run) in enumerate(zip(names, runs, strict=True)):
        mean, _ = _mean(values[index] * scale, digits)
        difference, bold = _mean((values[index] - values[base]) * scale, digits, sign="+")
        if index == base:
            difference = "reference"
        elif bold:
            difference = f"**{difference}**"
        table.append([f"`{label}`", mean, difference] + [run.query_statistics] * mixed)
    notes = _notes(runs, base, len(numbers), mixed)
    if reference is None:
        chosen = (
            f"Differences are from `{names[0]}`, the first run; --reference RUN chooses another."
        )
        notes = [chosen, "", *notes]
    if left_out:
        notes += ["", f"Left out, no finished run: {', '.join(left_out)}."]
    return "\n".join([*_markdown(table), "", *notes])


def read(folder: Path, metric: str | None = None) -> Run:
    """A run from its ``results.json``, its ``tasks.csv`` and, if there is one, Hydra's record.

    Args:
        folder: of the run.
        metric: a metric of each task; by default the monitored one.

    Raises:
        InputError: no such folder or files, they are damaged, or no such metric.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder")
    path = folder / "results.json"
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        test, data, drawings = results["test"], results["config"]["data"], results["data"]
        objective, usual = objective_of(results["config"]), monitored(results["config"]).name
        of_training = test["split"] == "train"
        data = _OFF | data
        if of_training:  # its own sizes, if it has any
            own_sizes = {key: data.get(f"train_{key}") for key in (*_SIZES, "tasks_per_batch")}
            data |= {k: size for k, size in own_sizes.items() if size is not None}
        keys = [*_CLASSES, *_SIZES, "within_groups"]
        keys += _TRAINING if of_training else ("eval_seed",)
        if any(isinstance(data.get(key), list) for key in _SIZES):
            # Whether all tasks of a batch have the same ways and shots.
            data = {"vary": "batch"} | data
            keys += ["vary", *(["tasks_per_batch"] if data["vary"] == "batch" else [])]
        conditions = {"split": test["split"]} | {f"data.{key}": data.get(key) for key in keys}
        # The checksum of the drawings; without one, the rest of their provenance.
        known = checksum(drawings)
        conditions["drawings"] = (
            f"sha256 {known[:12]}" if known else json.dumps(drawings, sort_keys=True)
        )
        named = f"{test['split']}_classes"  # a checksum, if the user named the split's classes
        conditions[f"data.{named}"] = drawings.get(named)
        source = drawings.get("source", "of an unknown source")
        statistics = str(test["query_statistics"])
        tasks, means = int(test["tasks"]), {k: float(test[k]) for k in objective.names()}
        path = folder / "tasks.csv"
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        by_metric = {k: {int(row["number"]): float(row[k]) for row in rows} for k in means}
        path = folder / ".hydra" / "overrides.yaml"
        typed = path.read_text(encoding="utf-8") if path.exists() else ""
        overrides = list(map(str, yaml.safe_load(typed) or []))
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} has no {path.name}: not a run folder (leave it out), or an unfinished or "
            "older run (test it again with eval.py "
            f"ckpt_path={folder / 'checkpoints' / 'best.ckpt'})"
        ) from error
    except (
        csv.Error,
        yaml.YAMLError,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        raise InputError(f"{path}: damaged: test the run again with eval.py") from error
    metric = metric or usual
    if metric not in means:
        raise InputError(f"metric={metric}: must be one of {', '.join(means)}")
    values = by_metric[metric]
    for number, value in values.items():
        if not math.isfinite(value):
            raise InputError(f"{folder}: {metric} of task {number} is {value}: no mean to compare")
    if len(values) != tasks or not math.isclose(
        fmean(values.values()), means[metric], rel_tol=1e-6, abs_tol=1e-5
    ):
        raise InputError(
            f"{folder}: tasks.csv does not match the test in results.json, or was cut off: test "
            "the run again with eval.py"
        )
    percent = objective.measured[metric.removesuffix("_before")].percent
    return Run(folder, conditions, source, statistics, metric, percent, values, overrides)


def _runs_of(folders: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Run folders, with sweeps replaced by their runs, and the names of what is left out."""
    runs: list[Path] = []
    left_out: list[str] = []
    for folder in folders:
        if not folder.is_dir() or any((folder / name).exists() for name in _OF_A_RUN):
            runs.append(folder)
        elif any(folder.glob("*/config.yaml")):
            jobs = read_sweep(folder)
            runs += [job.folder for job in jobs if job.results is not None and job.folder]
            left_out += [f"{job.name} ({job.status})" for job in jobs if job.results is None]
        else:
            left_out.append(str(folder))
    return runs, left_out


def labels(runs: Sequence[Run]) -> list[str]:
    """Names that tell runs apart: the overrides that not all share, else the folder's name."""
    names = [run.folder.resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.folder) for run in runs]
    common = set.intersection(*(set(run.overrides) for run in runs))
    typed = [" ".join(o for o in run.overrides if o not in common) for run in runs]
    return [
        (f"{text} ({name})" if typed.count(text) > 1 else text) if text else name
        for text, name in zip(typed, names, strict=True)
    ]


def check_same_tasks(base: Run, run: Run) -> None:
    """Check that episode numbers mean the same tasks in both.

    Raises:
        InputError: they do not.
    """
    for key, value in base.conditions.items():
        if run.conditions[key] != value:
            remedy = (
                "train both with the same one"
                if key in {f"data.{each}" for each in _CLASSES + _TRAINING}
                else "test both on the same tasks with eval.py"
            )
            raise InputError(
                f"not the same tasks: {key}={value} in {base.folder} and {run.conditions[key]} in "
                f"{run.folder}: {remedy}"
            )


def _mean(values: Tensor, digits: int, sign: str = "-") -> tuple[str, bool]:
    """Mean ± half its 95 % interval of ``[T]`` values, and whether that interval excludes zero."""
    mean, half = values.mean().item(), confidence_interval(values).item()
    shown = round(mean, digits) + 0.0  # never -0
    return f"{shown:{sign}.{digits}f} ± {half:.{digits}f}", abs(mean) > half


def _many(number: int | list[int]) -> str:
    """``5``, or ``1 to 10`` of a range."""
    return " to ".join(map(str, number)) if isinstance(number, list) else str(number)


def _markdown(rows: list[list[str]]) -> list[str]:
    rows = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return [
        f"| {' | '.join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))} |"
        for row in rows
    ]


def _notes(runs: Sequence[Run], base: int, tasks: int, mixed: bool) -> list[str]:
    run = runs[base]
    ways, shots, queries = (run.conditions[f"data.{key}"] for key in _SIZES)
    kind = f"{_many(shots)}-shot with {_many(queries)} quer{'y' if queries == 1 else 'ies'}"
    if ways is not None:
        kind = f"{_many(ways)}-way {kind} a class"
    notes = [
        "±: half the 95 % interval over tasks, for differences paired by task; bold where it "
        "excludes zero. It does not cover the variation between training seeds.",
        f"{tasks:,} meta-{run.conditions['split']} tasks, {kind}; query statistics: "
        f"{'see the table' if mixed else run.query_statistics}; data: {run.drawings}, "
        f"{run.conditions['drawings']}.",
    ]
    counts = sorted({len(each.values) for each in runs})
    if counts != [tasks]:
        tested = ", ".join(f"{count:,}" for count in counts)
        notes.append(
            f"Only the {tasks:,} tasks that all runs have are compared; the runs tested {tested}."
        )
    if mixed:
        notes.append(
            "Query statistics differ: with `query`, batch norm sees the whole query set at once "
            "(transductive), with `support` or `running` it does not."
        )
    return [line for note in notes for line in (note, "")][:-1]
