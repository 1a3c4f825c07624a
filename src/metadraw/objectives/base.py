"""The contract of an objective: targets, loss and metrics of one task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from metadraw.data.episode import Episode, Examples
from metadraw.errors import InputError, check_whole


class Metric(NamedTuple):
    """A value that is measured for every task, and how to display it."""

    name: str  # as in the results: val/<name>
    title: str  # in words
    mode: str  # "max" if higher is better, "min" if lower is
    percent: bool = False  # a share, displayed in per cent

    def better(self, value: float, other: float) -> bool:
        """Whether one value is better than another; NaN is not."""
        return value > other if self.mode == "max" else value < other

    def show(self, value: float, half: float | None = None) -> str:
        """A value with half the width of its interval: ``54.10 ± 0.90 %``, ``0.312 ± 0.021``."""
        scale, digits, unit = (100, 2, " %") if self.percent else (1, 4, "")
        interval = "" if half is None else f" ± {scale * half:.{digits}f}"
        return f"{scale * value:.{digits}f}{interval}{unit}"


class Objective(ABC):
    """Defines the targets of a task's examples, and the loss and metrics of outputs for them.

    Every method is about one task, as in `Algorithm`; callers map it over tasks.

    Args:
        size: the maximum number of outputs for an example.
        monitor: the metric that selects the best checkpoint and that curves, tables and comparisons
            show.
        mode: ``max`` if a higher value is better, ``min`` if a lower one is.

    Raises:
        InputError: a size below 1, an unknown metric, or the wrong mode for it.
    """

    #: All metrics by name, "loss" first.
    measured: ClassVar[Mapping[str, Metric]]

    def __init__(self, *, size: int, monitor: str, mode: str) -> None:
        check_whole("objective.size", size)
        if monitor not in self.measured:
            raise InputError(
                f"objective.monitor={monitor}: must be one of {', '.join(self.measured)}"
            )
        if mode != self.measured[monitor].mode:
            raise InputError(
                f"objective.mode={mode}: must be {self.measured[monitor].mode} for "
                f"objective.monitor={monitor}"
            )
        self.size, self.metric = size, self.measured[monitor]

    def shown(self) -> list[Metric]:
        """The metrics that curves show: the monitored one, and the loss."""
        return list(dict.fromkeys([self.metric, self.measured["loss"]]))

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of all metrics: after adaptation, and before it with the suffix ``_before``."""
        return (*cls.measured, *(f"{name}_before" for name in cls.measured))

    def width(self, task: Episode) -> int:
        """The number of outputs for an example of this task, at most ``size``."""
        return self.size

    def shape(self, task: Episode) -> tuple[int, ...]:
        """The shape of what `outputs` returns for this task's query set: ``[Q, width]``."""
        return len(task.query.x), self.width(task)

    def outputs(self, predict: Callable[[Tensor], Tensor], examples: Examples) -> Tensor:
        """The outputs for examples; ``predict`` maps inputs ``[B, ...]`` to ``[B, width]``."""
        return predict(examples.x)

    @abstractmethod
    def encode(self, y: Tensor, width: int) -> Tensor:
        """Targets ``[B, ...]`` as a network can read them, float ``[B, width]``."""

    @abstractmethod
    def loss(self, outputs: Tensor, examples: Examples) -> Tensor:
        """The loss that learning minimises, a scalar; ``outputs`` as `outputs` returns them."""

    @abstractmethod
    def metrics(self, outputs: Tensor, examples: Examples) -> dict[str, Tensor]:
        """The metrics in `measured`, scalars by name.

        float32, or float64 if the outputs are: half precision would round an accuracy to three
        digits.
        """


def mean(values: Tensor, examples: Examples) -> Tensor:
    """The mean of ``[B, ...]`` values over the examples, weighted by their weights."""
    if examples.weight is None:
        return values.mean(dim=0)
    weight = examples.weight.view(-1, *[1] * (values.ndim - 1))
    return (values * weight).sum(dim=0) / weight.sum()


def exact(outputs: Tensor) -> Tensor:
    """Detached outputs, in float32 at least."""
    return outputs.detach().to(torch.promote_types(outputs.dtype, torch.float32))
