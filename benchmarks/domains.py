"""Doodles and icons: learn from one, be asked about the other.

python benchmarks/domains.py data.domains.doodles.source=npm

Six prototypical networks of the same budget differ in what they were meta-trained on: doodles,
icons, tasks of either, mixed tasks, and tasks that are learned from one and asked about the other.
All are tested on the same classes in all four combinations. Runs are in logs/domains; finished ones
are kept, so the command can be interrupted and repeated. Table and figure go to
benchmarks/results/domains.{md,csv,png}.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from hydra.utils import instantiate
from matplotlib.figure import Figure
from studies import (  # beside this file
    RESULTS,
    ROOT,
    interval,
    markdown,
    save,
    shown,
    tested,
    trained,
    values,
)
from torch import Tensor

import metadraw
from metadraw.command.cli import one_line_errors

LOGS, OUT = ROOT / "logs" / "domains", RESULTS / "domains"
DOMAINS = ("doodles", "icons")
#: A support and a query domain.
Test: TypeAlias = tuple[str, str]
#: The accuracy of each meta-test task, in per cent, by what was meta-trained on, and by test.
Results: TypeAlias = dict[str, dict[Test, Tensor]]
#: Meta-training on tasks of both domains.
EITHER = "doodles or icons"
#: By name: the settings of meta-training.
TRAINED = {
    "doodles": ["data.support_domain=doodles", "data.query_domain=doodles"],
    "icons": ["data.support_domain=icons", "data.query_domain=icons"],
    EITHER: ["data.tasks=per_domain"],
    "doodles and icons, mixed": ["data.tasks=mixed"],
    "icons → doodles": ["data.support_domain=icons", "data.query_domain=doodles"],
    "doodles → icons": ["data.support_domain=doodles", "data.query_domain=icons"],
}
#: Support and query domain of each test.
TESTS = [(support, query) for query in DOMAINS for support in DOMAINS]
#: Icons are few: drawings are augmented, and the queries are as many as all classes allow.
SHARED = [
    *("data=domains", "algorithm=protonet", "data.queries=4", "data.mirror=true"),
    *("data.rotation=15", "data.zoom=0.2", "data.shear=10", "optimizer.lr=0.003"),
    *("data.train_batches=80", "data.val_batches=4", "trainer.max_epochs=5", "data.shift=2"),
]
BATCHES = 16  # of 25 meta-test tasks


def folder(trained: str) -> Path:
    """Of a run."""
    return LOGS / trained.replace(" → ", "-to-").replace(",", "").replace(" ", "-")


def title(support: str, query: str) -> str:
    """Of a test."""
    return query if support == query else f"{support} → {query}"


def finish(name: str, overrides: list[str]) -> dict[Test, Tensor]:
    """The accuracy of each meta-test task in each test; trains and tests if that is not done."""
    run = folder(name)
    checkpoint = trained(run, [*SHARED, *TRAINED[name], *overrides])
    found = {}
    for support, query in TESTS:
        domains = [f"+data.support_domain={support}", f"+data.query_domain={query}"]
        own = ["+data.tasks=per_domain", f"data.test_batches={BATCHES}"]
        done = tested(run / f"{support}-{query}", checkpoint, [*domains, *own])
        found[support, query] = 100 * values(done)
    return found


def findings(results: Results) -> str:
    """What the table says, in sentences; differences are paired by task."""
    sentences = []
    for own, other in (DOMAINS, DOMAINS[::-1]):
        from_own = results[own][own, own]
        others = [shown(results[name][own, own] - from_own, sign="+") for name in (other, EITHER)]
        sentences.append(
            f"Tested on {own}, a network that was trained on {other} instead differs by "
            f"{others[0]} points, and one that was trained on tasks of either by {others[1]}."
        )
    for support, query in (DOMAINS[::-1], DOMAINS):
        lost = results[EITHER][support, query] - results[EITHER][query, query]
        across = title(support, query)
        gained = results[across][support, query] - results[EITHER][support, query]
        sentences.append(
            f"For the network of both, learning from {support} instead of {query} changes the "
            f"accuracy on the same {query} by {shown(lost, sign='+')} points; one that was trained "
            f"on just such tasks differs from it by {shown(gained, sign='+')} points there."
        )
    return " ".join(sentences)


def write(results: Results, command: str) -> None:
    """Table and CSV."""
    head = ["meta-trained on", *(title(*test) for test in TESTS)]
    rows = [[name, *(shown(of_run[test]) for test in TESTS)] for name, of_run in results.items()]
    cfg = metadraw.compose(*SHARED)
    seen = cfg.data.train_batches * cfg.trainer.max_epochs * cfg.data.tasks_per_batch
    text = [
        "# Doodles and icons",
        "",
        f"`{command}`, one thread, {os.cpu_count()} CPU cores, torch {torch.__version__}. "
        "Meta-test accuracy in per cent ± half its 95 % interval, 5-way 1-shot, "
        f"{len(results[EITHER][TESTS[0]])} tasks of 4 queries a class, the same for all; "
        '"icons → doodles" learns from icons and is asked about doodles. Prototypical networks '
        f"(`algorithm=protonet`) after {seen:,} tasks, on the classes that both domains have; "
        "batch norm by the query set at once; one seed.",
        "",
        *markdown(head, rows, left=1),
        "",
        f"{findings(results)} Icons among themselves are easier than icons of an unseen set would "
        "be: the two sets of Fluent share their designs. The budget is short: longer training may "
        "order the networks differently.",
        "",
        "![Doodles and icons, and the accuracies of the table](domains.png)",
    ]
    save(
        OUT,
        text,
        ["trained", "support", "query", "acc", "acc_ci95", "tasks"],
        [
            [name, *test, *(f"{each:.4f}" for each in interval(of_tasks)), len(of_tasks)]
            for name, of_run in results.items()
            for test, of_tasks in of_run.items()
        ],
    )


def draw(results: Results, overrides: list[str]) -> None:
    """A doodle and icons of some classes, and the accuracies."""
    data = instantiate(metadraw.compose(*SHARED, *overrides).data)
    data.setup()
    names = data.drawings.classes
    classes = [names[number] for number in np.linspace(0, len(names) - 1, 9).astype(int)]
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.4])
    rows = []
    for name in classes:
        number = names.index(name)
        of_class = [
            image.reshape(data.image_size, data.image_size)
            for part, count in (("doodles", 3), ("icons", 4))
            for image in data.parts[part].drawings.images[number][:count]
        ]
        rows.append(np.concatenate([np.pad(255 - i, 3, constant_values=255) for i in of_class], 1))
    left.imshow(np.concatenate(rows), cmap="gray", vmin=0, vmax=255)
    side = data.image_size + 6
    left.set_yticks([side * (row + 0.5) for row in range(len(rows))], classes)
    left.set_xticks([1.5 * side, 5 * side], ["doodles", "icons"])
    left.axvline(3 * side - 0.5, color="0.7")
    left.tick_params(length=0)
    left.spines[:].set_visible(False)
    colours = ("#4c78a8", "#e4572e", "#59a14f", "#b07aa1", "#f1a340", "#777777")
    height = 0.8 / len(results)
    for number, (name, of_run) in enumerate(results.items()):
        places = [place + (number - (len(results) - 1) / 2) * height for place in range(len(TESTS))]
        means, halves = zip(*(interval(of_run[test]) for test in TESTS), strict=True)
        right.errorbar(
            means,
            places,
            xerr=halves,
            fmt="o",
            color=colours[number],
            label=name,
        )
    right.set_yticks(range(len(TESTS)), [f"tested:\n{title(*test)}" for test in TESTS])
    right.invert_yaxis()
    for place in range(1, len(TESTS)):
        right.axhline(place - 0.5, color="0.85", linewidth=1)
    right.set_xlabel("meta-test accuracy (%), 5-way 1-shot")
    right.grid(axis="x", alpha=0.3)
    right.legend(title="meta-trained on", fontsize="small", loc="best")
    figure.savefig(OUT.with_suffix(".png"), dpi=120)


def main() -> None:
    """Finish the runs, then write table and figure."""
    overrides = sys.argv[1:]
    results: Results = {}
    for name in TRAINED:
        began = time.perf_counter()
        results[name] = finish(name, overrides)
        line = ", ".join(f"{title(*test)} {shown(results[name][test])}" for test in TESTS)
        print(f"{name}: {line} ({time.perf_counter() - began:.0f} s)", flush=True)
    write(results, " ".join(["python benchmarks/domains.py", *overrides]))
    draw(results, overrides)


if __name__ == "__main__":
    with one_line_errors():
        main()
