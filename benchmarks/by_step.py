"""The metric of a run after each step of adaptation, for the studies that show it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from studies import interval, results  # beside this file
from torch import Tensor
from torch.func import vmap

import metadraw
from metadraw.data.episode import Episode
from metadraw.training.factory import read_checkpoint
from metadraw.training.learner import MetaLearner


def outer_steps(folder: Path) -> int:
    """The outer steps that a run took."""
    found: int = results(folder)["train"]["outer_steps"]
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


def curve(axes: Axes, found: Tensor, steps: int, name: str, colour: str, marker: str) -> None:
    """The means of ``[T, steps + 1]`` values, with their intervals; a dashed line of ``[T, 1]``."""
    mean, half = (torch.tensor(e) for e in zip(*map(interval, found.T), strict=True))
    mean, half = mean.expand(steps + 1), half.expand(steps + 1)
    line = "-" if found.shape[1] > 1 else "--"
    axes.plot(mean, line, label=name, color=colour, marker=marker, markersize=4)
    axes.fill_between(range(steps + 1), mean - half, mean + half, color=colour, alpha=0.2, lw=0)
