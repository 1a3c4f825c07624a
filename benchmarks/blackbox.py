"""Learners without an inner loop, and other gradients, against MAML at equal meta-training tasks.

python benchmarks/blackbox.py data.source=npm

Drawings, with as many meta-training tasks as in benchmarks/algorithms.py, and the sinusoids of the
MAML paper; all runs of a setting are tested on the same tasks. Learners without an inner loop are
also meta-trained four times as long. Runs are in logs/blackbox; finished ones are kept, so the
command can be interrupted and repeated. Tables and figures go to
benchmarks/results/blackbox.{md,csv,png} and gradients.{md,csv,png}.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path
from typing import NamedTuple

import studies  # beside this file
import torch
from algorithms import COMMON, INNER, OUTER
from matplotlib.figure import Figure
from studies import RESULTS, clear, listed, markdown

from metadraw.command.cli import one_line_errors
from metadraw.objectives import Metric
from metadraw.objectives.classification import Classification
from metadraw.objectives.squared_error import SquaredError

LOGS = studies.ROOT / "logs" / "blackbox"
TESTED = ["data.val_batches=4", "data.test_batches=20"]  # 500 tasks
ONE_SHOT = ["data.train_batches=25", *TESTED]
FIVE_SHOT = ["data.shots=5", "data.train_batches=10", *TESTED]
SINES = ["experiment=sinusoids", "data.train_batches=100", "data.val_batches=8"]


class Setting(NamedTuple):
    """Tasks on which algorithms are compared."""

    title: str
    settings: list[str]
    metric: Metric
    tasks: int  # of meta-training


SETTINGS = {
    "one": Setting("5-way 1-shot, %", ONE_SHOT, Classification.measured["acc"], 2500),
    "five": Setting("5-way 5-shot, %", FIVE_SHOT, Classification.measured["acc"], 1000),
    "long": Setting(
        "5-way 1-shot, four times as many tasks, %",
        [*ONE_SHOT, "trainer.max_epochs=16"],
        Classification.measured["acc"],
        10000,
    ),
    "sines": Setting("sinusoids, squared error", SINES, SquaredError.measured["loss"], 10000),
}
#: By algorithm: its settings for drawings, and those for sinusoids, `None` if it learns no values.
LEARNERS: dict[str, tuple[list[str], list[str] | None]] = {
    "maml": ([INNER], []),
    "protonet": ([], None),
    "in_context": ([], []),
    "cnp": ([], []),
    "mann": ([], []),
    "imaml": ([], ["algorithm.inner_lr=0.01"]),
    "cavia": ([], ["algorithm.context=5", "algorithm.inner_lr=0.1"]),
    "meta_curvature": ([INNER], []),
}
#: The two tables and figures.
BLACK_BOX = ["maml", "protonet", "in_context", "cnp", "mann"]
GRADIENTS = ["maml", "imaml", "cavia", "meta_curvature"]


def planned() -> list[tuple[str, str, list[str]]]:
    """Setting, algorithm and overrides of every run, as they are done."""
    runs = []
    for setting, names in (
        ("sines", list(LEARNERS)),
        ("one", BLACK_BOX),
        ("five", BLACK_BOX[::-1]),
        ("one", GRADIENTS[:0:-1]),
        ("long", BLACK_BOX[1:]),
    ):
        for name in names:
            own = LEARNERS[name][setting == "sines"]
            if own is not None:
                shared = [*COMMON, *SETTINGS[setting].settings]
                runs.append((setting, name, [*shared, f"algorithm={name}", OUTER, *own]))
    return runs


def at(setting: str, name: str) -> Path:
    """The folder of a run."""
    return LOGS / setting / name


def finish(setting: str, name: str, settings: list[str]) -> None:
    """One meta-training and meta-test, unless its results exist."""
    studies.trained(at(setting, name), settings)


def values(setting: str, name: str) -> torch.Tensor | None:
    """The metric of each meta-test task of a run, if it is finished; in per cent if a share."""
    if not (at(setting, name) / "results.json").exists():  # which a run writes last
        return None
    metric = SETTINGS[setting].metric
    return (100 if metric.percent else 1) * studies.values(at(setting, name), metric.name)


def interval(found: torch.Tensor, setting: str, sign: bool = False) -> str:
    """``54.1 ± 0.9``: the mean with half its 95 % interval."""
    digits = 1 if SETTINGS[setting].metric.percent else 3
    return studies.shown(found, digits, "+" if sign else "")


def cells(setting: str, name: str) -> list[str]:
    """Mean, and the paired difference from MAML if it has that setting."""
    own, base = values(setting, name), values(setting, "maml")
    if own is None:
        return ["", ""]
    if base is None or name == "maml":
        return [interval(own, setting), ""]
    return [interval(own, setting), interval(own - base, setting, sign=True)]


def table(names: list[str], settings: list[str]) -> list[str]:
    """Rows of algorithms; of each setting the metric, and the difference from MAML."""
    head, rows = ["algorithm"], [[f"`{name}`"] for name in names]
    for setting in settings:
        long = setting == "long"
        head += [SETTINGS[setting].title] if long else [SETTINGS[setting].title, "difference"]
        for row, name in zip(rows, names, strict=True):
            row += cells(setting, name)[: 1 if long else 2]
    return markdown(head, rows)


def compared(setting: str, names: list[str]) -> list[str]:
    """One line: which algorithms are better than MAML, which worse, by intervals without zero."""
    groups: dict[str, list[str]] = {"better than": [], "worse than": [], "close to": []}
    base, metric = values(setting, "maml"), SETTINGS[setting].metric
    for name in names:
        own = values(setting, name)
        if own is None or base is None or name == "maml":
            continue
        ahead = metric.better(own.mean().item(), base.mean().item())
        how = ("better than" if ahead else "worse than") if clear(own - base) else "close to"
        groups[how].append(f"`{name}`")
    said = [
        f"{listed(who)} {'are' if len(who) > 1 else 'is'} {how} `maml`"
        for how, who in groups.items()
        if who
    ]
    title = SETTINGS[setting].title.partition(",")[0]
    return [f"- {title[0].upper()}{title[1:]}: {'; '.join(said)}."] if said else []


def write(out: str, title: str, names: list[str], settings: list[str], command: str) -> None:
    """Text, CSV and figure of one group of algorithms."""
    left = missing(names, settings)
    # A setting in which there is something to compare.
    settings = [s for s in settings if any(values(s, name) is not None for name in names[1:])]
    counted = {SETTINGS[s].title.partition(",")[0]: SETTINGS[s].tasks for s in settings[::-1]}
    text = [
        f"# {title}",
        "",
        f"`{command}`, one thread per run, {platform.machine()} CPU, torch {torch.__version__}. "
        "Meta-test results and paired differences from `maml` on the same tasks, each ± half its "
        "95 % interval. Meta-training tasks: "
        + "; ".join(f"{tasks:,} ({name})" for name, tasks in counted.items())
        + ". The epoch with the best meta-validation was tested. One seed per run.",
        "",
        *table(names, settings),
        "",
        *findings(names, settings),
        *left,
        "",
        f"![{title}]({out}.png)",
    ]
    lines = [
        [setting, name, SETTINGS[setting].metric.name, *studies.interval(found), len(found)]
        for setting in settings
        for name in names
        if (found := values(setting, name)) is not None
    ]
    columns = ["setting", "algorithm", "metric", "mean", "half_ci95", "tasks"]
    studies.save(RESULTS / out, text, columns, lines)
    draw(out, names, settings)


def findings(names: list[str], settings: list[str]) -> list[str]:
    """What the table says."""
    lines = [line for s in settings if s != "long" for line in compared(s, names)]
    for name in names if "long" in settings else []:
        short, long = values("one", name), values("long", name)
        if short is not None and long is not None:
            gain = interval(long - short, "one", sign=True)
            lines.append(f"- Four times as many tasks change `{name}` by {gain} points.")
    return lines


def missing(names: list[str], settings: list[str]) -> list[str]:
    """A line about the runs that are not finished, if any."""
    plan = [run[:2] for run in planned() if run[0] in settings and run[1] in names]
    left = [f"`{name}` ({SETTINGS[s].title})" for s, name in plan if values(s, name) is None]
    return [f"- Not finished: {', '.join(left)}."] if left else []


def draw(out: str, names: list[str], settings: list[str]) -> None:
    """The metric of each algorithm, drawings on the left, sinusoids on the right."""
    drawings, sines = (
        [s for s in settings if (s == "sines") == on_the_right] for on_the_right in (False, True)
    )
    panels = [shown for shown in (drawings, sines) if shown]
    figure = Figure(figsize=(4.5 * len(panels), 0.42 * len(names) + 1.5), layout="constrained")
    colours = {"one": "#4c78a8", "long": "#9ecae9", "five": "#e4572e", "sines": "#59a14f"}
    labels = {
        "one": "1 shot",
        "five": "5 shots",
        "long": "1 shot, four times as many tasks",
        "sines": "sinusoids, 10 shots",
    }
    handles = []
    for axes, shown in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for place, setting in enumerate(shown):
            for row, name in enumerate(names):
                found = values(setting, name)
                if found is None:
                    continue
                height = row + 0.22 * (place - (len(shown) - 1) / 2)
                mean, half = studies.interval(found)
                axes.errorbar(mean, height, xerr=half, fmt="o", color=colours[setting], ms=5)
            handles += axes.plot([], [], "o", color=colours[setting], label=labels[setting])
        axes.set_yticks(range(len(names)), names if shown is panels[0] else [""] * len(names))
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(axis="x", alpha=0.3)
        if shown is drawings:
            axes.axvline(20, color="0.6", lw=1, ls="--")
            axes.set_xlabel("5-way meta-test accuracy (%); dashed: guessing")
        else:
            axes.set_xlabel("mean squared error, logarithmic")
            axes.set_xscale("log")
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(RESULTS / f"{out}.png", dpi=120)


def main() -> None:
    """Finish the runs, then write both groups."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", action="store_true", help="of finished runs, without running")
    parser.add_argument("overrides", nargs="*", help="for runs on drawings, e.g. data.source=npm")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for setting, name, settings in planned() if not given.tables else []:
        print(f"{setting}: {name}", flush=True)
        finish(setting, name, [*settings, *(given.overrides if setting != "sines" else [])])
    command = " ".join(["python benchmarks/blackbox.py", *given.overrides])
    title = "Learners without an inner loop"
    write("blackbox", title, BLACK_BOX, ["one", "long", "five", "sines"], command)
    title = "Implicit gradients, contexts and curvature"
    write("gradients", title, GRADIENTS, ["one", "sines"], command)


if __name__ == "__main__":
    with one_line_errors():
        main()
