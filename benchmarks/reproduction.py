"""The runs with the report's settings beside its figures, in words, for docs/report.md."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import NamedTuple, TypeAlias

from studies import SETTINGS, listed, markdown, task  # beside this file

from metadraw.results.published import EXPERIMENTS, published, published_curves

Row: TypeAlias = Mapping[str, str]
SAMPLES = {name: samples for samples, name in EXPERIMENTS.items()}
LARGE, SMALL = SAMPLES


class Cell(NamedTuple):
    """One of the report's twelve experiments."""

    experiment: str
    ways: int
    shots: int

    @property
    def drawings(self) -> str:
        """What it had."""
        return _drawings(self.experiment)

    @property
    def published(self) -> float:
        """The report's accuracy."""
        found = published(SAMPLES[self.experiment], self.ways, self.shots)
        assert found is not None
        return found["accuracy"]

    @property
    def published_curve(self) -> Sequence[Mapping[str, float]]:
        """The report's validation after each epoch."""
        return published_curves(SAMPLES[self.experiment], self.ways, self.shots)

    def difference(self, ours: Measured) -> Measured:
        """How far one of our runs is from the report's."""
        # The report's figure is a mean over as many other tasks, so it has the same interval.
        return ours.apart(Measured(self.published, ours.half))


class Measured(NamedTuple):
    """A share of right answers, or a difference of two, with half its 95 % interval."""

    mean: float
    half: float

    def apart(self, other: Measured) -> Measured:
        """Its difference from another, on other tasks."""
        return Measured(self.mean - other.mean, math.hypot(self.half, other.half))

    @property
    def within(self) -> bool:
        """Whether 0 lies within the interval."""
        return abs(self.mean) <= self.half

    def shown(self, sign: str = "") -> str:
        """``54.1 ± 0.9``, in per cent."""
        return f"{100 * self.mean:{sign}.1f} ± {100 * self.half:.1f}"


