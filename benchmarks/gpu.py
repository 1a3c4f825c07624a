"""What a GPU does with metadraw, in one command on a machine that has one.

pip install '.[benchmarks]' 'jax[cuda12]'
python benchmarks/gpu.py data.source=npm                     # all parts, the long one last
python benchmarks/gpu.py data.source=npm --parts steps precision

steps: a step of second-order MAML, by metadraw with and without a CUDA graph, by a loop over tasks
and by JAX: time, peak memory. precision: TF32 and bfloat16, their time and what accuracy they cost.
report: the report's 5-way 1-shot run from start to end. Each part has a file of its own,
benchmarks/results/gpu-<part>.md, with every row written as soon as it is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from chunks import episodes  # beside this file
from speed import JAX_CONVOLUTIONS, maml_by_loop, measure_jax, median_ms

import metadraw
from metadraw.factory import build_learner
from metadraw.train import train

RESULTS = Path(__file__).resolve().parent / "results"
#: Image size, channels, channels of the network, tasks, shots, queries a class; all 5-way.
SETTINGS = [
    (28, 1, 20, 25, 1, 1),
    (28, 1, 20, 25, 5, 5),
    (84, 3, 32, 4, 1, 15),
    (84, 3, 32, 4, 5, 15),
]
WAYS = {
    "metadraw": [],
    "metadraw, CUDA graph": ["learner.cuda_graph=true"],
    "loop": ["model.fused=false"],
    **{
        f"{how}/{convolution}": ["model.fused=false"]
        for how in ("jax_vmap", "jax_scan")
        for convolution in JAX_CONVOLUTIONS
    },
}
#: Options of the trainer, and whether PyTorch may round products to TF32.
PRECISIONS = {
    "float32": (["trainer.precision=32-true"], False),
    "TF32": (["trainer.precision=32-true"], True),
    "bfloat16, mixed": (["trainer.precision=bf16-mixed"], True),
    "float32, CUDA graph": (["trainer.precision=32-true", "learner.cuda_graph=true"], False),
}


def allow_tf32(allowed: bool) -> None:
    """Whether products and convolutions of float32 are rounded to TF32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def measure_step(way: str, setting: tuple[int, ...]) -> dict[str, float]:
    """Milliseconds of a step and peak memory in GB, without TF32."""
    warnings.filterwarnings("ignore")
    allow_tf32(False)
    size, channels, hidden, tasks, *_ = setting
    learner = build_learner(
        metadraw.compose(
            f"data.image_size={size}",
            f"data.image_channels={channels}",
            f"model.hidden_channels={hidden}",
            *WAYS[way],
        )
    ).to("cuda")
    batch = episodes(*setting)
    batch = type(batch)(*(values.cuda() for values in batch))
    algorithm = learner.algorithm
    if way.startswith("jax"):
        return measure_jax(*way.split("/"), algorithm.network, algorithm, batch)
    each = [batch.task(i) for i in range(tasks)]

    def step() -> None:
        if way == "loop":
            for task in each:
                maml_by_loop(algorithm.network, algorithm, task)
        else:
            learner.meta_gradients(batch)
        torch.cuda.synchronize()

    return {"train": median_ms(step, 8), "memory": torch.cuda.max_memory_allocated() / 2**30}


def measure_run(precision: str, overrides: list[str]) -> dict[str, float]:
    """Seconds, meta-test accuracy and half its interval of a run."""
    warnings.filterwarnings("ignore")
    options, tf32 = PRECISIONS[precision]
    allow_tf32(tf32)
    with tempfile.TemporaryDirectory() as folder:
        given = [*overrides, "trainer=gpu", *options, f"paths.output_dir={folder}"]
        start = time.perf_counter()
        test = train(metadraw.compose(*given))["test"]
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "acc": 100 * test["acc"], "ci95": 100 * test["acc_ci95"]}


def in_process(*arguments: str) -> dict[str, float] | None:
    """A measurement in a new process; none where it fails, with its last line printed."""
    command = [sys.executable, __file__, "measure", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(*arguments, "failed:", (done.stderr.strip().splitlines() or ["killed"])[-1])
        return None
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(*arguments, found, flush=True)
    return found


def steps(overrides: list[str]) -> Iterator[str]:
    """A step of second-order MAML in float32, random images: time, and peak memory."""
    yield "| images | network, 5-way tasks | " + " | ".join(f"{way}: ms, GB" for way in WAYS) + " |"
    yield "| --- " * (2 + len(WAYS)) + "|"
    for setting in SETTINGS:
        size, channels, hidden, tasks, shots, queries = setting
        rows = [in_process("step", way, *map(str, setting)) for way in WAYS]
        cells = [f"{row['train']:,.1f}, {row['memory']:.2f}" if row else "failed" for row in rows]
        what = f"{hidden} channels, {tasks} of {shots} shots, {queries} queries"
        yield f"| {size} x {size} x {channels} | {what} | {' | '.join(cells)} |"


def precision(overrides: list[str]) -> Iterator[str]:
    """`experiment=quickstart`: seconds from start to end, and meta-test accuracy."""
    yield from _runs("experiment=quickstart", list(PRECISIONS), overrides)


def report(overrides: list[str]) -> Iterator[str]:
    """`experiment=report_100`, 5-way 1-shot: seconds from start to end, and meta-test accuracy."""
    yield from _runs("experiment=report_100", ["float32"], overrides)


def _runs(experiment: str, precisions: list[str], overrides: list[str]) -> Iterator[str]:
    yield "| precision | s | accuracy, % |"
    yield "| --- | --- | --- |"
    for name in precisions:
        row = in_process("run", name, experiment, *overrides)
        cells = (
            f"{row['seconds']:,.0f} | {row['acc']:.2f} ± {row['ci95']:.2f}" if row else "failed |"
        )
        yield f"| {name} | {cells} |"


PARTS = {part.__name__: part for part in (steps, precision, report)}


def main() -> None:
    """Take one measurement in this process, or write the files."""
    if sys.argv[1:2] == ["measure"]:
        kind, name, *rest = sys.argv[2:]
        if kind == "step":
            print(json.dumps(measure_step(name, tuple(map(int, rest)))))
        else:
            print(json.dumps(measure_run(name, rest)))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("overrides", nargs="*", help="for runs, e.g. data.source=npm")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("there is no NVIDIA GPU that PyTorch can use: nothing was measured")
    for name in given.parts:
        lines = [
            f"# On a GPU: {name}",
            "",
            f"`python benchmarks/gpu.py {' '.join(sys.argv[1:])}`, {torch.cuda.get_device_name()}, "
            f"{os.cpu_count()} CPU cores, torch {torch.__version__}. {PARTS[name].__doc__}",
            "",
        ]
        for line in PARTS[name](given.overrides):
            lines.append(line)
            (RESULTS / f"gpu-{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
