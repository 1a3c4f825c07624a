"""Characters and doodles: three ways to learn, within Omniglot and from one data set to the other.

python benchmarks/omniglot.py --omniglot FOLDER data.source=npm

All networks are the report's, each trained for half a minute to two minutes of one core, with each
orientation of a class as a class. Every picture is classified by itself. The checkpoint that comes
with metadraw is tested on the characters as well, for each way of preparing them. Runs are in
logs/omniglot; finished ones are kept, so the command can be interrupted and repeated. Tables and
figure go to benchmarks/results/omniglot.{md,csv,png}.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path
from typing import NamedTuple

import torch
from hydra.utils import instantiate
from matplotlib.figure import Figure
from studies import (  # beside this file
    RESULTS,
    ROOT,
    accuracy,
    markdown,
    minutes,
    paired,
    percent,
    results,
    save,
    tested,
    trained,
)

import metadraw
from metadraw.command.cli import one_line_errors

LOGS, OUT = ROOT / "logs" / "omniglot", RESULTS / "omniglot"
#: By method: its settings, and batches in each of four epochs.
METHODS = {
    "MAML, 5-way": ["algorithm.inner_lr=0.1", "data.tasks_per_batch=8", "data.train_batches=150"],
    "MAML, 20-way": [
        *("algorithm.inner_lr=0.1", "data.ways=20", "data.tasks_per_batch=4"),
        "data.train_batches=40",
    ],
    "ProtoNet": [
        *("algorithm=protonet", "data.train_ways=20", "data.train_queries=5"),
        *("data.tasks_per_batch=8", "data.train_tasks_per_batch=1", "data.train_batches=200"),
    ],
    "pre-training": [
        *("experiment=pretrain", "model=conv4", "algorithm.label_smoothing=0"),
        *("optimizer.weight_decay=0.0001", "data.mirror=false", "data.train_batches=150"),
    ],
}
#: Those that are also trained on doodles.
ACROSS = ("ProtoNet", "pre-training")
EPISODIC = ["optimizer.lr=0.003", "learner.query_statistics=support"]
COMMON = ["trainer.max_epochs=4", "data.new_classes=rotations", "data.val_batches=10"]
#: Ways, shots, and whether a task's characters are of one alphabet.
SETTINGS = [(5, 1, False), (5, 5, False), (20, 1, False), (20, 5, False), (20, 1, True)]
TESTED = ["data.queries=5", "data.tasks_per_batch=10", "data.eval_seed=0"]
SHIPPED = ROOT / "checkpoints" / "best.ckpt"
#: What `data.prepare` makes of dark ink on white.
PREPARE = {
    "as_is": "unchanged, dark on white",
    "inverted": "light on black",
    "ink": "light on black, centred, with even strokes",
}
BATCHES = {5: 40, 20: 10}  # of tasks, by ways
#: Of the figure.
COLOURS = {"MAML": "#4c78a8", "ProtoNet": "#59a14f", "pre-training": "#e4572e"}


class Run(NamedTuple):
    """One trained network."""

    data: str  # characters or doodles
    method: str

    @property
    def folder(self) -> Path:
        """Where its results are."""
        return LOGS / f"{self.data} {self.method}".replace(",", "").replace(" ", "_")

    @property
    def minutes(self) -> float:
        """Minutes of one core that its training took."""
        return minutes(self.folder)


class Test(NamedTuple):
    """One meta-test of a run."""

    run: Run
    data: str
    ways: int
    shots: int
    within: bool = False

    @property
    def folder(self) -> Path:
        """Where its results are."""
        kind = "within" if self.within else "all"
        return self.run.folder / f"{self.data}_{self.ways}-way_{self.shots}-shot_{kind}"

    @property
    def found(self) -> dict[str, float]:
        """Its results."""
        return results(self.folder)["test"]

    @property
    def accuracy(self) -> str:
        """Per cent, ± half the 95 % interval."""
        return accuracy(self.found)


def fits(method: str, ways: int) -> bool:
    """Whether a method can be tested with so many ways: MAML learns a head for a fixed number."""
    return method.split(", ")[-1] in (f"{ways}-way", method)


def planned() -> tuple[list[Test], list[Test]]:
    """The tests within Omniglot, and those from one data set to the other."""
    ways, shots, _ = SETTINGS[0]
    within = [
        Test(Run("characters", method), "characters", *setting)
        for method in METHODS
        for setting in SETTINGS
        if fits(method, setting[0])
    ]
    across = [
        Test(Run(learned, method), asked, ways, shots)
        for method in ACROSS
        for learned in ("characters", "doodles")
        for asked in ("characters", "doodles")
    ]
    return within, across


def settings_of(run: Run, data: dict[str, list[str]]) -> list[str]:
    """The overrides that train a run."""
    own = [*METHODS[run.method], *COMMON, *data[run.data]]
    if run.method != "pre-training":
        return [*own, *EPISODIC]
    cfg = metadraw.compose(*own)
    return [*own, f"algorithm.classes={instantiate(cfg.data).class_count}"]


def finish(test: Test, data: dict[str, list[str]]) -> None:
    """Train the run of a test, and test it, unless that is done."""
    run = test.run
    checkpoint = trained(run.folder, [*settings_of(run, data), "data.test_batches=1"])
    settings = [
        *(data[test.data] if test.data != run.data else []),
        *(*TESTED, f"data.ways={test.ways}", f"data.shots={test.shots}"),
        f"data.test_batches={BATCHES[test.ways]}",
        *(["data.within_groups=true"] if test.within else []),
    ]
    tested(test.folder, checkpoint, settings)
    print(f"{test.folder.relative_to(LOGS)}: {test.accuracy} %", flush=True)


def shipped(prepare: str, data: dict[str, list[str]]) -> None:
    """Test the checkpoint that comes with metadraw on all characters, unless that is done."""
    ways, shots, _ = SETTINGS[0]
    folder = LOGS / "shipped" / prepare
    settings = [
        *(*data["characters"], "split=all", f"data.prepare={prepare}"),
        *(*TESTED, f"data.ways={ways}", f"data.shots={shots}"),
        f"data.test_batches={BATCHES[ways] // 4 or 1}",
    ]
    found = results(tested(folder, SHIPPED, settings))["test"]
    print(f"shipped, {prepare}: {accuracy(found)} %", flush=True)


def findings(within: list[Test], across: list[Test]) -> list[str]:
    """Sentences, computed from the results."""
    lines = []
    for setting in SETTINGS:
        tests = sorted((t for t in within if t[2:] == setting), key=lambda t: -t.found["acc"])
        name = f"{setting[0]}-way {setting[1]}-shot{', one alphabet' * setting[2]}"
        order = ", then ".join(f"{t.run.method.split(',')[0]} ({t.accuracy})" for t in tests)
        lines.append(f"{name}: {order}.")
    for learned, asked in (("doodles", "characters"), ("characters", "doodles")):
        lost = []
        for test in (t for t in across if (t.run.data, t.data) == (learned, asked)):
            own = Test(Run(asked, test.run.method), asked, test.ways, test.shots)
            lost.append(f"{test.run.method.split(',')[0]} {difference(test, own)}")
        lines.append(
            f"Trained on {learned} instead of {asked}, and tested on {asked}, in points, paired "
            f"by task: {'; '.join(lost)}."
        )
    return lines


def difference(test: Test, base: Test) -> str:
    """Of accuracy from another test's, in points, paired by task."""
    return percent(paired(test.folder, base.folder), sign="+")


