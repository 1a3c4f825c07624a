"""What unlabelled examples add: paired differences from the same learner without any.

python benchmarks/unlabelled.py data.source=npm

A prototypical network, its three refinements by soft k-means (Ren et al. 2018), UNICORN-MAML and
self-training see the same meta-training tasks; those that can learn from unlabelled drawings get
some, also of other classes. All are tested on the same tasks, with more or fewer of them. Runs are
in logs/unlabelled; the same command goes on where it was stopped.
"""

from __future__ import annotations

import platform
import sys

import torch
from matplotlib.figure import Figure
from studies import (  # beside this file
    RESULTS,
    ROOT,
    clear,
    interval,
    markdown,
    percent,
    save,
    tested,
    trained,
    values,
)

from metadraw.command.cli import one_line_errors

LOGS, OUT = ROOT / "logs" / "unlabelled", RESULTS / "unlabelled"
#: Unlabelled drawings of each class in tests, and classes beside the task's that have as many.
NUMBERS, DISTRACTORS = (0, 1, 2, 5, 10), (0, 5)
MORE = ["data.unlabelled=5", "data.distractors=2"]
STEPS = ["algorithm.inner_steps=5", "algorithm.eval_inner_steps=5"]
TRAINED = ["data.queries=5", "data.tasks_per_batch=10", "optimizer.lr=0.003", "data.val_batches=2"]
TRAINED += ["data.train_batches=120", "data.test_batches=1", "trainer.max_epochs=1"]
TESTED = ["data.tasks_per_batch=10", "data.test_batches=20"]
#: Name: settings, and the learner without unlabelled examples.
LEARNERS: dict[str, tuple[list[str], str | None]] = {
    "prototypical network": (["algorithm=protonet"], None),
    **{
        name: (
            ["algorithm=soft_kmeans_protonet", f"algorithm.distractors={kind}", *MORE],
            "prototypical network",
        )
        for name, kind in (
            ("soft k-means", "ignore"),
            ("soft k-means, cluster", "cluster"),
            ("soft k-means, masks", "mask"),
        )
    },
    "UNICORN-MAML": (["algorithm=unicorn_maml", *STEPS], None),
    "self-training": (
        ["algorithm=self_training", "algorithm.self_training_steps=3", *STEPS, *MORE],
        "UNICORN-MAML",
    ),
}
Found = dict[tuple[str, int, int], torch.Tensor]


def measure(overrides: list[str]) -> Found:
    """The accuracy of each task, by learner, unlabelled drawings and classes beside the task's."""
    found: Found = {}
    for name, (settings, base) in LEARNERS.items():
        folder = LOGS / name.replace(",", "").replace(" ", "_")
        checkpoint = trained(folder, [*settings, *TRAINED, *overrides])
        for distractors in DISTRACTORS if base else (0,):
            for number in NUMBERS if base else (0,):
                others = distractors if number else 0
                own = [f"data.unlabelled={number}", f"data.distractors={others}"]
                where = folder / f"{number}_unlabelled_{others}_distractors"
                found[name, number, distractors] = values(
                    tested(where, checkpoint, [*TESTED, *own])
                )
    return found


def gain(found: Found, name: str, number: int, distractors: int) -> torch.Tensor:
    """By how much each task's accuracy differs from that of the learner without them."""
    base = LEARNERS[name][1]
    assert base
    return found[name, number, distractors] - found[base, 0, 0]


