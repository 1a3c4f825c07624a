"""The metrics of each task, and the confidence interval of a mean over tasks."""

from __future__ import annotations

from torch import Tensor
from torch.func import vmap

from metadraw.algorithms import Outcome
from metadraw.data.episode import Examples
from metadraw.objectives import Objective


def task_metrics(objective: Objective, outcome: Outcome, query: Examples) -> dict[str, Tensor]:
    """The objective's metrics of each task, after and before adaptation.

    Args:
        objective: defines the metrics.
        outcome: of T tasks.
        query: of T tasks.

    Returns:
        ``[T]`` by name, in the order of `Objective.names`.
    """
    after, before = (vmap(objective.metrics)(outputs, query) for outputs in outcome[::-1])
    return after | {f"{name}_before": values for name, values in before.items()}


def confidence_interval(values: Tensor) -> Tensor:
    """Half the width of the normal 95 % confidence interval of the mean of ``[T]`` values.

    1.96 standard errors over tasks, as few-shot papers report; NaN for a single task.
    """
    return 1.96 * values.std() / len(values) ** 0.5
