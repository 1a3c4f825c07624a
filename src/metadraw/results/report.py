"""A sweep on one page: a table of meta-test results, curves, and everything as CSV.

A run with all settings of Cloudera's report FF15 is shown beside the published results.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from omegaconf import DictConfig, ListConfig, OmegaConf

from metadraw.command.names import name_of
from metadraw.data.cache import checksum
from metadraw.errors import InputError
from metadraw.objectives import Metric
from metadraw.results.figures import Curve, draw_grid, draw_sweep
from metadraw.results.measured import measured, monitored
from metadraw.results.published import EXPERIMENTS, published, published_curves, setting_of
from metadraw.results.sweep import Job, read_sweep

_SEED = "seed"
#: Settings in words, in the order in which a title names them.
_PROSE = {
    "data.ways": "{}-way",
    "data.shots": "{}-shot",
    "data.samples_per_class": "{} drawings a class",
    "data.train_samples_per_class": "{} drawings a class in meta-training",
    "algorithm.inner_lr": "inner rate {}",
    "optimizer.lr": "outer rate {}",
    "seed": "seed {}",
}


@dataclass(frozen=True)
class Cell:
    """Jobs that differ in their seed only."""

    row: tuple[str, ...]
    column: str
    jobs: list[Job]

    @property
    def finished(self) -> list[Job]:
        """Those with a meta-test."""
        return [job for job in self.jobs if job.results is not None]


def report(folder: Path, to: Path, rows: Sequence[str] = (), column: str | None = None) -> str:
    """Write ``report.md``, ``runs.csv``, ``curves.csv``, and curves as PNG and SVG.

    Tests of eval.py have no curves. If they are a grid of two settings that are numbers, such as
    ways and shots, ``grid.png`` is its heat map.

    Args:
        folder: of a sweep, which may still be running.
        to: the folder to write to.
        rows: keys whose values make the table's rows, with a figure each; by default all that
            differ between runs, except the column's and the seed.
        column: the key whose values make the table's columns, with a curve each; by default the
            last that differs, except the seed.

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
                f"{key}: was not overridden in {folder}: choose from {', '.join(varied) or 'none'}"
            )
    column = column or next((key for key in reversed(varied) if key not in rows), None)
    rows = list(rows) or [key for key in varied if key != column]
    cells = _cells(jobs, rows, column)

    to.mkdir(parents=True, exist_ok=True)
    _write_csv(to / "runs.csv", [_run_row(job) for job in jobs])
    _write_csv(to / "curves.csv", [_named(job) | row for job in jobs for row in job.curves])
    pictures = []
    for row, of_row in groupby(cells, key=lambda cell: cell.row):
        curves = [curve for cell in of_row if (curve := _curve(cell, column))]
        if not curves:
            continue
        title = _prose(dict(zip(rows, row, strict=True)))
        shown = _shown(next(job for job in jobs if job.curves))
        name = "curves__" + name_of(row) if row else "curves"
        figure = draw_sweep(curves, title, shown)
        figure.savefig(to / f"{name}.png", dpi=150)
        with rc_context({"svg.hashsalt": name}):  # else the same curves make another file
            figure.savefig(to / f"{name}.svg", metadata={"Date": None})
        pictures.append(f"![{title or 'Meta-validation curves'}]({name}.png)")
    if not pictures and (grid := _heat_map(cells, rows, column)):
        grid.savefig(to / "grid.png", dpi=150)
        pictures.append("![Meta-test results over the grid of settings](grid.png)")
    episode = next((job.folder / "episode.png" for job in jobs if job.results and job.folder), None)
    if episode and episode.is_file():
        shutil.copyfile(episode, to / "episode.png")
        pictures.append("![A meta-test episode with predictions](episode.png)")

    page = [*_table(cells, rows, column), "", *_notes(jobs, cells, varied), "", *pictures]
    text = "\n".join(page).rstrip() + "\n"
    (to / "report.md").write_text(text, encoding="utf-8")
    return text


def _varied(jobs: Sequence[Job]) -> list[str]:
    """Keys that were overridden with different values, in the order of the command line."""
    keys = dict.fromkeys(key for job in jobs for key in job.overrides)
    return [k for k in keys if k != _SEED and len({job.overrides.get(k) for job in jobs}) > 1]


