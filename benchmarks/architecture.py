"""A better small network for meta-learning, by successive halving on short meta-trainings.

python benchmarks/architecture.py --jobs 2 data.source=npm

Candidates are drawn at random from SPACE, all with at most as many parameters as the report's
network. Each rung trains the better half of those before it twice as long, from where they were
(Jamieson and Talwalkar 2016, "Non-stochastic Best Arm Identification and Hyperparameter
Optimization"), judged by meta-validation. The best is then trained from scratch beside the report's
network, with several seeds. Runs are in logs/architecture; finished ones are kept, so the command
can be interrupted and repeated. Results go to benchmarks/results/architecture.{md,csv,png}.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from studies import RESULTS, ROOT, markdown, save, shown, values  # beside this file
from torch import Tensor

import metadraw
from metadraw.command.cli import one_line_errors
from metadraw.errors import DivergedError
from metadraw.training.train import train

LOGS, OUT = ROOT / "logs" / "architecture", RESULTS / "architecture"
SPACE = {
    "depth": (2, 3, 4, 5, 6),
    "kernel": (3, 5),
    "norm": ("batch", "layer"),
    "skip": (False, True),
    "poolings": (2, 3, 4),
}
CANDIDATES, RUNGS = 24, 3  # rung r has CANDIDATES / 2**r candidates after 2**r epochs
EPOCHS, SEEDS = 4, (0, 1)  # of the comparison from scratch
#: 5-way 1-shot, first order: cheap steps, and all parts of a network are adapted.
TASKS = [
    *("algorithm=fomaml", "algorithm.inner_lr=0.1", "optimizer.lr=0.003", "data.queries=5"),
    *("data.tasks_per_batch=8", "data.val_batches=32", "trainer=cpu"),
]
REPORT = "model.depth=4 model.kernel=3 model.norm=batch model.skip=False model.poolings=4"


class Run(NamedTuple):
    """One training of one network."""

    model: str  # overrides, with spaces between
    epochs: int
    seed: int | None = None  # of the comparison; `None` in the search

    @property
    def folder(self) -> Path:
        """Where its results are."""
        name = self.model.replace("model.", "").replace(" ", "_").replace("=", "-")
        return (
            LOGS / f"{'search' if self.seed is None else f'seed{self.seed}'}_{self.epochs}_{name}"
        )

    @property
    def settings(self) -> list[str]:
        """Its overrides: a longer run of the search resumes the one of half its length."""
        own = [*TASKS, "model=convnet", *self.model.split(), f"trainer.max_epochs={self.epochs}"]
        half = self._replace(epochs=self.epochs // 2).folder / "checkpoints" / "last.ckpt"
        if self.seed is not None:
            own += ["data.test_batches=125", f"seed={self.seed}", f"data.seed={self.seed}"]
        else:
            own += ["data.test_batches=1"]
            own += [f"ckpt_path='{half}'"] if self.epochs > 1 else []
        return [*own, f"paths.output_dir='{self.folder}'"]


def candidates() -> list[str]:
    """The report's network and others of the space, always the same."""
    every = [
        " ".join(f"model.{name}={value}" for name, value in zip(SPACE, values, strict=True))
        for values in product(*SPACE.values())
        if values[-1] <= values[0]  # no more poolings than blocks
    ]
    every.remove(REPORT)
    return [REPORT, *Random(0).sample(every, CANDIDATES - 1)]


def finish(run: Run, overrides: list[str]) -> float:
    """Train, unless that is done; the best meta-validation accuracy, 0 if training diverges."""
    torch.set_num_threads(1)
    try:
        accuracy: float = train(metadraw.compose(*run.settings, *overrides))["val"]["acc"]
    except DivergedError:
        return 0.0
    return accuracy


