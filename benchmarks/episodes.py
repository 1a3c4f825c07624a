"""The cost of drawing a batch of 25 tasks, by shots, drawings per class and classes.

python benchmarks/episodes.py

The drawings are synthetic: one stands for all, so that any number of them fits into memory.
The table goes to benchmarks/results/episodes.md.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from pathlib import Path

import torch

from metadraw.command.cli import one_line_errors
from metadraw.data.sampling import EpisodeSampler
from metadraw.training.allocator import keep_freed_memory

RESULT = Path(__file__).resolve().parent / "results" / "episodes.md"
TASKS, CLASSES, DRAWINGS = 25, 207, 100
MILLION = 1_000_000
#: Classes, drawings per class, ways, shots, queries.
SETTINGS = [
    *((CLASSES, DRAWINGS, ways, shots, shots) for ways in (5, 10) for shots in (1, 5, 10)),
    (CLASSES, DRAWINGS, 5, 5, 15),
    *((CLASSES, drawings, 5, 1, 1) for drawings in (10_000, MILLION)),
    *((classes, DRAWINGS, 5, 1, 1) for classes in (100, 10_000, MILLION)),
    *((CLASSES, drawings, 5, 10, 10) for drawings in (10_000, MILLION)),
]


def milliseconds(classes: int, drawings: int, ways: int, shots: int, queries: int) -> float:
    """The median time of a batch."""
    sampler = EpisodeSampler(
        torch.zeros(1, 1, 28, 28, dtype=torch.uint8).expand(classes * drawings, -1, -1, -1),
        torch.full((classes,), drawings),
        torch.arange(classes),
        split="train",
        ways=ways,
        shots=shots,
        queries=queries,
        seed=0,
    )
    seconds = []
    for i in range(101):
        start = time.perf_counter()
        sampler(torch.arange(i * TASKS, (i + 1) * TASKS))
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds[1:])


def main() -> None:
    """Measure every setting and write the table."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as every run does
    rows = [
        f"Drawing a batch of {TASKS} tasks, in milliseconds: median of 100 batches, one thread, "
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}, "
        f"Python {platform.python_version()}. Made by `python {' '.join(sys.argv)}`.",
        "",
        "| classes | drawings a class | task | ms |",
        "| --- | --- | --- | --- |",
    ]
    for setting in SETTINGS:
        classes, drawings, ways, shots, queries = setting
        task = f"{ways}-way {shots}-shot, {queries} {'query' if queries == 1 else 'queries'}"
        rows.append(f"| {classes:,} | {drawings:,} | {task} | {milliseconds(*setting):.2f} |")
        print(rows[-1])
    RESULT.write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with one_line_errors():
        main()
