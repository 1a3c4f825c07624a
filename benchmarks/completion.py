"""Drawings of new classes, completed from 20 to 200 of their 784 pixels.

python benchmarks/completion.py data.drawings.source=npm

MAML meta-trains on 100 known pixels of each drawing. It is tested on the same drawings of
meta-test classes with 20, 50, 100 and 200 known pixels: the mean squared error over the whole
picture, before adaptation and after it. Two completions that learn nothing from other drawings are
beside it: the mean of the known pixels everywhere, and each pixel as the nearest known one.

The run is in logs/completion; a finished one is kept. The results go to
benchmarks/results/completion.{md,csv,png}.
"""

from __future__ import annotations

import argparse
import platform

import torch
from by_step import outer_steps  # beside this file
from studies import RESULTS, ROOT, interval, markdown, minutes, save, shown, trained
from torch import Tensor

import metadraw
from metadraw.command.cli import one_line_errors
from metadraw.data.episode import Episode
from metadraw.data.figures import draw_completion

LOGS, OUT = ROOT / "logs" / "completion", RESULTS / "completion"
SHOTS, DRAWN = (20, 50, 100, 200), 100
TASKS, PICTURES = 500, 4
COMMON = [
    *("experiment=completion", "data.train_batches=100", "trainer.max_epochs=6"),
    *("data.val_batches=10", "data.test_batches=4", "scheduler=cosine", "optimizer.lr=0.002"),
]
#: By key: the title of a completion.
KINDS = {
    "mean": "mean of the known pixels",
    "nearest": "nearest known pixel",
    "before": "MAML before adaptation",
    "after": "MAML, adapted",
}


def completions(shots: int, tasks: int) -> tuple[Episode, dict[str, Tensor]]:
    """Meta-test tasks, and their pictures ``[T, 784, 1]`` by kind."""
    path = LOGS / "MAML" / "checkpoints" / "best.ckpt"
    data, learner = metadraw.load(path, f"data.shots={shots}")
    batch = data.episodes("test")(torch.arange(tasks))
    outcome = learner.evaluate(batch)
    known = batch.support.y
    near = torch.cdist(batch.query.x, batch.support.x).argmin(dim=-1, keepdim=True)
    return batch, {
        "mean": known.mean(dim=1, keepdim=True).expand_as(batch.query.y),
        "nearest": known.take_along_dim(near, dim=1),
        "before": outcome.before,
        "after": outcome.after,
    }


def study(overrides: list[str]) -> dict[tuple[str, int], Tensor]:
    """Errors ``[tasks]`` by kind and known pixels."""
    trained(LOGS / "MAML", [*COMMON, *overrides])
    errors = {}
    for shots in SHOTS:
        batch, pictures = completions(shots, TASKS)
        for kind, picture in pictures.items():
            errors[kind, shots] = (picture - batch.query.y).square().mean(dim=(1, 2))
        print(shots, [shown(errors[kind, shots], 4) for kind in KINDS], flush=True)
    return errors


def write(errors: dict[tuple[str, int], Tensor], command: str) -> None:
    """Table, findings and CSV."""
    rows = [[KINDS[k], *(shown(errors[k, shots], 4) for shots in SHOTS)] for k in KINDS]
    least, most = SHOTS[0], SHOTS[-1]
    folder = LOGS / "MAML"
    start = completions(DRAWN, 1)[1]["before"].mean()
    gain = {s: errors["mean", s] - errors["after", s] for s in SHOTS}
    text = [
        "# Completion",
        "",
        f"`{command}`, one thread, {platform.machine()} CPU, torch {torch.__version__}: mean "
        f"squared error over all pixels, ink being 0 to 1, ± half its 95 % interval over {TASKS} "
        f"drawings of meta-test classes. {outer_steps(folder):,} outer steps on 25 drawings each, "
        f"in {minutes(folder):.1f} minutes. One seed.",
        "",
        *markdown(["completion", *(f"{shots} known pixels" for shots in SHOTS)], rows, left=1),
        "",
        f"After adaptation MAML is {shown(gain[least], 4)} ahead of the mean with {least} known "
        f"pixels and {shown(gain[most], 4)} with {most}, paired by drawing; it was trained with "
        f"{DRAWN}. Its start is no average drawing: before adaptation its outputs, the same for "
        f"all drawings, are {start:.2f} on average, and the picture shows those below 0 as blank.",
        "",
        "![Drawings of meta-test classes, completed from 100 pixels](completion.png)",
    ]
    save(
        OUT,
        text,
        ["completion", "shots", "error", "half_interval", "tasks"],
        [
            [kind, shots, *(f"{n:.6g}" for n in interval(each)), len(each)]
            for (kind, shots), each in errors.items()
        ],
    )


def draw() -> None:
    """The first meta-test drawings."""
    batch, pictures = completions(DRAWN, PICTURES)
    titles = {"nearest": "nearest known", "before": "before adaptation", "after": "adapted"}
    rows = [
        (batch.task(t), {title: pictures[kind][t] for kind, title in titles.items()})
        for t in range(PICTURES)
    ]
    draw_completion(rows, 28, OUT.with_suffix(".png"))


def main() -> None:
    """Finish the run, test it, write table and figure."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="e.g. data.drawings.source=npm")
    overrides = parser.parse_args().overrides
    torch.set_num_threads(1)
    errors = study(overrides)
    write(errors, " ".join(["python benchmarks/completion.py", *overrides]))
    draw()


if __name__ == "__main__":
    with one_line_errors():
        main()