def findings(found: Found) -> list[str]:
    """What the table says."""
    lines, most = [], NUMBERS[-1]
    for name in (name for name, (_, base) in LEARNERS.items() if base):
        texts = []
        for distractors in DISTRACTORS:
            points = gain(found, name, most, distractors)
            beside = f"with {distractors} other classes" if distractors else "of its own classes"
            known = "" if clear(points) else ", no clear difference"
            texts.append(f"{percent(points, '+')} points {beside}{known}")
        lines.append(f"- *{name}*, {most} unlabelled drawings a class: {'; '.join(texts)}.")
    without = [
        f"{name} {percent(gain(found, name, 0, 0), '+')}"
        for name, (_, base) in LEARNERS.items()
        if base
    ]
    lines.append(
        "- Tested without any, those that were trained with unlabelled drawings differ from the "
        f"learner that was not by: {', '.join(without)} points."
    )
    plain, masks = "soft k-means", "soft k-means, masks"
    if {plain, masks} <= LEARNERS.keys():
        points = found[masks, most, DISTRACTORS[-1]] - found[plain, most, DISTRACTORS[-1]]
        ahead = "clearly differ" if clear(points) else "do not clearly differ"
        lines.append(
            f"- In the paper, masks are best with other classes. Here they {ahead} from plain "
            f"{plain} there: {percent(points, '+')} points."
        )
    return lines


def write(found: Found, command: str) -> None:
    """Table, findings, figure and CSV."""
    bases = [name for name, (_, base) in LEARNERS.items() if not base]
    head = ["learner", "other classes", *map(str, NUMBERS)]
    rows = [
        [
            name,
            str(distractors),
            *(percent(gain(found, name, n, distractors), "+") for n in NUMBERS),
        ]
        for name, (_, base) in LEARNERS.items()
        if base
        for distractors in DISTRACTORS
    ]
    accuracies = " and ".join(f"{percent(found[name, 0, 0])} % ({name})" for name in bases)
    tasks = len(found[bases[0], 0, 0])
    text = [
        "# Unlabelled examples",
        "",
        f"`{command}`, one core of an {platform.machine()} CPU, torch {torch.__version__}. 5-way "
        "1-shot with 5 queries a class, 1,200 meta-training tasks "
        f"and the same {tasks} meta-test tasks for all, one seed. Without unlabelled drawings: "
        f"{accuracies}. The table shows the paired difference from that in points, ± half its 95 % "
        "interval, by the number of unlabelled drawings of each class. Other classes have as many. "
        "In meta-training there were 5 of each class and of 2 other classes.",
        "",
        *markdown(head, rows, left=1),
        "",
        *findings(found),
        "",
        f"![Difference in accuracy by the number of unlabelled drawings]({OUT.name}.png)",
    ]
    columns = ["learner", "unlabelled", "distractors", "acc", "acc_ci95", "gain", "gain_ci95"]
    lines = []
    for key, own in found.items():
        both = (own, gain(found, *key)) if LEARNERS[key[0]][1] else (own,)
        lines.append([*key, *(f"{n:.5f}" for v in both for n in interval(v))])
    save(OUT, text, columns, lines)
    draw(found)


def draw(found: Found) -> None:
    """Differences by number, with their intervals; without and with other classes."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, len(DISTRACTORS), sharey=True)
    for axes, distractors in zip(panels, DISTRACTORS, strict=True):
        names = [name for name, (_, base) in LEARNERS.items() if base]
        for place, name in enumerate(names):
            points = [gain(found, name, n, distractors) for n in NUMBERS]
            # Beside each other, so that intervals can be told apart.
            x = [
                position + 0.09 * (place - (len(names) - 1) / 2) for position in range(len(points))
            ]
            axes.errorbar(
                x,
                *zip(*(interval(100 * p) for p in points), strict=True),
                fmt="-" + "osD^"[place],
                color=("#4c78a8", "#f2a03d", "#59a14f", "#e4572e")[place],
                label=name,
                capsize=2,
                ms=5,
            )
        axes.axhline(0, color="0.5", lw=1, zorder=0)
        axes.set_xticks(range(len(NUMBERS)), map(str, NUMBERS))
        axes.set_xlabel("unlabelled drawings of each class")
        axes.set_title(
            f"and of {distractors} other classes" if distractors else "of no other classes"
        )
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("difference in accuracy (points)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(OUT.with_suffix(".png"), dpi=130)


def main() -> None:
    """Train and test what is missing, then write."""
    torch.set_num_threads(1)
    overrides = sys.argv[1:]
    write(measure(overrides), " ".join(["python benchmarks/unlabelled.py", *overrides]))


if __name__ == "__main__":
    with one_line_errors():
        main()
