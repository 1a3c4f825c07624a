"""What training with varying ways and shots buys and costs: tests over a grid of both.

python benchmarks/ways.py data.source=npm

A prototypical network is meta-trained on 5-way 1-shot tasks, on 10-way 5-shot tasks, and on tasks
between these, whose ways and shots are drawn for each batch or for each task. All are tested on the
same tasks. Runs are in logs/ways; the same command goes on where it was stopped.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from studies import (  # beside this file
    RESULTS,
    ROOT,
    clear,
    interval,
    markdown,
    minutes,
    percent,
    save,
    task,
    tested,
    trained,
    values,
)

from metadraw.command.cli import one_line_errors
from metadraw.results.figures import draw_grid

LOGS, OUT = ROOT / "logs" / "ways", RESULTS / "ways"
WAYS, SHOTS = (5, 10, 20), (1, 5)
GRID = [(ways, shots) for ways in WAYS for shots in SHOTS]
RANGES = ["data.ways=[5,10]", "data.shots=[1,5]"]
#: What meta-training draws.
EPISODES = {
    "5-way 1-shot": ["data.ways=5", "data.shots=1"],
    "10-way 5-shot": ["data.ways=10", "data.shots=5"],
    "drawn for each batch": [*RANGES, "data.vary=batch"],
    "drawn for each task": [*RANGES, "data.vary=task"],
}
VARYING = "drawn for each task"
#: Settings, and batches of 10 tasks.
LEARNERS = {"prototypical network": (["algorithm=protonet"], 100)}
TRAINED = ["data.queries=5", "data.tasks_per_batch=10", "optimizer.lr=0.003", "data.val_batches=2"]
TRAINED += ["trainer.max_epochs=1"]
TESTED = ["data.tasks_per_batch=10", "data.test_batches=12", "data.queries=5"]
#: ``[settings, tasks]`` accuracies by learner and what it was trained on.
Found = dict[tuple[str, str], torch.Tensor]


def folder_of(learner: str, episodes: str) -> Path:
    """The folder of a run."""
    return LOGS / f"{learner} {episodes}".replace(" ", "_")


def seconds_of(learner: str, episodes: str) -> float:
    """How long a run took, its validation included."""
    return 60 * minutes(folder_of(learner, episodes))


def measure(overrides: list[str]) -> Found:
    """The accuracy of each task in each setting, by learner and what it was trained on."""
    found: Found = {}
    for learner, (settings, batches) in LEARNERS.items():
        for episodes, sizes in EPISODES.items():
            own = [*settings, *sizes, f"data.train_batches={batches}", "data.test_batches=1"]
            folder = folder_of(learner, episodes)
            checkpoint = trained(folder, [*own, *TRAINED, *overrides])
            tests = []
            for ways, shots in GRID:
                grid = [f"data.ways={ways}", f"data.shots={shots}"]
                where = folder / f"{ways}-way_{shots}-shot"
                tests.append(values(tested(where, checkpoint, [*TESTED, *grid])))
            found[learner, episodes] = torch.stack(tests)
    return found


def difference(found: Found, learner: str, episodes: str) -> torch.Tensor:
    """By how much varying episodes are better than others, ``[settings, tasks]``."""
    return found[learner, VARYING] - found[learner, episodes]


def findings(found: Found) -> list[str]:
    """What the tables say."""
    lines = []
    for learner in LEARNERS:
        texts = []
        for episodes, ways, shots in (("5-way 1-shot", 5, 1), ("10-way 5-shot", 10, 5)):
            points = difference(found, learner, episodes)[GRID.index((ways, shots))]
            known = "" if clear(points) else " (no clear difference)"
            texts.append(f"{percent(points, '+')} points in {episodes}{known}")
        lines.append(
            f"- *{learner}*: against training for the tested setting, varying episodes give "
            f"{' and '.join(texts)}."
        )
        for episodes in ("5-way 1-shot", "10-way 5-shot", "drawn for each batch"):
            better, worse = (
                [
                    task(*setting)
                    for setting, points in zip(
                        GRID, difference(found, learner, episodes), strict=True
                    )
                    if clear(points) and (points.mean() > 0) == sign
                ]
                for sign in (True, False)
            )
            lines.append(
                f"- *{learner}*: against {episodes}, drawing for each task is clearly better in "
                f"{', '.join(better) or 'no setting'}, and clearly worse in "
                f"{', '.join(worse) or 'none'}."
            )
        seconds = {episodes: seconds_of(learner, episodes) for episodes in EPISODES}
        lines.append(
            f"- *{learner}*: masks cost time, since each task is padded to the largest: "
            f"{seconds[VARYING]:.0f} s of training instead of "
            f"{seconds['drawn for each batch']:.0f} s with one size a batch, and "
            f"{seconds['10-way 5-shot']:.0f} s with the largest size throughout."
        )
    return lines


def write(found: Found, command: str) -> None:
    """Tables, findings, figure and CSV."""
    names = [task(*setting) for setting in GRID]
    of_grid = [
        [
            f"{learner}, {episodes}",
            f"{seconds_of(learner, episodes):.0f}",
            *map(percent, found[learner, episodes]),
        ]
        for learner in LEARNERS
        for episodes in EPISODES
    ]
    apart = [
        [
            f"{learner}, against {episodes}",
            *(percent(points, "+") for points in difference(found, learner, episodes)),
        ]
        for learner in LEARNERS
        for episodes in EPISODES
        if episodes != VARYING
    ]
    tasks = next(iter(found.values())).shape[1]
    counts = " and ".join(f"{10 * n:,} ({name})" for name, (_, n) in LEARNERS.items())
    text = [
        "# Any number of ways and shots",
        "",
        f"`{command}`, one core of an {platform.machine()} CPU, torch {torch.__version__}. "
        f"Accuracy in per cent ± half its 95 % interval on {tasks} "
        f"meta-test tasks of 5 queries a class, after {counts} meta-training tasks with any "
        "episodes; one seed. Those tasks differ in size: with queries, one of 5-way 1-shot has 30 "
        "drawings, one of 10-way 5-shot 100. Seconds are those of training on the core.",
        "",
        *markdown(["trained on", "seconds", *names], of_grid, left=1),
        "",
        f"Episodes {VARYING}, paired difference in points:",
        "",
        *markdown(["", *names], apart, left=1),
        "",
        *findings(found),
        "",
        f"![Accuracy and differences over the grid of ways and shots]({OUT.name}.png)",
    ]
    columns = ["acc", "acc_ci95", "varying_minus_this", "varying_minus_this_ci95"]
    save(
        OUT,
        text,
        ["learner", "trained_on", "ways", "shots", *columns],
        [
            [*key, *setting, *(f"{n:.5f}" for v in both for n in interval(v))]
            for key, settings in found.items()
            for setting, *both in zip(GRID, settings, difference(found, *key), strict=True)
        ],
    )
    draw(found)


def draw(found: Found) -> None:
    """Heat maps: the accuracy with varying episodes, and its differences from the others."""
    others = [episodes for episodes in EPISODES if episodes != VARYING]
    figure = Figure(figsize=(11, 2.6 * len(LEARNERS) + 0.3), layout="constrained")
    grid = figure.subplots(len(LEARNERS), 1 + len(others), squeeze=False)
    columns, rows = [f"{n}-shot" for n in SHOTS], [f"{n}-way" for n in WAYS]

    def table(accuracies: torch.Tensor) -> list[list[float]]:
        means = [interval(100 * values)[0] for values in accuracies]
        return [means[i : i + len(SHOTS)] for i in range(0, len(means), len(SHOTS))]

    apart = {key: table(difference(found, *key)) for key in found}
    most = max(abs(value) for rows in apart.values() for row in rows for value in row)
    for line, learner in zip(grid, LEARNERS, strict=True):
        draw_grid(line[0], table(found[learner, VARYING]), rows, columns)
        line[0].set_title(f"{learner}\n{VARYING}: accuracy (%)", fontsize=9)
        for axes, episodes in zip(line[1:], others, strict=True):
            draw_grid(axes, apart[learner, episodes], rows, columns, form="+.1f", differences=most)
            axes.set_title(f"difference from training\n{episodes} (points)", fontsize=9)
    figure.savefig(OUT.with_suffix(".png"), dpi=130)


def main() -> None:
    """Train and test what is missing, then write."""
    torch.set_num_threads(1)
    overrides = sys.argv[1:]
    write(measure(overrides), " ".join(["python benchmarks/ways.py", *overrides]))


if __name__ == "__main__":
    with one_line_errors():
        main()