def search(pool: ProcessPoolExecutor, overrides: list[str]) -> list[dict[str, float]]:
    """Each rung's candidates with their accuracies, the best first."""
    rungs: list[dict[str, float]] = []
    chosen = candidates()
    for rung in range(RUNGS):
        runs = [Run(model, 2**rung) for model in chosen]
        found = zip(chosen, pool.map(finish, runs, [overrides] * len(runs)), strict=True)
        ranked = sorted(found, key=lambda pair: -pair[1])
        print(f"rung {rung + 1}: {ranked[0][0]} {100 * ranked[0][1]:.1f} %", flush=True)
        rungs.append(dict(ranked))
        chosen = [model for model, _ in ranked[: max(1, len(ranked) // 2)]]
    return rungs


def measured(model: str) -> Tensor:
    """Meta-test accuracy of each task in per cent, the mean over seeds."""
    runs = [values(Run(model, EPOCHS, seed).folder) for seed in SEEDS]
    return 100 * torch.stack(runs).mean(dim=0)


def described(model: str) -> list[str]:
    """The cells of a network in the tables."""
    chosen = dict(part.removeprefix("model.").split("=") for part in model.split())
    return [chosen[name].replace("True", "yes").replace("False", "no") for name in SPACE]


def write(rungs: list[dict[str, float]], command: str) -> None:
    """Tables, figure and CSV."""
    best = next(iter(rungs[-1]))
    found = {model: measured(model) for model in dict.fromkeys((REPORT, best))}
    head = [*SPACE, "epochs", "meta-validation, %"]
    rows = [
        [*described(model), f"{2**last}", f"{100 * rungs[last][model]:.1f}"]
        for model in dict.fromkeys(model for rung in reversed(rungs) for model in rung)
        for last in [max(i for i, rung in enumerate(rungs) if model in rung)]
    ]
    gain = found[best] - found[REPORT]
    seeds = f"{len(SEEDS)} seeds"
    lines = [
        "# Architecture search",
        "",
        f"`{command}`, {os.cpu_count()} CPU cores, torch {torch.__version__}: "
        f"{len(rungs[0])} networks, of which the better half is trained on after "
        f"{', '.join(str(2**i) for i in range(len(rungs) - 1))} epochs of 100 batches of 8 tasks, "
        f"5-way 1-shot, by `fomaml`; each with at most as many parameters as the report's network. "
        f"The best, and the report's network, are then trained from scratch for {EPOCHS} epochs "
        f"with {seeds}, and tested on the same {len(gain):,} tasks. Accuracies are ± half their "
        "95 % interval over tasks.",
        "",
        *markdown(
            [*SPACE, f"meta-test, %, mean of {seeds}"],
            [[*described(model), shown(tasks)] for model, tasks in found.items()],
        ),
        "",
        (
            f"The network that was found differs from the report's (first row) by {shown(gain)} "
            "points, paired by task."
            if best != REPORT
            else "The search ends at the report's network."
        ),
        "",
        f"![Meta-validation accuracy of the networks of each rung]({OUT.name}.png)",
        "",
        "The five that came furthest:",
        "",
        *markdown(head, rows[:5]),
    ]
    save(OUT, lines, head, rows)
    draw(rungs)


def draw(rungs: list[dict[str, float]]) -> None:
    """The accuracy of each candidate after each of its rungs."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    best = next(iter(rungs[-1]))
    for model in rungs[0]:
        curve = [100 * rung[model] for rung in rungs if model in rung]
        colour, width, label = "0.75", 1.0, None
        if model == REPORT:
            colour, width, label = "#4c78a8", 2.0, "the report's network"
        if model == best:
            colour, width, label = "#e4572e", 2.0, "the best"
        axes.plot(
            [2**i for i in range(len(curve))],
            curve,
            "o-",
            color=colour,
            linewidth=width,
            markersize=4,
            label=label,
            zorder=width,
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks([2**i for i in range(len(rungs))], [str(2**i) for i in range(len(rungs))])
    axes.set_xlabel("epochs of meta-training")
    axes.set_ylabel("meta-validation accuracy (%)")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(OUT.with_suffix(".png"), dpi=120)


def main() -> None:
    """Search, compare, and write the results."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, one thread each")
    parser.add_argument("overrides", nargs="*", help="for all runs, e.g. data.source=npm")
    given = parser.parse_args()
    with ProcessPoolExecutor(given.jobs, multiprocessing.get_context("spawn")) as pool:
        rungs = search(pool, given.overrides)
        both = dict.fromkeys((REPORT, next(iter(rungs[-1]))))
        runs = [Run(model, EPOCHS, seed) for model in both for seed in SEEDS]
        list(pool.map(finish, runs, [given.overrides] * len(runs)))
    write(rungs, " ".join(["python benchmarks/architecture.py", *given.overrides]))


if __name__ == "__main__":
    with one_line_errors():
        main()
