"""Sinusoids, the regression tasks of the MAML paper: a synthetic benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metadraw.data.episode import Episode, Examples
from metadraw.data.figures import draw_fit
from metadraw.data.hashing import fold, uniform
from metadraw.data.tasks import TaskDataModule, TaskSampler, family, interval, switch


class Sinusoids(TaskDataModule):
    """Each task is to learn ``y = amplitude * sin(x - phase)`` from a few points.

    Finn et al. 2017 ("Model-Agnostic Meta-Learning"), section 5.1: amplitude, phase and x are
    uniformly distributed. A task has no classes; its shots are all its support points.
    Meta-training, -validation and -test share one distribution of tasks, but no random numbers.

    Args:
        amplitude: minimum and maximum.
        phase: minimum and maximum, in radians.
        x: minimum and maximum.
        oracle: inputs also hold amplitude and phase, so that there is nothing to find out: the
            paper's upper bound.
        **tasks: see `TaskDataModule`; shots and queries are numbers, not ranges.

    Raises:
        InputError: an invalid range; see also `TaskDataModule`.
    """

    ranges = False

    def __init__(
        self,
        *,
        amplitude: Sequence[float],
        phase: Sequence[float],
        x: Sequence[float],
        oracle: bool = False,
        **tasks: Any,
    ) -> None:
        super().__init__(**tasks)
        self.oracle = switch(oracle=oracle)
        self.amplitude = interval(amplitude=amplitude)
        self.phase, self.x = interval(phase=phase), interval(x=x)

    @property
    def provenance(self) -> Mapping[str, Any]:
        """The family of functions, with a checksum of its ranges."""
        ranges = {"amplitude": self.amplitude, "phase": self.phase, "x": self.x}
        shown = {name: list(ends) for name, ends in ranges.items()}
        told = {"oracle": True} if self.oracle else {}  # of the same functions
        return {**family("sinusoids", **shown), **told}

    def episodes(self, split: str, device: torch.device | str = "cpu") -> SinusoidSampler:
        """See `TaskDataModule.episodes`."""
        return SinusoidSampler(self, split, device)

    def picture(self, task: Episode, path: Path, before: Tensor, after: Tensor) -> None:
        """The curve, its support points, and the fit before and after adaptation."""
        draw_fit(task, before, after, path)


class SinusoidSampler(TaskSampler):
    """Sinusoid i of a split; see `TaskSampler`."""

    data: Sinusoids

    def __call__(self, number: Tensor) -> Episode:
        """The sinusoids with these numbers.

        Args:
            number: ``[T]`` int64, each at least 0.

        Returns:
            T tasks, float32 x and y ``[T, K, 1]`` and ``[T, Q, 1]``, with ``oracle`` x
            ``[T, K, 3]``; ``about`` has ``amplitude`` and ``phase``, ``[T]``.
        """
        data, number = self.data, number.to(self.device)
        task = fold(self._state, number)  # [T]

        def draw(ends: tuple[float, float], *place: Tensor) -> Tensor:
            state = task
            for each in place:
                state = fold(state[..., None], each)
            return ends[0] + (ends[1] - ends[0]) * uniform(state)

        places = torch.arange(4, device=self.device)
        amplitude, phase = (
            draw(ends, places[i : i + 1]) for i, ends in enumerate((data.amplitude, data.phase))
        )  # [T, 1]

        def examples(which: int, count: int) -> Examples:
            points = torch.arange(count, device=self.device)
            x = draw(data.x, places[which : which + 1], points)[:, 0]  # [T, count]
            y = amplitude * (x - phase).sin()
            told = [each.expand_as(x) for each in (amplitude, phase)] if data.oracle else []
            return Examples(torch.stack([x, *told], dim=-1).float(), y.float()[..., None])

        about = {"amplitude": amplitude[:, 0].float(), "phase": phase[:, 0].float()}
        support, query = examples(2, self.shots), examples(3, self.queries)
        return Episode(support, query, number, about=about)
