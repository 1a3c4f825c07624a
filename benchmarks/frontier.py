"""What meta-learning buys: three networks, from scratch and pre-trained, with nine algorithms.

python benchmarks/frontier.py --jobs 2 data.source=npm

Every training takes a few minutes of one core, whatever its network and algorithm; pre-training and
what may follow it are two. All are tested on the same meta-test tasks in the report's six settings,
with each picture classified by itself and with a query set at once; the slower a network, the fewer
of these tasks. Runs are in logs/frontier; finished ones are kept, so the command can be interrupted
and repeated. Tables and figure go to benchmarks/results/frontier.{md,csv,png}.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import fmean, variance
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from studies import (  # beside this file
    RESULTS,
    ROOT,
    SETTINGS,
    clear,
    markdown,
    minutes,
    paired,
    results,
    save,
    select,
    shown,
    task,
    trained,
)
from studies import accuracy as accuracy_of
from studies import tested as test_once
from torch import Tensor

from metadraw.command.cli import explain, one_line_errors

LOGS, OUT = ROOT / "logs" / "frontier", RESULTS / "frontier"
SHOWN = ((5, 1), (10, 5))  # in the summary and the figure
#: The network whose runs are done again; their seeds.
AGAIN, FIRST, SEED = "Conv4-20", 42, 1
#: Batch norm in the test: how, and its name in the tables.
STATISTICS = {"alone": "one picture at a time", "query": "a query set at once"}
TESTED = ["data.queries=5", "data.eval_seed=0"]

#: By network: its settings, those of its pre-training, and of LDA's shrinkage: the wider the
#: features, the more of it meta-validation wants.
NETWORKS = {
    "Conv4-20": (
        ["model=conv4"],
        ["trainer.max_epochs=40", "algorithm.label_smoothing=0", "optimizer.weight_decay=0.0001"],
        0.4,
    ),
    "Conv4-64": (
        ["model=conv64"],
        ["trainer.max_epochs=10", "algorithm.label_smoothing=0", "optimizer.weight_decay=0.0001"],
        0.8,
    ),
    "ResNet-12": (
        ["model=resnet12_small"],
        ["trainer.max_epochs=6", "trainer.precision=bf16-mixed"],
        0.8,
    ),
}
#: Episodic algorithms: their settings.
EPISODIC = {
    "MAML": ["algorithm=maml", "algorithm.inner_lr=0.1"],
    "ProtoNet": ["algorithm=protonet"],
    "UNICORN-MAML": [
        *("algorithm=unicorn_maml", "algorithm.inner_lr=0.1"),
        *("algorithm.inner_steps=5", "algorithm.eval_inner_steps=10"),
    ],
    "Meta-Baseline": ["algorithm=meta_baseline"],
    # What the ridge of MetaOptNet starts from (Lee et al. 2019).
    "R2-D2": ["algorithm=r2d2", "algorithm.ridge=50"],
}
#: Batches in each of five epochs, with gradients in the inner loop and without.
STEPS = {"Conv4-20": (120, 250), "Conv4-64": (40, 80), "ResNet-12": (6, 50)}
#: Batches of 25 meta-test tasks, likewise.
TESTS = {"Conv4-20": (16, 16), "Conv4-64": (3, 16), "ResNet-12": (1, 8)}
#: Any number of shots, so that one run can be tested with each.
TASKS = [
    *("data.train_shots=[1,10]", "data.train_queries=5", "data.train_tasks_per_batch=4"),
    *("data.shots=1", "data.queries=5", "data.val_batches=8", "scheduler=cosine"),
    *("learner.query_statistics=support", "trainer.max_epochs=5"),
]


class Run(NamedTuple):
    """One trained network."""

    network: str
    start: str  # scratch or pre-trained
    algorithm: str
    settings: list[str]
    after: Run | None = None  # the run that pre-trained its network
    again: bool = False  # with another seed

    @property
    def folder(self) -> Path:
        """Where its results are."""
        name = " ".join([*self[:3], *[f"seed {SEED}"] * self.again])
        return LOGS / name.replace(" ", "_")

    @property
    def passed_on(self) -> str:
        """The override that starts another run from its network."""
        return f"init_from={self.folder / 'checkpoints' / 'best.ckpt'}"

    @property
    def minutes(self) -> float:
        """Minutes of one core that its training took, with its pre-training."""
        return minutes(self.folder) + (self.after.minutes if self.after else 0)


def planned() -> list[Run]:
    """All runs, each after the one that it starts from."""
    return [*runs_of(NETWORKS), *runs_of([AGAIN], again=True)]


def runs_of(networks: Iterable[str], again: bool = False) -> list[Run]:
    """The runs of some networks, each after the one that it starts from.

    Args:
        networks: their names.
        again: with the second seed, without the other heads on the pre-trained network.
    """
    seed = [f"seed={SEED}"] if again else []  # a run's own default is FIRST
    bases: dict[str, Run] = {}
    heads, episodic = [], []

    def run(network: str, start: str, algorithm: str, *own: str, after: Run | None = None) -> Run:
        first = [after.passed_on] if after else []
        return Run(network, start, algorithm, [*own, *first, *seed], after, again)

    for network in networks:
        model, recipe, shrinkage = NETWORKS[network]
        ordinary = ["experiment=pretrain", *model, *recipe, "data.val_batches=8"]
        frozen = [*ordinary[:-1], "algorithm=logistic_regression", "trainer.max_epochs=0"]
        discriminant = ["algorithm=lda", f"algorithm.shrinkage={shrinkage}"]
        base = bases[network] = run(network, "pre-trained", "SimpleShot", *ordinary)
        if again:
            continue
        heads += [
            run(network, "pre-trained", "Baseline++", *ordinary, "algorithm=baseline_pp"),
            run(network, "pre-trained", "LDA", *ordinary, *discriminant),
            run(network, "pre-trained", "RFS", *frozen, after=base),
        ]
    # By algorithm, so that a study that is not finished has all networks.
    for algorithm, settings in EPISODIC.items():
        for network, base in bases.items():
            model, steps = NETWORKS[network][0], STEPS[network]["MAML" not in algorithm]
            own = [*settings, *model, *TASKS, f"data.train_batches={steps}"]
            fast, slow = "optimizer.lr=0.003", "optimizer.lr=0.0003"
            episodic += [
                run(network, "scratch", algorithm, *own, fast),
                run(network, "pre-trained", algorithm, *own, slow, after=base),
            ]
    return [*bases.values(), *heads, *episodic]


def finish(run: Run, overrides: list[str]) -> str:
    """Train, unless that is done, and do the tests that are missing; one line for people."""
    torch.set_num_threads(1)
    try:
        trained(run.folder, [*run.settings, "data.test_batches=1", *overrides])
        for ways, shots in SHOWN if run.again else SETTINGS:
            if run.algorithm == "MAML" and ways != 5:
                continue  # it learns a head for five
            for statistics in ["alone"] if run.again else STATISTICS:
                test(run, ways, shots, statistics)
    except Exception as error:
        return f"{run.folder.name}: {explain(error) or repr(error)}"
    return f"{run.folder.name}: {run.minutes:.1f} min, {accuracy(run, 5, 1, 'alone')} %"


def tested(run: Run, ways: int, shots: int, statistics: str) -> Path:
    """The folder of one test."""
    return run.folder / f"{task(ways, shots)} {statistics}".replace(" ", "_")


def test(run: Run, ways: int, shots: int, statistics: str) -> None:
    """One meta-test, unless its results exist."""
    learner = results(run.folder)["config"]["learner"]
    running = learner["query_statistics"] == "running"
    how = "query" if statistics == "query" else "running" if running else "support"
    settings = [
        *(f"data.ways={ways}", f"data.shots={shots}", f"learner.query_statistics={how}"),
        *(f"data.test_batches={TESTS[run.network]['MAML' not in run.algorithm]}", *TESTED),
    ]
    checkpoint = run.folder / "checkpoints" / "best.ckpt"
    test_once(tested(run, ways, shots, statistics), checkpoint, settings)


def found(run: Run, ways: int, shots: int, statistics: str) -> dict[str, float] | None:
    """The results of one test, if there are any."""
    folder = tested(run, ways, shots, statistics)
    return results(folder)["test"] if (folder / "results.json").exists() else None


def accuracy(run: Run, ways: int, shots: int, statistics: str) -> str:
    """Per cent, ± half the 95 % interval; empty if not tested."""
    result = found(run, ways, shots, statistics)
    return accuracy_of(result) if result else ""


def points(run: Run, base: Run, ways: int, shots: int, statistics: str = "alone") -> Tensor | None:
    """Differences of accuracy from another run's, in points, by task; `None` if not tested."""
    folders = [tested(each, ways, shots, statistics) for each in (run, base)]
    if not all((folder / "tasks.csv").exists() for folder in folders):
        return None
    return 100 * paired(*folders)


