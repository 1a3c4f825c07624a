"""The parts that studies of adaptation share: a finished run, and its metric after each step."""

from __future__ import annotations

import csv
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

import metadraw
from metadraw.data.episode import Episode
from metadraw.results.metrics import confidence_interval
from metadraw.training.factory import read_checkpoint
from metadraw.training.learner import MetaLearner
from metadraw.training.train import train

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def checkpoint(folder: Path, settings: Sequence[str], which: str = "best") -> Path:
    """A checkpoint of the run in this folder, which is trained unless that is done.

    ``best``: the best one by meta-validation, after adaptation; or the ``last``.
    """
    cost = folder / "cost.json"
    if not cost.exists():
        shutil.rmtree(folder, ignore_errors=True)
        began = time.process_time()
        train(metadraw.compose(*settings, "trainer=cpu", f"paths.output_dir={folder}"))
        minutes = round((time.process_time() - began) / 60, 2)
        cost.write_text(json.dumps({"minutes": minutes}))
        print(f"{folder.name}: {minutes:.1f} minutes of one core", flush=True)
    return folder / "checkpoints" / f"{which}.ckpt"


def minutes(folder: Path) -> float:
    """Minutes of one core that a run took, with validation and test."""
    found: float = json.loads((folder / "cost.json").read_text())["minutes"]
    return found


def outer_steps(folder: Path) -> int:
    """The outer steps that a run took."""
    found: int = json.loads((folder / "results.json").read_text())["train"]["outer_steps"]
    return found


def steps_of(path: Path) -> int:
    """The outer steps before a checkpoint."""
    found: int = read_checkpoint(path)["global_step"]
    return found


def by_step(learner: MetaLearner, batch: Episode, steps: int) -> Tensor:
    """The monitored metric of each task after 0 to ``steps`` steps, ``[T, steps + 1]``."""
    name = learner.objective.metric.name

    def one(task: Episode) -> Tensor:
        answers = [learner.answer(state, task) for state in learner.adapt_path(task, steps)]
        found = [learner.objective.metrics(each, task.query)[name] for each in answers]
        return torch.stack(found)

    return vmap(one, randomness="different")(batch)


def measured(path: Path, overrides: Sequence[str], split: str, tasks: int, steps: int) -> Tensor:
    """`by_step` of a checkpoint on the first tasks of a split, ``[tasks, steps + 1]``."""
    data, learner = metadraw.load(path, *overrides)
    episodes = data.episodes(split)
    numbers = torch.arange(tasks).split(data.tasks_per_batch)
    return torch.cat([by_step(learner, episodes(each), steps) for each in numbers])


def best_rate(
    path: Path, overrides: Sequence[str], rates: Sequence[float], tasks: int, steps: int
) -> float:
    """The inner rate with the best monitored metric after all steps on meta-validation tasks."""
    better = metadraw.load(path)[1].objective.metric.better
    best, chosen = float("nan"), rates[0]
    for rate in rates:
        own = [*overrides, f"algorithm.inner_lr={rate}"]
        value = measured(path, own, "val", tasks, steps)[:, -1].mean().item()
        if best != best or better(value, best):
            best, chosen = value, rate
    return chosen


def shown(values: Tensor, digits: int) -> str:
    """The mean of ``[T]`` values ± half its 95 % interval."""
    return f"{values.mean():.{digits}f} ± {confidence_interval(values):.{digits}f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(row)} |" for row in (head, rule, *rows)]


def write_csv(path: Path, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A CSV file of these rows."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([head, *rows])
