"""What Lightning adds to a bare meta-training step, and what a second process gains.

python benchmarks/training.py data.source=npm

5-way 1-shot MAML of the report unless overridden; the table goes to benchmarks/results/training.md.
"""

from __future__ import annotations

import copy
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch

import metadraw
from metadraw.command.cli import one_line_errors
from metadraw.command.config import CONFIGS
from metadraw.training.learner import MetaLearner
from metadraw.training.train import make_trainer

RESULTS = Path(__file__).resolve().parent / "results"
BATCHES, EPOCHS = 12, 8


class Alternate(L.Callback):
    """Times the trainer's batches and, after each epoch, as many bare steps of a copy."""

    def __init__(self, data: Any, learner: MetaLearner) -> None:
        self.sampler, self.learner = data.episodes("train"), copy.deepcopy(learner)
        self.optimizer = self.learner.configure_optimizers()
        self.within: list[float] = []
        self.bare: list[float] = []
        self.began: float | None = None

    def on_train_batch_start(self, *_: Any) -> None:
        """Measure from the start of one batch to the next: loading, step, logging and callbacks."""
        now = time.perf_counter()
        if self.began is not None:
            self.within.append(now - self.began)
        self.began = now

    def on_train_epoch_end(self, *_: Any) -> None:
        """Measure the same number of steps without a trainer."""
        self.began = None
        for _ in range(BATCHES):
            start = time.perf_counter()
            first = 25 * len(self.bare)
            gradients, _ = self.learner.meta_gradients(
                self.sampler(torch.arange(first, first + 25))
            )
            for name, parameter in self.learner.algorithm.named_parameters():
                parameter.grad = gradients[name]
            self.optimizer.step()
            self.bare.append(time.perf_counter() - start)


def lightning_overhead(overrides: list[str]) -> tuple[float, float]:
    """Median milliseconds of a step by the trainer and of a bare one, alternating."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = [
            f"data.train_batches={BATCHES}",
            "data.val_batches=1",
            f"trainer.max_epochs={EPOCHS}",
        ]
        cfg = metadraw.compose("trainer=cpu", f"paths.output_dir={folder}", *sizes, *overrides)
        data, learner = metadraw.build(cfg)
        trainer, both = make_trainer(cfg, learner), Alternate(data, learner)
        trainer.callbacks.append(both)
        trainer.fit(learner, data)
    return 1000 * statistics.median(both.within), 1000 * statistics.median(both.bare)


def step_by_command(threads: int, overrides: list[str]) -> float:
    """Milliseconds per step of ``train.py``: a run of 80 steps minus one of 20, divided by 60."""
    seconds = {}
    for batches in (20, 80):
        with tempfile.TemporaryDirectory() as folder:
            sizes = [f"data.train_batches={batches}", "data.val_batches=1", "data.test_batches=1"]
            where = [f"hydra.run.dir={folder}/run", "trainer.max_epochs=1"]
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, CONFIGS.parent / "train.py", *sizes, *where, *overrides],
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
                capture_output=True,
                check=True,
            )
            seconds[batches] = time.perf_counter() - start
    return 1000 * (seconds[80] - seconds[20]) / 60


def main() -> None:
    """Write the table."""
    warnings.filterwarnings("ignore")
    overrides = sys.argv[1:]
    within, bare = lightning_overhead(overrides)
    rows = [
        "# Training: the trainer and several processes",
        "",
        f"`python benchmarks/training.py {' '.join(overrides)}`, {platform.machine()} CPU with "
        f"{os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads.",
        "",
        f"A step of 25 tasks takes {within:.0f} ms by Lightning's trainer, everything included, "
        f"and {bare:.0f} ms without one: {within / bare - 1:+.1%}. Medians of "
        f"{(BATCHES - 1) * EPOCHS} and {BATCHES * EPOCHS}, in turns of {BATCHES}.",
        "",
        "| `python train.py` with | processes | threads each | ms a step |",
        "| --- | --- | --- | --- |",
    ]
    for choice, processes, threads in (("cpu", 1, 1), ("cpu", 1, 2), ("ddp_cpu", 2, 1)):
        step = step_by_command(threads, [f"trainer={choice}", *overrides])
        rows.append(f"| `trainer={choice}` | {processes} | {threads} | {step:.0f} |")
        print(rows[-1], flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "training.md").write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with one_line_errors():
        main()