def write(within: list[Test], across: list[Test], command: str) -> None:
    """Tables, findings, figure and CSV."""
    runs = list(dict.fromkeys(test.run for test in (*within, *across)))
    head = [f"{w}-way {s}-shot{', one alphabet' * one}" for w, s, one in SETTINGS]
    rows = []
    for run in (run for run in runs if run.data == "characters"):
        cells = {test[2:]: test.accuracy for test in within if test.run == run}
        rows.append([run.method, f"{run.minutes:.1f}", *(cells.get(s, "") for s in SETTINGS)])
    across_rows = []
    for run in dict.fromkeys(test.run for test in across):
        cells = [test.accuracy for test in across if test.run == run]
        across_rows.append([run.method, run.data, f"{run.minutes:.1f}", *cells])
    prepared = [results(LOGS / "shipped" / name)["test"] for name in PREPARE]
    prepared_rows = [
        [f"`{name}`", PREPARE[name], accuracy(result)]
        for name, result in zip(PREPARE, prepared, strict=True)
    ]
    source = results(within[0].folder)["data"]
    text = [
        "# Characters and doodles",
        "",
        f"`{command}`, one thread, {platform.machine()} CPU, torch {torch.__version__}. "
        "The characters are the two small background sets of Omniglot together, 242 of 8 "
        "alphabets, so figures are not those of papers on all 1,623 characters: 5 alphabets "
        f"meta-train, 1 validates, 2 test (sha256 {source['sha256'][:12]}). Accuracy in per cent "
        "on meta-test tasks of 5 queries a class, "
        f"{_counts()}, ± half its "
        "95 % interval. Minutes are those of one core; these trainings are short and differ in "
        "length, so the order of the methods may change with more. One seed a run.",
        "",
        *markdown(["method", "minutes", *head], rows, left=1),
        "",
        f"{SETTINGS[0][0]}-way {SETTINGS[0][1]}-shot, from one data set to the other:",
        "",
        *markdown(
            ["method", "trained on", "minutes", "tested on characters", "on doodles"],
            across_rows,
            left=1,
        ),
        "",
        "The checkpoint that comes with metadraw, trained on doodles, on characters of all "
        f"alphabets, {SETTINGS[0][0]}-way {SETTINGS[0][1]}-shot, {prepared[0]['tasks']:.0f} tasks:",
        "",
        *markdown(["`data.prepare`", "characters", "accuracy"], prepared_rows, left=1),
        "",
        *(f"- {line}" for line in findings(within, across)),
        "",
        "![Accuracy by method and setting](omniglot.png)",
    ]
    columns = ["method", "trained_on", "minutes", "tested_on", "ways", "shots", "one_alphabet"]
    measured = ["acc", "acc_ci95", "tasks"]
    lines = []
    for test in dict.fromkeys((*within, *across)):
        run, found = test.run, test.found
        where = [run.method, run.data, run.minutes, *test[1:]]
        lines.append([*where, *(found[key] for key in measured)])
    for name, found in zip(PREPARE, prepared, strict=True):
        where = [f"shipped, data.prepare={name}", "doodles", "", "characters", *SETTINGS[0]]
        lines.append([*where, *(found[key] for key in measured)])
    save(OUT, text, [*columns, *measured], lines)
    draw(within, across)


