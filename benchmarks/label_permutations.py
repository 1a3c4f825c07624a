"""How much a task's accuracy depends on which class has which label.

python benchmarks/label_permutations.py CHECKPOINT [CHECKPOINT ...]

MAML's head has a separate row for each label, so labelling the same classes differently makes
another task of them (Ye and Chao 2022). Every task is learned under several labellings. The table
goes to benchmarks/results/label-permutations.md.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

import torch
from torch import Tensor

import metadraw
from metadraw.command.cli import one_line_errors

RESULT = Path(__file__).resolve().parent / "results" / "label-permutations.md"
TASKS, PERMUTATIONS, QUERIES, BATCH = 100, 12, 10, 25


def accuracies(checkpoint: str) -> tuple[str, Tensor]:
    """The algorithm's name, and the accuracy ``[permutations, tasks]`` on meta-test tasks."""
    data, learner = metadraw.load(checkpoint, f"data.queries={QUERIES}")
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(data.ways, generator=generator) for _ in range(PERMUTATIONS)]
    episodes, rows = data.episodes("test"), []
    for order in orders:
        per_batch = []
        for first in range(0, TASKS, BATCH):
            batch = episodes(torch.arange(first, first + BATCH))
            support_y, query_y = order[batch.support.y], order[batch.query.y]
            logits = learner.evaluate(
                batch._replace(
                    support=batch.support._replace(y=support_y),
                    query=batch.query._replace(y=query_y),
                )
            ).after
            per_batch.append((logits.argmax(dim=-1) == query_y).double().mean(dim=1))
        rows.append(torch.cat(per_batch))
    return type(learner.algorithm).__name__, torch.stack(rows)


def main() -> None:
    """Write one row per checkpoint."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT")
    checkpoints = parser.parse_args().checkpoints
    lines = [
        "# Label permutations",
        "",
        f"`python benchmarks/label_permutations.py {' '.join(checkpoints)}`,",
        "after the study of [5-way-1-shot](5-way-1-shot.md); "
        f"{platform.machine()} CPU, torch {torch.__version__}.",
        "",
        "| algorithm | accuracy % | worst, best permutation of a task % | std within a task |",
        "| --- | --- | --- | --- |",
    ]
    for checkpoint in checkpoints:
        name, values = accuracies(checkpoint)
        worst, best = values.min(dim=0).values.mean(), values.max(dim=0).values.mean()
        lines.append(
            f"| {name} | {100 * values.mean():.1f} | {100 * worst:.1f}, {100 * best:.1f} | "
            f"{100 * values.std(dim=0).mean():.1f} |"
        )
        print(lines[-1], flush=True)
    lines += [
        "",
        f"Means over {TASKS} meta-test tasks with {QUERIES} queries a class, each under the same "
        f"{PERMUTATIONS} permutations of its labels.",
    ]
    RESULT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    with one_line_errors():
        main()
