"""Accuracy against fairness: MAML with Fair-MAML's objective, for a sweep of gamma.

python benchmarks/fairness.py

The synthetic tasks of experiment=fair. For each criterion and gamma, one network is meta-trained
with five examples a task, then tested with one to ten, always on the same tasks. Runs are in
logs/fairness; finished ones are kept, so the command can be interrupted and repeated. Tables,
figure and CSV go to benchmarks/results/fairness.{md,csv,png}.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from studies import (  # beside this file
    RESULTS,
    ROOT,
    interval,
    markdown,
    percent,
    save,
    tested,
    trained,
    values,
)
from torch import Tensor

import metadraw
from metadraw.command.cli import one_line_errors

LOGS, OUT = ROOT / "logs" / "fairness", RESULTS / "fairness"
GAMMAS = (0.0, 0.5, 0.75, 1.0, 1.25, 2.0)
SHOTS = (1, 2, 5, 10)
#: By criterion, the metric that it should lower, and its name.
CRITERIA = {
    "demographic_parity": ("parity", "demographic parity difference"),
    "equal_opportunity": ("opportunity", "equal opportunity difference"),
}
TRAINED = [
    *("experiment=fair", "data.shots=5", "data.train_batches=400", "data.val_batches=8"),
    *("trainer.max_epochs=2", "optimizer.lr=0.003", "data.test_batches=1"),
    "callbacks.progress_bar.refresh_rate=0",
]
TESTED = ["data.test_batches=20", "data.eval_seed=0"]  # 500 tasks


class Run(NamedTuple):
    """One meta-trained network."""

    criterion: str
    gamma: float

    @property
    def folder(self) -> Path:
        """Where its results are; without the regulariser, both criteria are the same run."""
        return LOGS / ("gamma_0" if self.gamma == 0 else f"{self.criterion}_{self.gamma:g}")

    def found(self, shots: int) -> dict[str, Tensor]:
        """The metrics of every meta-test task with so many shots, ``[tasks]`` by name."""
        folder = self.folder / f"{shots}-shot"
        return {name: values(folder, name) for name in ("acc", "parity", "opportunity")}


def planned() -> list[Run]:
    """All runs, each once."""
    first = next(iter(CRITERIA))
    return [Run(c, gamma) for c in CRITERIA for gamma in GAMMAS if gamma or c == first]


def finish(run: Run, overrides: Sequence[str]) -> None:
    """Train and test, unless that is done."""
    torch.set_num_threads(1)
    own = [f"objective.gamma={run.gamma}", f"objective.criterion={run.criterion}"]
    checkpoint = trained(run.folder, [*TRAINED, *own, *overrides])
    for shots in SHOTS:
        tested(run.folder / f"{shots}-shot", checkpoint, [f"data.shots={shots}", *TESTED])


def table(criterion: str) -> list[str]:
    """Accuracy and difference by gamma and shots."""
    metric, _ = CRITERIA[criterion]
    head = ["gamma", *(f"{shots}-shot: accuracy, difference" for shots in SHOTS)]
    rows = []
    for gamma in GAMMAS:
        found = [Run(criterion, gamma).found(shots) for shots in SHOTS]
        rows.append([f"{gamma:g}", *(f"{percent(f['acc'])}, {percent(f[metric])}" for f in found)])
    return markdown(head, rows)


def findings(criterion: str, positive: float) -> str:
    """What the regulariser gives and costs with 5 shots, paired by task.

    Args:
        criterion: which is regularised.
        positive: the share of positive outcomes in meta-test.
    """
    metric, title = CRITERIA[criterion]
    found = {gamma: Run(criterion, gamma).found(5) for gamma in GAMMAS}
    changes = {g: {n: f[n] - found[0.0][n] for n in (metric, "acc")} for g, f in found.items() if g}
    parts = [
        f"gamma {gamma:g} changes the {title} by {percent(change[metric], '+')} points, and "
        f"accuracy by {percent(change['acc'], '+')}"
        for gamma, change in changes.items()
        if gamma in (0.5, 1.0)
    ]
    said = f"With 5 shots, {'; '.join(parts)}."
    trivial = [g for g, f in found.items() if abs(f["acc"].mean().item() - positive) < 0.02]
    if trivial:
        said += (
            f" From gamma {trivial[0]:g} on, the network is about as accurate as a positive "
            f"outcome for everyone would be, {100 * positive:.1f} %: fair, and of no use."
        )
    return said


def positive_outcomes(overrides: Sequence[str]) -> float:
    """The share of positive outcomes in the meta-test tasks."""
    data, _ = metadraw.build(metadraw.compose("experiment=fair", *overrides))
    return data.episodes("test")(torch.arange(500)).query.y.double().mean().item()


def write(command: str, minutes: float, positive: float) -> None:
    """Tables, findings, figure and CSV."""
    tasks = len(Run("demographic_parity", 0.0).found(SHOTS[0])["acc"])
    text = [
        "# Accuracy against fairness",
        "",
        f"`{command}`, one core, {platform.machine()} CPU, torch {torch.__version__}; "
        f"{minutes:.0f} minutes in all. MAML on synthetic tasks, meta-trained on 20,000 tasks of "
        f"five examples; {tasks} meta-test tasks of 100 other examples. Per cent, ± half the 95 % "
        "interval over tasks; one seed. The difference is the absolute one between the groups' "
        "shares of positive predictions in a task, for equal opportunity among the examples with a "
        "positive outcome; a fair classifier has some, too, because 100 examples vary.",
    ]
    rows = []
    for criterion in CRITERIA:
        name = criterion.replace("_", " ")
        text += ["", f"**Regularised for {name}**:", "", *table(criterion)]
        text += ["", findings(criterion, positive)]
        for gamma in GAMMAS:
            for shots in SHOTS:
                found = Run(criterion, gamma).found(shots)
                cells = [f"{part:.5f}" for each in found.values() for part in interval(each)]
                rows.append([criterion, gamma, shots, *cells])
    text += ["", f"![Accuracy against the difference between groups]({OUT.name}.png)"]
    names = [n + end for n in ("acc", "parity", "opportunity") for end in ("", "_ci95")]
    save(OUT, text, ["criterion", "gamma", "shots", *names], rows)
    draw()


def draw() -> None:
    """One panel for each criterion, one line for each number of shots, one point for each gamma."""
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    colours = ("#edc949", "#59a14f", "#4c78a8", "#e4572e")
    for axes, (criterion, (metric, title)) in zip(
        figure.subplots(1, 2), CRITERIA.items(), strict=True
    ):
        for shots, colour in zip(SHOTS, colours, strict=False):
            found = [Run(criterion, gamma).found(shots) for gamma in GAMMAS]
            (x, wide), (y, high) = (
                zip(*(interval(100 * f[name]) for f in found), strict=True)
                for name in (metric, "acc")
            )
            label = f"{shots} shot{'s' if shots > 1 else ''}"
            axes.errorbar(x, y, high, wide, "o-", color=colour, ms=4, lw=1.2, label=label)
            for gamma, *point in zip(GAMMAS, x, y, strict=True):
                if shots == SHOTS[-1]:
                    place = {"xytext": (-3, 7), "textcoords": "offset points", "ha": "right"}
                    axes.annotate(f"{gamma:g}", point, color=colour, fontsize=9, **place)
        axes.set_title(f"regularised for {criterion.replace('_', ' ')}")
        axes.set_xlabel(f"{title} (points): less is fairer")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("meta-test accuracy (%)")
    handles = figure.axes[0].get_legend_handles_labels()
    title = f"numbers: gamma of the points of {SHOTS[-1]} shots"
    figure.legend(*handles, loc="outside lower center", ncols=4, frameon=False, title=title)
    figure.savefig(OUT.with_suffix(".png"), dpi=120)


def main() -> None:
    """Finish the runs, then write."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="for all runs")
    given = parser.parse_args()
    LOGS.mkdir(parents=True, exist_ok=True)
    cost = LOGS / "cost.json"  # of all calls together
    minutes = json.loads(cost.read_text()) if cost.exists() else 0.0
    for run in planned():
        began = time.process_time()
        finish(run, given.overrides)
        minutes += (time.process_time() - began) / 60
        cost.write_text(json.dumps(minutes))
        print(run.criterion, f"{run.gamma:g}", percent(run.found(5)["acc"]), flush=True)
    write(
        " ".join(["python benchmarks/fairness.py", *given.overrides]),
        minutes,
        positive_outcomes(given.overrides),
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
