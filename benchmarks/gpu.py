"""metadraw on a GPU, measured by one command on a machine that has one.

pip install '.[benchmarks]' 'jax[cuda12]'
python benchmarks/gpu.py data.source=npm                     # all parts, the long one last
python benchmarks/gpu.py data.source=npm --parts steps precision

steps: a step of second-order MAML, by metadraw with and without a CUDA graph, by a loop over tasks
and by JAX: time, peak memory. precision: TF32 and bfloat16, their time and their cost in accuracy.
report: the report's 5-way 1-shot run from start to end. Each part has its own file,
benchmarks/results/gpu-<part>.md; every row is written as soon as it is measured.
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
from typing import Any

import torch
from chunks import episodes  # beside this file
from lightning import seed_everything
from speed import maml_by_loop, measure_jax, median_ms, whole_network
from torch import Tensor

import metadraw
from metadraw.command.cli import one_line_errors
from metadraw.data.episode import Episode
from metadraw.training.factory import build_learner
from metadraw.training.learner import MetaLearner
from metadraw.training.train import train

RESULTS = Path(__file__).resolve().parent / "results"
#: Image size, channels, channels of the network, tasks, shots, queries per class; all 5-way.
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
}
JAX = ("jax_vmap", "jax_scan")
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


def measure_steps(who: str) -> None:
    """Print milliseconds of a step in float32 and memory in GB, for each setting and way.

    One process for all: gradients of the same network should have the same norm.
    """
    warnings.filterwarnings("ignore")
    allow_tf32(False)
    for setting in SETTINGS:
        size, channels, hidden, tasks, *_ = setting
        batch = episodes(*setting)
        batch = batch.to("cuda")
        each = [batch.task(i) for i in range(tasks)]
        shape = [f"data.image_size={size}", f"data.image_channels={channels}"]
        for way in JAX if who == "jax" else WAYS:
            options = WAYS.get(way, ["model.fused=false"])
            cfg = metadraw.compose(*shape, f"model.hidden_channels={hidden}", *options)
            seed_everything(0, verbose=False)
            learner = build_learner(cfg).to("cuda")
            if who == "jax":
                found = measure_jax(
                    way, "convolution", whole_network(learner.algorithm), learner.algorithm, batch
                )
            else:
                found = _measure_step(way, learner, batch, each)
            print(json.dumps({"setting": setting, "way": way, **found}), flush=True)


def _measure_step(
    way: str, learner: MetaLearner, batch: Episode, each: list[Episode]
) -> dict[str, float]:
    gradient: list[Tensor] = []
    algorithm = learner.algorithm
    network = whole_network(algorithm)

    def step() -> None:
        if way == "loop":
            parts = [maml_by_loop(network, algorithm, task) for task in each]
            gradient[:] = [torch.stack(rows).mean(0) for rows in zip(*parts, strict=True)]
        else:
            gradient[:] = learner.meta_gradients(batch)[0].values()
        torch.cuda.synchronize()

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    found = {"train": median_ms(step, 8), "memory": torch.cuda.max_memory_reserved() / 2**30}
    return found | {"norm": torch.cat([g.flatten() for g in gradient]).norm().item()}


def measure_run(precision: str, overrides: list[str]) -> dict[str, float]:
    """Seconds of a run, its meta-test accuracy, and half the interval of that."""
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
    """A measurement in a new process; `None` if it fails, after printing its last line."""
    command = [sys.executable, __file__, "measure", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(*arguments, "failed:", (done.stderr.strip().splitlines() or ["killed"])[-1])
        return None
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(*arguments, found, flush=True)
    return found


def steps(overrides: list[str]) -> Iterator[list[str]]:
    """A step of second-order MAML in float32, random images: ms, and GB taken from the GPU."""
    found: dict[tuple[Any, ...], dict[str, float]] = {}
    for who in ("torch", "jax"):
        command = [sys.executable, __file__, "measure", "steps", who]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in filter(lambda line: line.startswith("{"), process.stdout):
                print(line, end="", flush=True)
                row = json.loads(line)
                found[(*row["setting"], row["way"])] = row
                yield _steps_table(found)


def _steps_table(found: dict[tuple[Any, ...], dict[str, float]]) -> list[str]:
    head = [*(f"{way}: ms, GB" for way in WAYS), *(f"{way}: ms, s to compile" for way in JAX)]
    lines = [f"| images | network, 5-way tasks | {' | '.join(head)} | norms of the gradient |"]
    lines.append("| --- " * (3 + len(head)) + "|")
    for setting in SETTINGS:
        size, channels, hidden, tasks, shots, queries = setting
        rows = [found.get((*setting, way)) for way in (*WAYS, *JAX)]
        cells = [
            f"{row['train']:,.1f}, {row.get('compile', row['memory']):.2f}" if row else "-"
            for row in rows
        ]
        norms = sorted(f"{row['norm']:.3f}" for row in rows if row)
        what = f"{hidden} channels, {tasks} of {shots} shot{'s' * (shots > 1)}, "
        what += f"{queries} {'query' if queries == 1 else 'queries'}"
        cells.append(f"{norms[0]} to {norms[-1]}" if norms else "-")
        lines.append(f"| {size} x {size} x {channels} | {what} | {' | '.join(cells)} |")
    return lines


def precision(overrides: list[str]) -> Iterator[list[str]]:
    """`experiment=quickstart`: seconds from start to end, and meta-test accuracy."""
    yield from _runs("experiment=quickstart", list(PRECISIONS), overrides)


def report(overrides: list[str]) -> Iterator[list[str]]:
    """`experiment=report_100`, 5-way 1-shot: seconds from start to end, and meta-test accuracy."""
    yield from _runs("experiment=report_100", ["float32, CUDA graph", "float32"], overrides)


def _runs(experiment: str, precisions: list[str], overrides: list[str]) -> Iterator[list[str]]:
    lines = ["| precision | s | accuracy, % |", "| --- | --- | --- |"]
    for name in precisions:
        row = in_process("run", name, experiment, *overrides)
        cells = (
            f"{row['seconds']:,.0f} | {row['acc']:.2f} ± {row['ci95']:.2f}" if row else "failed |"
        )
        lines.append(f"| {name} | {cells} |")
        yield lines


PARTS = {part.__name__: part for part in (steps, precision, report)}


def main() -> None:
    """Take one measurement in this process, or write the files."""
    if sys.argv[1:2] == ["measure"]:
        kind, name, *rest = sys.argv[2:]
        if kind == "steps":
            measure_steps(name)
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
        for table in PARTS[name](given.overrides):
            text = "\n".join([*lines, *table]) + "\n"
            (RESULTS / f"gpu-{name}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    with one_line_errors():
        main()