class Runs:
    """The runs of a sweep with the report's settings.

    Args:
        runs: the rows of report.py's runs.csv.
        curves: those of its curves.csv.
    """

    def __init__(self, runs: Sequence[Row], curves: Sequence[Row]) -> None:
        tested = [row for row in runs if row["test/acc"]]
        self.status = {_cell(row): row["status"] for row in runs if not row.get("seed")}
        self.done = {_cell(row): _measured(row) for row in tested if not row.get("seed")}
        self.again = {_cell(row): _measured(row) for row in tested if row.get("seed")}
        self.epochs: dict[Cell, list[Row]] = {}
        for row in curves:
            if not row.get("seed"):
                self.epochs.setdefault(_cell(row), []).append(row)

    def lines(self) -> list[str]:
        """The table, how far it agrees, and the findings."""
        head = [""]
        for experiment in SAMPLES:
            head += [_drawings(experiment), "published", "difference"]
        rows = [
            [task(*each), *self._cells(Cell(LARGE, *each)), *self._cells(Cell(SMALL, *each))]
            for each in SETTINGS
        ]
        return [
            *markdown(head, rows, left=len(head)),
            "",
            self._agreement(),
            *self._seeds(),
            "",
            "The report's findings in these runs:",
            "",
            *self._findings(),
        ]

    def _cells(self, cell: Cell) -> list[str]:
        theirs = f"{100 * cell.published:.1f}"
        if cell in self.done:
            difference = cell.difference(self.done[cell])
            bold = "" if difference.within else "**"
            return [self.done[cell].shown(), theirs, f"{bold}{difference.shown('+')}{bold}"]
        if cell not in self.status:
            return ["", theirs, ""]
        *_, last = self.epochs[cell]
        then = cell.published_curve[int(float(last["epoch"])) - 1]["val_acc"]
        accuracies = f"{100 * float(last['val/acc']):.1f} ({100 * then:.1f})"
        return [f"{self.status[cell]}: {accuracies}", theirs, ""]

    def _agreement(self) -> str:
        finished = len(self.done) == len(self.status)
        agree = sum(cell.difference(ours).within for cell, ours in self.done.items())
        text = (
            f"{'All' if finished else f'{len(self.done)} of the'} {len(self.status)} runs are "
            f"finished. {agree} of their "
            f"{len(self.done)} differences from the published figures lie within the 95 % "
            "interval, which counts the chance in both tests, but not in training; the others are "
            "in bold."
        )
        if not finished:
            text += (
                " Of unfinished runs, the table gives validation accuracy after the last epoch so "
                "far, and in brackets the published one after that epoch."
            )
        return text

    def _seeds(self) -> list[str]:
        means, chance = [], []
        for cell in (cell for cell in self.done if cell in self.again):
            name = f"{task(cell.ways, cell.shots)} with {cell.drawings}"
            both = [100 * self.done[cell].mean, 100 * self.again[cell].mean]
            means.append(f"{fmean(both):.1f} ± {stdev(both):.1f} % for {name}")
            first, second = (cell.difference(runs[cell]) for runs in (self.done, self.again))
            if first.within != second.within:
                chance.append(f"{name} ({first.shown('+')} and {second.shown('+')} points)")
        said = f"Mean and standard deviation over two seeds are {listed(means)}."
        if chance:
            said += (
                " Training is a matter of chance: only one of two seeds agrees with the published "
                f"figure, within the interval, in {listed(chance)}."
            )
        return ["", said] if means else []

    def _findings(self) -> list[str]:
        more = [(f"for {task(*each)}", Cell(LARGE, *each), Cell(SMALL, *each)) for each in SETTINGS]
        fewer_ways = [
            (f"for {_shots(shots)} with {cell.drawings}", cell, cell._replace(ways=10))
            for name in SAMPLES
            for shots in (1, 5, 10)
            for cell in [Cell(name, 5, shots)]
        ]
        risen = [
            self._overfitting(cell)
            for cell in (Cell(SMALL, 10, shots) for shots in (1, 5, 10))
            if cell in self.done
        ]
        lines = []
        if text := self._gains(more):
            lines.append(f"- *More drawings help.* Using 100 instead of 20 per class gains {text}.")
        if text := self._gains(fewer_ways):
            lines.append(f"- *5-way is easier than 10-way*, by {text}.")
        if risen:
            lines.append(
                "- *Overfitting in 10-way tasks with 20 drawings per class.* Validation loss is "
                f"lowest {listed(risen)}."
            )
        return lines

    def _gains(self, pairs: Sequence[tuple[str, Cell, Cell]]) -> str:
        return listed(
            [
                f"{self.done[better].apart(self.done[worse]).shown()} points {text} (published: "
                f"{100 * (better.published - worse.published):.1f})"
                for text, better, worse in pairs
                if better in self.done and worse in self.done
            ]
        )

    def _overfitting(self, cell: Cell) -> str:
        ours = [float(row["val/loss"]) for row in self.epochs[cell]]
        theirs = [row["val_loss"] for row in cell.published_curve]
        (best, risen), (their_best, their_risen) = (
            (f"after epoch {losses.index(min(losses)) + 1}", f"{losses[-1] - min(losses):.2f}")
            for losses in (ours, theirs)
        )
        return (
            f"for {_shots(cell.shots)} {best}, {risen} below the last "
            f"(published: {their_best}, {their_risen})"
        )


def _cell(row: Row) -> Cell:
    return Cell(row["experiment"], int(row["data.ways"]), int(row["data.shots"]))


def _measured(row: Row) -> Measured:
    return Measured(float(row["test/acc"]), float(row["test/acc_ci95"]))


def _drawings(experiment: str) -> str:
    return f"{SAMPLES[experiment]} drawings per class"


def _shots(shots: int) -> str:
    return f"{shots} shot{'s' * (shots > 1)}"