def _counts() -> str:
    return " and ".join(f"{10 * batches} of {ways} classes" for ways, batches in BATCHES.items())


def draw(within: list[Test], across: list[Test]) -> None:
    """Bars by method: within Omniglot by setting, and between the data sets."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(5, 4))
    ways = [f"{w}-way\n{s}-shot{chr(10) + 'one alphabet' * one}" for w, s, one in SETTINGS]
    bars(left, ways, [(SETTINGS.index(test[2:]), test) for test in within])
    left.set_title("characters of new alphabets")
    moves = [(a, b) for b in ("characters", "doodles") for a in ("characters", "doodles")]
    names = [f"{a}\nto {b}" for a, b in moves]
    bars(right, names, [(moves.index((test.run.data, test.data)), test) for test in across])
    right.set_title(f"{across[0].ways}-way {across[0].shots}-shot, from one data set to the other")
    for name, colour in COLOURS.items():
        left.bar([0], [0], color=colour, label=name)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(OUT.with_suffix(".png"), dpi=120)


def bars(axes: object, names: list[str], tests: list[tuple[int, Test]]) -> None:
    """One group of bars for each name."""
    width = 0.26
    for place, test in tests:
        number = list(COLOURS).index(test.run.method.split(",")[0])
        value, error = 100 * test.found["acc"], 100 * test.found["acc_ci95"]
        x = place + (number - 1) * width
        colour = list(COLOURS.values())[number]
        axes.bar(x, value, width * 0.92, color=colour, yerr=error, ecolor="0.25", capsize=2)
        axes.text(x, value + error + 1, f"{value:.0f}", ha="center", fontsize=8)
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_ylabel("meta-test accuracy (%)")
    axes.set_ylim(0, 105)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Finish the tests, then write their tables."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--omniglot", required=True, help="the folder of its small background sets")
    parser.add_argument("overrides", nargs="*", help="for the doodles, e.g. data.source=npm")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = {
        "characters": [
            *("data=omniglot", "data.source=path", f"data.path={given.omniglot}"),
            "data.split=alphabets",
        ],
        "doodles": ["data=quickdraw", *given.overrides],
    }
    within, across = planned()
    for test in (*within, *across):
        finish(test, data)
    for prepare in PREPARE:
        shipped(prepare, data)
    command = "python benchmarks/omniglot.py --omniglot FOLDER"
    write(within, across, " ".join([command, *given.overrides]))


if __name__ == "__main__":
    with one_line_errors():
        main()