def difference(run: Run, base: Run, ways: int, shots: int, statistics: str) -> str:
    """`points`, in words; empty if not tested."""
    by_task = points(run, base, ways, shots, statistics)
    return "" if by_task is None else shown(by_task, sign="+")


def table(runs: list[Run], cell: Callable[..., str]) -> list[str]:
    """The lines of a table; ``cell`` takes a run, ways and shots."""
    head = ["network", "start", "algorithm", "minutes"]
    head += [task(*setting) for setting in SETTINGS]
    rows = [
        [*run[:3], f"{run.minutes:.1f}", *(cell(run, *setting) for setting in SETTINGS)]
        for run in runs
    ]
    return markdown(head, rows, left=3)


def summary(runs: list[Run]) -> list[str]:
    """5-way 1-shot and 10-way 5-shot, one picture at a time, by algorithm, network and start."""
    columns = list(dict.fromkeys((run.network, run.start) for run in runs))
    by_name = {run[:3]: run for run in runs}

    def cell(*name: str) -> str:
        run = by_name.get(name)
        parts = run and [found(run, *setting, "alone") for setting in SHOWN]
        return ", ".join(f"{100 * part['acc']:.1f}" if part else "-" for part in parts or [])

    rows = [
        [algorithm, *(cell(*column, algorithm) for column in columns)]
        for algorithm in dict.fromkeys(run.algorithm for run in runs)
    ]
    return markdown(["", *(f"{network}, {start}" for network, start in columns)], rows, left=1)


