"""A sweep in one page: a table of meta-test results, curves, everything as CSV.

Beside what Cloudera's report FF15 published, where a run has one of its twelve settings.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from metadraw.errors import InputError
from metadraw.figures import Line, draw_sweep
from metadraw.names import name_of
from metadraw.sweep import Job, read_sweep

_SEED = "seed"


@dataclass(frozen=True)
class Cell:
    """Jobs that differ in their seed alone."""

    row: tuple[str, ...]
    column: str
    jobs: list[Job]

    @property
    def finished(self) -> list[Job]:
        """Those with a meta-test."""
        return [job for job in self.jobs if job.results is not None]


def report(folder: Path, to: Path, rows: Sequence[str] = (), column: str | None = None) -> str:
    """Write ``report.md``, ``runs.csv``, ``curves.csv``, and curves as PNG and SVG.

    Args:
        folder: of a sweep, which may still be running.
        to: the folder to write to.
        rows: keys whose values make the table's rows, and a figure each; if none, all that
            differ between runs, but the column's and the seed.
        column: the key whose values make the table's columns, and a curve each; if none, the last
            of those that differ.

    Returns:
        The contents of ``report.md``.

    Raises:
        InputError: nothing to report, a damaged file, or a key that was not overridden.
    """
    jobs = read_sweep(folder)
    varied = _varied(jobs)
    for key in (*rows, *([column] if column else [])):
        if key not in {key for job in jobs for key in job.overrides}:
            raise InputError(
                f"{key}: was not overridden in {folder}: choose of {', '.join(varied) or 'none'}"
            )
    column = column or next((key for key in reversed(varied) if key not in rows), _SEED)
    rows = list(rows) or [key for key in varied if key != column]
    cells = _cells(jobs, rows, column)

    to.mkdir(parents=True, exist_ok=True)
    _write_csv(to / "runs.csv", [_run_row(job) for job in jobs])
    _write_csv(to / "curves.csv", [_named(job) | row for job in jobs for row in job.curves])
    pictures = []
    for row, of_row in groupby(cells, key=lambda cell: cell.row):
        lines = [line for cell in of_row for line in _lines(cell, column)]
        if not lines:
            continue
        title = ", ".join(f"{key} {value}" for key, value in zip(rows, row, strict=True))
        name = "curves__" + name_of(row) if row else "curves"
        figure = draw_sweep(lines, title)
        figure.savefig(to / f"{name}.png", dpi=150)
        figure.savefig(to / f"{name}.svg")
        pictures.append(f"![{title or 'curves'}]({name}.png)")
    episode = next((job.folder / "episode.png" for job in jobs if job.results and job.folder), None)
    if episode and episode.is_file():
        shutil.copyfile(episode, to / "episode.png")
        pictures.append("![A meta-test episode with predictions](episode.png)")

    page = [*_table(cells, rows, column), "", *_notes(jobs, cells, varied), "", *pictures]
    text = "\n".join(page).rstrip() + "\n"
    (to / "report.md").write_text(text, encoding="utf-8")
    return text


@cache
def published(samples: int, ways: int, shots: int) -> Mapping[str, float] | None:
    """Accuracy, weighted precision and loss of the published meta-test, of the report's code.

    Args:
        samples: drawings a class in meta-training, 100 or 20.
        ways: 5 or 10.
        shots: 1, 5 or 10.

    Returns:
        By ``accuracy``, ``weighted_precision`` and ``loss``; none for other numbers.
    """
    return next(iter(_published("meta_test.csv", samples, ways, shots)), None)


@cache
def published_curves(samples: int, ways: int, shots: int) -> Sequence[Mapping[str, float]]:
    """Epoch, ``val_acc``, ``val_loss`` and more of each published epoch; empty if there is none."""
    return _published("curves.csv", samples, ways, shots)


def _published(file: str, *setting: int) -> list[Mapping[str, float]]:
    with (files("metadraw") / "published" / file).open(encoding="utf-8") as lines:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(lines)]
    keys = ("samples_per_class", "ways", "shots")
    return [row for row in rows if tuple(row[key] for key in keys) == setting]


def _setting(job: Job) -> tuple[int, int, int] | None:
    """Samples, ways and shots, if the run is on the report's data with as many queries."""
    data = job.config.get("data", {})
    if data.get("_target_") != "metadraw.data.quickdraw.QuickDraw":
        return None
    if data["queries"] != data["shots"]:
        return None
    samples = data["train_samples_per_class"] or data["samples_per_class"]
    return samples, data["ways"], data["shots"]


def _varied(jobs: Sequence[Job]) -> list[str]:
    """Keys that were overridden with different values, in the order in which they were typed."""
    keys = dict.fromkeys(key for job in jobs for key in job.overrides)
    return [k for k in keys if k != _SEED and len({job.overrides.get(k) for job in jobs}) > 1]


