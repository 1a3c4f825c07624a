"""What studies of several runs share: each run once, and differences paired by task."""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import metadraw
from metadraw.results.compare import read
from metadraw.results.metrics import confidence_interval
from metadraw.training.evaluate import evaluate
from metadraw.training.train import train


def trained(folder: Path, settings: Sequence[str]) -> Path:
    """The checkpoint of a run of one epoch, which is done unless its results exist.

    Args:
        folder: of the run.
        settings: overrides of train.py.
    """
    if not (folder / "results.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        common = ["trainer=cpu", "trainer.max_epochs=1", "callbacks.progress_bar.refresh_rate=0"]
        began = time.process_time()
        train(metadraw.compose(*common, *settings, f"paths.output_dir={folder}"))
        (folder / "cpu_seconds.txt").write_text(f"{time.process_time() - began:.1f}")
        print(f"{folder.name}: trained", flush=True)
    return folder / "checkpoints" / "best.ckpt"


def tested(folder: Path, checkpoint: Path, settings: Sequence[str]) -> torch.Tensor:
    """The accuracy of each task of a meta-test, ``[tasks]``; done unless its results exist.

    Args:
        folder: of the test.
        checkpoint: to test.
        settings: overrides of eval.py.
    """
    if not (folder / "results.json").exists():
        common = [f"ckpt_path={checkpoint}", f"paths.output_dir={folder}"]
        quiet = "callbacks.progress_bar.refresh_rate=0"
        evaluate(metadraw.compose(*common, quiet, *settings, config="eval"))
        print(f"{folder.parent.name}: {folder.name}", flush=True)
    values = read(folder).values
    return torch.tensor([values[number] for number in sorted(values)])


def cpu_seconds(folder: Path) -> float:
    """How long a run took, its validation included."""
    return float((folder / "cpu_seconds.txt").read_text())


def interval(values: torch.Tensor) -> tuple[float, float]:
    """The mean of ``[tasks]`` values, and half the width of its 95 % interval."""
    return values.mean().item(), confidence_interval(values).item()


def percent(shares: torch.Tensor, sign: str = "") -> str:
    """The mean of ``[tasks]`` shares in per cent, ± half its 95 % interval."""
    mean, half = interval(100 * shares)
    return f"{mean:{sign}.1f} ± {half:.1f}"


def clear(shares: torch.Tensor) -> bool:
    """Whether the 95 % interval of a mean leaves out 0."""
    mean, half = interval(shares)
    return abs(mean) > half


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table, numbers to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(row)} |" for row in (head, rule, *rows)]


def machine() -> str:
    """The processor and PyTorch, in words."""
    return f"one core of an {platform.machine()} CPU, torch {torch.__version__}"