def verdict(pairs: list[tuple[Run, Run]], ways: int, shots: int) -> str:
    """How runs compare with their bases, one picture at a time; empty if none is tested."""
    tests = [each for pair in pairs if (each := points(*pair, ways, shots)) is not None]
    if not tests:
        return ""
    means = sorted(test.mean().item() for test in tests)
    better, worse = (
        sum(clear(test) and (test.mean() > 0) == wanted for test in tests)
        for wanted in (True, False)
    )
    return (
        f"In {task(ways, shots)} {better} of {len(tests)} are better and {worse} worse, beyond "
        f"the 95 % interval ({means[0]:+.1f} to {means[-1]:+.1f} points)."
    )


def findings(runs: list[Run], base: dict[str, Run]) -> list[str]:
    """What the tables say, in words."""
    by_name = {run[:3]: run for run in runs}
    episodic = [run for run in runs if run.algorithm in EPISODIC and run.network in base]
    scratch = [run for run in episodic if run.start == "scratch"]
    later = [run for run in episodic if run.start != "scratch"]
    pairs = {
        "Meta-learning from scratch, against SimpleShot, which is never trained in episodes": [
            (run, base[run.network]) for run in scratch
        ],
        "Meta-learning from the pre-trained network, against from scratch": [
            (run, by_name[key])
            for run in later
            if (key := (run.network, "scratch", run.algorithm)) in by_name
        ],
        "Meta-learning from the pre-trained network, against SimpleShot on it": [
            (run, base[run.network]) for run in later
        ],
        "Other heads, of Baseline++, LDA and RFS, against that of SimpleShot": [
            (run, base[run.network])
            for run in runs
            if run.algorithm in ("Baseline++", "LDA", "RFS") and run.network in base
        ],
    }
    lines = [
        " ".join([f"- *{title}.*", *(verdict(each, *setting) for setting in SHOWN)])
        for title, each in pairs.items()
        if each
    ]
    for network, first in base.items():
        best = max(
            (run for run in runs if run.network == network),
            key=lambda run: (found(run, 5, 1, "alone") or {"acc": 0.0})["acc"],
        )
        lines.append(
            f"- *{network}* is best in 5-way 1-shot with {best.algorithm}, {best.start}: "
            f"{accuracy(best, 5, 1, 'alone')} % after {best.minutes:.0f} minutes. SimpleShot has "
            f"{accuracy(first, 5, 1, 'alone')} % after {first.minutes:.0f}."
        )
    return lines