def _cells(jobs: Sequence[Job], rows: Sequence[str], column: str) -> list[Cell]:
    found: dict[tuple[tuple[str, ...], str], list[Job]] = {}
    for job in jobs:
        row = tuple(job.overrides.get(key, "default") for key in rows)
        found.setdefault((row, job.overrides.get(column, "default")), []).append(job)
    order = list(dict.fromkeys(row for row, _ in found))
    keys = sorted(found, key=lambda key: order.index(key[0]))
    return [Cell(*key, found[key]) for key in keys]


def _table(cells: Sequence[Cell], rows: Sequence[str], column: str) -> list[str]:
    columns = list(dict.fromkeys(cell.column for cell in cells))
    by_row: dict[tuple[str, ...], dict[str, str]] = {}
    for cell in cells:
        by_row.setdefault(cell.row, {})[cell.column] = _accuracy(cell)
    head = [*rows, *(f"{column}={value}" for value in columns)]
    lines = [head, ["---"] * len(head)]
    lines += [[*row, *(cell.get(c, "") for c in columns)] for row, cell in by_row.items()]
    return [f"| {' | '.join(line)} |" for line in lines]


def _accuracy(cell: Cell) -> str:
    """Meta-test accuracy in per cent, or how far the runs are; the published one in brackets."""
    tests = [job.results["test"] for job in cell.finished if job.results]
    if not tests:
        text = "; ".join(dict.fromkeys(job.status.partition(":")[0] for job in cell.jobs))
    elif len(tests) == 1:
        text = f"{100 * tests[0]['acc']:.1f} ± {100 * tests[0]['acc_ci95']:.1f}"
    else:
        values = [100 * test["acc"] for test in tests]
        text = f"{fmean(values):.1f}, sd {stdev(values):.1f} of {len(tests)} seeds"
    if tests and len(tests) < len(cell.jobs):
        text += f", {len(tests)} of {len(cell.jobs)} finished"
    setting = next((s for s in map(_setting, cell.jobs) if s), None)
    known = published(*setting) if setting else None
    return f"{text} ({100 * known['accuracy']:.1f})" if known else text


def _notes(jobs: Sequence[Job], cells: Sequence[Cell], varied: Sequence[str]) -> list[str]:
    notes = ["Meta-test accuracy in per cent, ± half its 95 % interval over tasks."]
    if any(len(cell.finished) > 1 for cell in cells):
        notes.append("Several seeds: their mean and standard deviation.")
    settings = {setting for job in jobs if (setting := _setting(job))}
    if any(published(*setting) for setting in settings):
        notes.append("In brackets, and faint in the figures: what the report's runs published.")
    sources = {
        f"{job.results['data'].get('source')}, {job.results['data'].get('sha256', '')[:12]}"
        for job in jobs
        if job.results
    }
    if sources:
        notes.append(f"Drawings: {'; '.join(sorted(sources))}.")
    rest = []
    for job in jobs:
        told = {key: value for key, value in job.overrides.items() if key in (*varied, _SEED)}
        name = " ".join(f"{key}={value}" for key, value in told.items()) or "a run"
        rest += [f"- {name}: {job.status}"] if job.results is None else []
    finished = len(jobs) - len(rest)
    lines = [" ".join(notes), "", f"{finished} of {len(jobs)} runs are finished."]
    return [*lines, *([""] if rest else []), *rest]


def _lines(cell: Cell, column: str) -> list[Line]:
    """The validation curves of a cell, one a seed, and the published one behind them."""
    begun = [job for job in cell.jobs if job.curves]
    if not begun:
        return []
    short = column.rpartition(".")[2]
    label = f"{short} {cell.column}"
    found = [
        Line(
            label if position == 0 else None,
            cell.column,
            [(row["epoch"], row["val/acc"], row["val/loss"]) for row in job.curves],
        )
        for position, job in enumerate(begun)
    ]
    setting = _setting(begun[0])
    rows = published_curves(*setting) if setting else ()
    behind = [(row["epoch"], row["val_acc"], row["val_loss"]) for row in rows]
    return [*found, *([Line(None, cell.column, behind, faint=True)] if behind else [])]


def _named(job: Job) -> dict[str, Any]:
    return {"run": job.name, **job.overrides}


def _run_row(job: Job) -> dict[str, Any]:
    """The same columns for every run, empty where there is nothing yet."""
    results, setting = job.results or {}, _setting(job)
    test, known = results.get("test", {}), (published(*setting) if setting else None) or {}
    row = _named(job) | {"status": job.status, "epochs": len(job.curves)}
    for name in ("acc", "acc_ci95", "precision", "loss", "acc_before", "tasks"):
        row[f"test/{name}"] = test.get(name)
    row["val/acc"] = results.get("val", {}).get("acc")
    row["train_seconds"] = results.get("train", {}).get("seconds_with_validation")
    for name in ("accuracy", "weighted_precision", "loss"):
        row[f"published/{name}"] = known.get(name)
    return row


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
