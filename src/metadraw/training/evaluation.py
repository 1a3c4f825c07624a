"""The metrics of an evaluation's tasks, collected batch by batch."""

from __future__ import annotations

import torch
from torch import Tensor

from metadraw.objectives import Objective
from metadraw.results.metrics import confidence_interval
from metadraw.training.ranks import rows_of_ranks


class Evaluation:
    """The metrics of each task, from any number of batches and ranks.

    Args:
        objective: the one that defines the metrics.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self._rows: list[Tensor] = []

    def add(self, number: Tensor, values: dict[str, Tensor]) -> None:
        """Add the tasks of a batch.

        Args:
            number: ``[T]``, the episodes' numbers.
            values: ``[T]`` by name, in the order of `Objective.names`.
        """
        # In double precision: float32 would round large episode numbers.
        columns = [column.double() for column in (number, *values.values())]
        self._rows.append(torch.stack(columns, dim=1))

    def finish(self, ranks: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the metrics of all ranks' tasks so far, and start over.

        Returns:
            Float64 ``[tasks, 1 + metrics]``, the episode's number and its metrics, sorted by
            number; and the means by name, with the 95 % interval of the monitored metric
            (``acc_ci95``) and the number of ``tasks``.
        """
        rows = rows_of_ranks(torch.cat(self._rows).cpu(), ranks)
        self._rows = []
        # In the order of the episodes, so that sums do not depend on how tasks were divided.
        rows = rows[rows[:, 0].argsort()]
        values = dict(zip(self.objective.names(), rows[:, 1:].T, strict=True))
        means = {name: value.mean() for name, value in values.items()}
        monitored = self.objective.metric.name
        means[f"{monitored}_ci95"] = confidence_interval(values[monitored])
        means["tasks"] = torch.tensor(len(rows), dtype=torch.float64)
        return rows, means