def repeated(runs: list[Run]) -> list[tuple[Run, Run]]:
    """The runs that were tested with both seeds."""
    by_name = {run[:3]: run for run in runs if not run.again}
    return [(by_name[run[:3]], run) for run in runs if run.again and found(run, 5, 1, "alone")]


def spread(pairs: list[tuple[Run, Run]]) -> str:
    """How accuracies differ between seeds, one picture at a time, in words."""
    lines = []
    for ways, shots in SHOWN:
        tests = [[found(run, ways, shots, "alone") for run in pair] for pair in pairs]
        both = [(100 * a["acc"], 100 * b["acc"]) for a, b in tests if a and b]
        deviation = fmean(map(variance, both)) ** 0.5
        lines.append(
            f"In {task(ways, shots)} its standard deviation is {deviation:.1f} points, and the "
            f"largest of {len(both)} differences is {max(abs(a - b) for a, b in both):.1f}."
        )
    return " ".join([f"- *Another seed* changes the accuracy of a run of {AGAIN}.", *lines])


def write(runs: list[Run], command: str) -> None:
    """Tables, figure and CSV of the finished runs."""
    done = [run for run in runs if found(run, 5, 1, "query")]
    base = {run.network: run for run in done if run.algorithm == "SimpleShot"}
    spent = [minutes(run.folder) for run in done if run.algorithm != "RFS"]
    others = [run for run in done if run.network in base and run != base[run.network]]
    pairs = repeated(runs)
    text = [
        "# What meta-learning buys",
        "",
        *summary(done),
        "",
        "Meta-test accuracy in per cent in 5-way 1-shot and in 10-way 5-shot, one picture at a "
        f"time, after {min(spent):.0f} to {max(spent):.0f} minutes of training, and those of "
        "SimpleShot before them if pre-trained. MAML learns a head for five classes.",
        "",
        *findings(done, base),
        *([spread(pairs)] if pairs else []),
        "",
        "![accuracy against minutes of training](frontier.png)",
        "",
        "## How",
        "",
        f"`{command}`, one thread per run, {platform.machine()} CPU, torch {torch.__version__}. "
        "Accuracy in per cent on 25 to 400 meta-test tasks of 5 queries a class, and the paired "
        "difference from SimpleShot on the same network in points, each ± half its 95 % interval. "
        "Minutes are those of one core, pre-training included. One seed per run, two of "
        f"{AGAIN}.",
    ]
    rows = []
    for statistics, title in STATISTICS.items():
        title = title.capitalize()
        text += ["", f"## {title}", "", *table(done, partial(accuracy, statistics=statistics))]

        def ahead(run: Run, ways: int, shots: int, statistics: str = statistics) -> str:
            return difference(run, base[run.network], ways, shots, statistics)

        text += ["", f"## {title}: difference from SimpleShot", "", *table(others, ahead)]
        for run in done:
            for ways, shots in SETTINGS:
                if result := found(run, ways, shots, statistics):
                    measured = [result[key] for key in ("acc", "acc_ci95", "tasks")]
                    rows.append([*run[:3], run.minutes, statistics, ways, shots, *measured])
    if pairs:
        head = [f"{task(*each)}, seed {seed}" for each in SHOWN for seed in (FIRST, SEED)]
        both = [
            [*pair[0][1:3], *(accuracy(run, *each, "alone") for each in SHOWN for run in pair)]
            for pair in pairs
        ]
        text += ["", f"## Two seeds of {AGAIN}", ""]
        text += markdown(["start", "algorithm", *head], both, left=2)
    missing = [run.folder.name for run in runs if not found(run, 5, 1, "alone")]
    if missing:
        text += ["", f"Not finished: {', '.join(missing)}."]
    columns = ["network", "start", "algorithm", "minutes", "statistics", "ways", "shots"]
    save(OUT, text, [*columns, "acc", "acc_ci95", "tasks"], rows)
    draw(done)