def _cells(jobs: Sequence[Job], rows: Sequence[str], column: str | None) -> list[Cell]:
    groups: dict[tuple[str, ...], list[Job]] = {}
    keys = [*rows, *([column] if column else [])]
    for job in jobs:
        groups.setdefault(tuple(_value(job, key) for key in keys), []).append(job)
    places = [_places(values) for values in zip(*groups, strict=True)]

    def order(key: tuple[str, ...]) -> list[int]:
        return [place[value] for place, value in zip(places, key, strict=True)]

    cut = len(rows)
    return [
        Cell(key[:cut], key[cut] if column else "", groups[key])
        for key in sorted(groups, key=order)
    ]


def _places(values: Sequence[str]) -> dict[str, int]:
    """The order of a setting's values: by size if all are numbers, else as the runs came."""
    distinct = list(dict.fromkeys(values))
    with suppress(ValueError):
        distinct = sorted(distinct, key=float)
    return {value: place for place, value in enumerate(distinct)}


def _value(job: Job, key: str) -> str:
    """The override of a key, or else its value in the run's config."""
    if key in job.overrides:
        return job.overrides[key]
    value = OmegaConf.select(OmegaConf.create(job.config), key, throw_on_resolution_failure=False)
    if value is None or isinstance(value, (DictConfig, ListConfig)):
        return "default"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _table(cells: Sequence[Cell], rows: Sequence[str], column: str | None) -> list[str]:
    columns = list(_places([cell.column for cell in cells]))
    by_row: dict[tuple[str, ...], dict[str, str]] = {}
    for cell in cells:
        by_row.setdefault(cell.row, {})[cell.column] = _result(cell)
    title = monitored(cells[0].jobs[0].config).title
    head = [*rows, *(f"{column}={value}" if column else title for value in columns)]
    lines = [head, ["---"] * len(head)]
    lines += [[*row, *(cell.get(c, "") for c in columns)] for row, cell in by_row.items()]
    return [f"| {' | '.join(line)} |" for line in lines]


def _result(cell: Cell) -> str:
    """The meta-test result, or how far the runs are; the published one in brackets."""
    metric = monitored(cell.jobs[0].config)
    scale, digits = (100, 1) if metric.percent else (1, 4)
    tests = [job.results["test"] for job in cell.finished if job.results]
    if not tests:
        text = "; ".join(dict.fromkeys(job.status.partition(":")[0] for job in cell.jobs))
    elif len(tests) == 1:
        value, half = (scale * tests[0][f"{metric.name}{end}"] for end in ("", "_ci95"))
        text = f"{value:.{digits}f} ± {half:.{digits}f}"
    else:
        values = [scale * test[metric.name] for test in tests]
        spread = f"sd {stdev(values):.{digits}f} of {len(tests)} seeds"
        text = f"{fmean(values):.{digits}f}, {spread}"
    if tests and len(tests) < len(cell.jobs):
        text += f", {len(tests)} of {len(cell.jobs)} finished"
    known = _published(cell)
    return f"{text} ({100 * known['accuracy']:.1f})" if known else text


def _published(cell: Cell) -> Mapping[str, float] | None:
    """The published meta-test, if every run of a cell has the report's settings."""
    settings = {setting_of(job.config) for job in cell.jobs if job.config}
    setting = settings.pop() if len(settings) == 1 else None
    return published(*setting) if setting else None


def _notes(jobs: Sequence[Job], cells: Sequence[Cell], varied: Sequence[str]) -> list[str]:
    metric = monitored(jobs[0].config)
    unit = " in per cent" if metric.percent else ""
    notes = [f"Meta-test {metric.title}{unit}, ± half its 95 % interval over tasks."]
    if any(len(cell.finished) > 1 for cell in cells):
        notes.append("Several seeds: their mean and standard deviation.")
    if any(_published(cell) for cell in cells):
        notes.append(
            "In brackets, and grey in the figures: what the report published for these settings."
        )
    sources = {
        f"{job.results['data'].get('source')}, {checksum(job.results['data'])[:12]}"
        for job in jobs
        if job.results
    }
    if sources:
        notes.append(f"Drawings: {'; '.join(sorted(sources))}.")
    rest = []
    for job in jobs:
        own = {key: value for key, value in job.overrides.items() if key in (*varied, _SEED)}
        name = " ".join(f"{key}={value}" for key, value in own.items()) or "a run"
        rest += [f"- {name}: {job.status}"] if job.results is None else []
    finished = len(jobs) - len(rest)
    lines = [" ".join(notes), "", f"{finished} of {len(jobs)} runs are finished."]
    return [*lines, *([""] if rest else []), *rest]


