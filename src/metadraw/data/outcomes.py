"""Tasks of two outcomes, with examples of a protected group: what their data sets share."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from metadraw.data.episode import Episode, Examples
from metadraw.data.figures import draw_outcomes
from metadraw.data.tasks import TaskDataModule


class OutcomeTasks(TaskDataModule):
    """Tasks whose label is 1 for a positive outcome and else 0; a data set implements the rest.

    ``extra["protected"]`` says whether an example is of the protected group. A task has K support
    and Q query examples in all, drawn whatever their outcome and group.

    Args:
        **tasks: see `TaskDataModule`; shots and queries are numbers, not ranges.

    Raises:
        InputError: a range of shots or queries; see also `TaskDataModule`.
    """

    ranges = False
    class_count = 2

    def picture(self, task: Episode, path: Path, before: Tensor, after: Tensor) -> None:
        """The probability of the positive outcome, by group and outcome."""
        draw_outcomes(task, before, after, path)


def tasks_of(
    x: Tensor, y: Tensor, protected: Tensor, shots: int, number: Tensor, **about: Tensor
) -> Episode:
    """T tasks.

    Args:
        x: ``[T, K+Q, F]`` float32.
        y: ``[T, K+Q]`` int64, 1 for a positive outcome, else 0.
        protected: ``[T, K+Q]`` bool.
        shots: K, the support examples, which come first.
        number: ``[T]`` int64, of each task.
        **about: what else is known of each task, ``[T, ...]``.
    """
    support, query = (
        Examples(x[:, part], y[:, part], {"protected": protected[:, part]})
        for part in (slice(shots), slice(shots, None))
    )
    classes = torch.arange(2, device=number.device).expand(len(number), -1)
    return Episode(support, query, number, about={"classes": classes, **about})