def draw(runs: list[Run]) -> None:
    """Accuracy against minutes of training, one picture at a time: the frontier."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    colours = dict(zip(NETWORKS, ("#4c78a8", "#59a14f", "#e4572e"), strict=True))
    names = dict.fromkeys(run.algorithm for run in runs)
    markers = dict(zip(names, "osdD^vP*X", strict=False))
    for axes, (ways, shots) in zip(figure.subplots(1, 2), SHOWN, strict=True):
        places = []
        for run in runs:
            if result := found(run, ways, shots, "alone"):
                value = 100 * result["acc"]
                colour = colours[run.network]
                filled = colour if run.start == "pre-trained" else "none"
                axes.plot(
                    [run.minutes], [value], markers[run.algorithm], color=colour, mfc=filled, ms=8
                )
                places.append((run.minutes, value))
        best, line = float("-inf"), []
        for spent, value in sorted(places):
            if value > best:
                best = value
                line.append((spent, value))
        axes.plot(*zip(*line, strict=True), color="0.7", zorder=0, drawstyle="steps-post")
        axes.set_title(task(ways, shots))
        axes.set_xlabel("minutes of training on one core")
        axes.set_ylabel("meta-test accuracy (%)")
        axes.grid(alpha=0.3)
    for name, colour in colours.items():
        axes.plot([], [], "o", color=colour, label=name)
    for name, marker in markers.items():
        axes.plot([], [], marker, color="0.4", label=name)
    axes.plot([], [], "o", color="0.4", mfc="none", label="from scratch: open")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right")
    figure.savefig(OUT.with_suffix(".png"), dpi=120)


def main() -> None:
    """Finish the runs, then write their tables."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, one thread each")
    parser.add_argument("--tables", action="store_true", help="of finished runs, without running")
    parser.add_argument("--only", default="", help="runs whose folder names contain this")
    parser.add_argument("overrides", nargs="*", help="for all runs, e.g. data.source=npm")
    given = parser.parse_args()
    runs = planned()
    if not given.tables:
        waiting = select(runs, given.only, lambda run: run.folder.name)
        bases = [run.after for run in runs if run.after]
        with ProcessPoolExecutor(given.jobs, multiprocessing.get_context("spawn")) as pool:
            # Those that others start from come first.
            for first in (True, False):
                chosen = [run for run in waiting if (run in bases) == first]
                for line in pool.map(finish, chosen, [given.overrides] * len(chosen)):
                    print(line, flush=True)
    write(runs, " ".join(["python benchmarks/frontier.py", *given.overrides]))


if __name__ == "__main__":
    with one_line_errors():
        main()