def _curve(cell: Cell, column: str | None) -> Curve | None:
    """The validation curves of a cell, one per seed, and the published one."""
    begun = [job for job in cell.jobs if job.curves]
    if not begun:
        return None
    setting = setting_of(begun[0].config) if _published(cell) else None
    names = [f"val/{metric.name}" for metric in _shown(begun[0])]
    return Curve(
        _prose({column: cell.column}) if column else "meta-validation",
        [
            [
                (row["epoch"], *(row[name] for name in names))
                for row in job.curves
                if {*row} >= {*names}  # not every epoch need be validated
            ]
            for job in begun
        ],
        [
            (row["epoch"], row["val_acc"], row["val_loss"])
            for row in (published_curves(*setting) if setting else ())
        ],
    )


def _heat_map(cells: Sequence[Cell], rows: Sequence[str], column: str | None) -> Figure | None:
    """The meta-test results over a grid of two settings that are numbers, if it is complete."""
    if column is None or len(rows) != 1 or not all(cell.finished for cell in cells):
        return None
    try:
        places = {(float(cell.row[0]), float(cell.column)): cell for cell in cells}
    except ValueError:
        return None
    down, across = (sorted({place[axis] for place in places}) for axis in (0, 1))
    if min(len(down), len(across)) < 2 or len(places) < len(down) * len(across):
        return None
    metric = monitored(cells[0].jobs[0].config)
    scale = 100 if metric.percent else 1
    values = [
        [
            scale * fmean(job.results["test"][metric.name] for job in places[y, x].finished)  # type: ignore[index]
            for x in across
        ]
        for y in down
    ]
    figure = Figure(figsize=(1.1 * len(across) + 1.6, 0.7 * len(down) + 1.3), layout="constrained")
    axes = figure.subplots()
    draw_grid(
        axes,
        values,
        [_prose({rows[0]: places[y, across[0]].row[0]}) for y in down],
        [_prose({column: places[down[0], x].column}) for x in across],
        form=".1f" if metric.percent else ".3f",
    )
    axes.set_title(f"meta-test {metric.title}{' (%)' if metric.percent else ''}", fontsize=10)
    return figure


def _shown(job: Job) -> list[Metric]:
    """The metrics that a figure shows for a run: the monitored one, and the loss."""
    return list(dict.fromkeys([monitored(job.config), measured(job.config)["loss"]]))


def _prose(values: Mapping[str, str]) -> str:
    """``{"experiment": "report_20", "data.ways": "5"}`` -> ``5-way, 20 drawings a class``."""
    first = [key for key in _PROSE if key in values]
    rest = [key for key in values if key not in first]
    return ", ".join(_phrase(key, values[key]) for key in first + rest)


def _phrase(key: str, value: str) -> str:
    for samples, experiment in EXPERIMENTS.items():
        if (key, value) == ("experiment", experiment):
            return f"{samples} drawings a class"
    if key in _PROSE and value != "default":
        return _PROSE[key].format(value)
    words = f"{key.rpartition('.')[2]} {value}".replace("_", " ")
    # The choice of a group speaks for itself: algorithm=maml is maml.
    return words if "." in key or value == "default" else value


def _named(job: Job) -> dict[str, Any]:
    return {"run": job.name, **job.overrides}


def _run_row(job: Job) -> dict[str, Any]:
    """The same columns for every run, empty where there is nothing yet."""
    results, setting = job.results or {}, setting_of(job.config)
    test, known = results.get("test", {}), (published(*setting) if setting else None) or {}
    row = _named(job) | {"status": job.status, "epochs": len(job.curves)}
    metric = monitored(job.config).name
    others = [name for name in [*measured(job.config)][::-1] if name != metric]
    for name in (metric, f"{metric}_ci95", *others, f"{metric}_before", "tasks"):
        row[f"test/{name}"] = test.get(name)
    row[f"val/{metric}"] = results.get("val", {}).get(metric)
    # Not from results.json, which an unfinished run lacks.
    seconds = [epoch["seconds"] for epoch in job.curves if "seconds" in epoch]
    row["train_seconds"] = round(sum(seconds), 3) if seconds else None
    for name in ("accuracy", "weighted_precision", "loss"):
        row[f"published/{name}"] = known.get(name)
    return row


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
