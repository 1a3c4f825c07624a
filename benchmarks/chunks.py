"""Chunks of tasks: the default against every size by hand and the plain loop, time and memory.

python benchmarks/chunks.py

The table goes to benchmarks/results/chunks.md. Second-order MAML with Conv4, 5-way; images are
random, because time does not depend on them. Each cell is measured in its own process.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch
from speed import maml_by_loop  # beside this file

import metadraw
from metadraw.command.cli import one_line_errors
from metadraw.data.episode import Episode, Examples
from metadraw.training.allocator import keep_freed_memory
from metadraw.training.chunks import tasks_at_once
from metadraw.training.factory import build_learner

RESULT = Path(__file__).resolve().parent / "results" / "chunks.md"
WAYS = 5
SIZES = (1, 2, 4, 5, 9, 13, 25)
#: Image size, channels, channels of the network, tasks, shots, queries per class.
SETTINGS = [
    *((28, 1, hidden, 25, shots, shots) for hidden in (20, 64) for shots in (1, 5)),
    *((84, 3, hidden, 4, shots, 15) for hidden in (32, 64) for shots in (1, 5)),
]


def episodes(
    size: int, channels: int, hidden: int, tasks: int, shots: int, queries: int
) -> Episode:
    """Tasks of random images."""
    torch.manual_seed(0)
    support_y, query_y = (
        torch.arange(WAYS).repeat_interleave(n).expand(tasks, -1) for n in (shots, queries)
    )
    support_x, query_x = (
        torch.rand(*labels.shape, channels, size, size) for labels in (support_y, query_y)
    )
    classes = torch.arange(WAYS).expand(tasks, -1)
    support, query = Examples(support_x, support_y), Examples(query_x, query_y)
    return Episode(support, query, torch.arange(tasks), about={"classes": classes})


def measure(chunk: str, setting: tuple[int, ...]) -> dict[str, float]:
    """Milliseconds of a step, peak memory in GB, and how many tasks were computed at once."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    size, channels, hidden, tasks, *_ = setting
    way = ["model.fused=false"] if chunk == "loop" else [f"learner.tasks_per_chunk={chunk}"]
    learner = build_learner(
        metadraw.compose(
            f"data.image_size={size}",
            f"data.image_channels={channels}",
            f"model.hidden_channels={hidden}",
            *way,
        )
    )
    batch, algorithm = episodes(*setting), learner.algorithm
    each = [batch.task(i) for i in range(tasks)]

    def step() -> None:
        if chunk != "loop":
            learner.meta_gradients(batch)
            return
        for task in each:
            maml_by_loop(algorithm.network, algorithm, task)

    if chunk != "loop":
        keep_freed_memory()  # as every run does
    step()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < 5 and len(times) < 15):
        # Time of this thread only: other processes affect it little.
        start = time.thread_time()
        step()
        times.append(time.thread_time() - start)
    return {
        "ms": 1000 * min(times),
        "GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "chunk": tasks_at_once(tasks, *learner.task_map._bytes.values()) if chunk == "auto" else 0,
    }


def in_process(chunk: str, setting: tuple[int, ...]) -> dict[str, float]:
    """`measure` in a new process."""
    command = [sys.executable, __file__, "measure", chunk, *map(str, setting)]
    done = subprocess.run(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    row: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(*setting, chunk, row, flush=True)
    return row


def main() -> None:
    """Measure one size of chunks in this process, or write the table."""
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(measure(sys.argv[2], tuple(map(int, sys.argv[3:])))))
        return
    lines = [
        "# Chunks",
        "",
        f"`python benchmarks/chunks.py`, one thread, {platform.machine()} CPU, torch "
        f"{torch.__version__}. A step is the second-order meta-gradient of the 5-way tasks by "
        "Conv4, with random images: the minimum CPU time of a step, and the peak memory of a "
        "process that does nothing else. *By hand* is the fastest of the sizes "
        f"{', '.join(map(str, SIZES))}; *loop* takes one task after the other by "
        "`torch.autograd.grad` with PyTorch's layers.",
        "",
        "| images | channels of the network | tasks | default: at once | ms | GB "
        "| by hand: at once | ms | default / by hand | loop: ms | GB | loop / default |",
        "| --- " * 12 + "|",
    ]
    for setting in SETTINGS:
        size, channels, hidden, tasks, shots, queries = setting
        default, loop = in_process("auto", setting), in_process("loop", setting)
        by_hand = {n: in_process(str(n), setting)["ms"] for n in SIZES if n <= tasks}
        best = min(by_hand, key=by_hand.__getitem__)
        plural = "query" if queries == 1 else "queries"
        cells = [
            f"{size} x {size} x {channels}",
            str(hidden),
            f"{tasks} of {shots} shot{'s' * (shots > 1)}, {queries} {plural}",
            f"{default['chunk']:.0f}",
            f"{default['ms']:,.0f}",
            f"{default['GB']:.1f}",
            str(best),
            f"{by_hand[best]:,.0f}",
            f"{default['ms'] / by_hand[best]:.2f}",
            f"{loop['ms']:,.0f}",
            f"{loop['GB']:.1f}",
            f"{loop['ms'] / default['ms']:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
        RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with one_line_errors():
        main()
