"""2D navigation, the first reinforcement learning tasks of the MAML paper: synthetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metadraw.data.episode import Episode, Examples
from metadraw.data.figures import draw_paths
from metadraw.data.hashing import fold, normal, uniform
from metadraw.data.tasks import TaskDataModule, TaskSampler, family, interval, switch, whole
from metadraw.errors import check_positive


class Plane:
    """A point that moves through the plane, one velocity per step.

    Finn et al. 2017 ("Model-Agnostic Meta-Learning"), section 5.3: the reward is minus the squared
    distance to the goal, and an episode ends near the goal.

    Args:
        speed: the maximum of a velocity's components per step; others are clipped.
        reach: the distance to the goal at which an episode ends.

    Raises:
        InputError: a number that is not above 0.
    """

    def __init__(self, *, speed: float, reach: float) -> None:
        self.speed = check_positive("objective.environment.speed", speed)
        self.reach = check_positive("objective.environment.reach", reach)

    def step(
        self, observation: Tensor, action: Tensor, goal: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The next observation ``[B, O]``, the reward ``[B]``, and whether it was the last one.

        Args:
            observation: ``[B, O]``, the position, and what stays as it is.
            action: ``[B, 2]``, velocities.
            goal: ``[B, 2]``.
        """
        position = observation[:, :2] + action.clamp(-self.speed, self.speed)
        squared = (position - goal).square().sum(dim=1)
        return torch.cat([position, observation[:, 2:]], dim=1), -squared, squared < self.reach**2


class Navigation(TaskDataModule):
    """Each task is to walk from the origin to a goal that only rewards reveal.

    A task's examples are rollouts: where they start (``x``), the goal (``y``), which a learner sees
    only through the rewards of an objective such as `PolicyGradient`, and standard normal ``noise``
    for the actions. A task adapts on its K support rollouts and is measured on its Q query
    rollouts. All are made anew by the policy of the moment; the noise makes them reproducible.

    Args:
        goal: minimum and maximum of each coordinate, uniformly distributed.
        horizon: the maximum number of steps of an episode.
        oracle: observations also hold the goal, so that there is nothing to find out.
        **tasks: see `TaskDataModule`; shots and queries are numbers, not ranges.

    Raises:
        InputError: an invalid value; see also `TaskDataModule`.
    """

    ranges = False

    def __init__(
        self, *, goal: Sequence[float], horizon: int, oracle: bool = False, **tasks: Any
    ) -> None:
        super().__init__(**tasks)
        whole(1, horizon=horizon)
        self.goal, self.horizon, self.oracle = interval(goal=goal), horizon, switch(oracle=oracle)

    @property
    def provenance(self) -> Mapping[str, Any]:
        """The family of tasks, with a checksum of its settings."""
        return family("navigation", goal=list(self.goal), horizon=self.horizon, oracle=self.oracle)

    def episodes(self, split: str, device: torch.device | str = "cpu") -> NavigationSampler:
        """See `TaskDataModule.episodes`."""
        return NavigationSampler(self, split, device)

    def picture(self, task: Episode, path: Path, before: Tensor, after: Tensor) -> None:
        """The query rollouts' paths before and after adaptation."""
        draw_paths({"before adaptation": before, "adapted": after}, task.about["goal"], path)


class NavigationSampler(TaskSampler):
    """Task i of a split; see `TaskSampler`. A longer horizon, too, only adds to it."""

    data: Navigation

    def __call__(self, number: Tensor) -> Episode:
        """The tasks with these numbers.

        Args:
            number: ``[T]`` int64, each at least 0.

        Returns:
            T tasks, float32: x ``[T, K, 2]``, with ``oracle`` ``[T, K, 4]``; y ``[T, K, 2]``;
            ``extra["noise"]`` ``[T, K, horizon, 2]``; and ``about["goal"]`` ``[T, 2]``.
        """
        data, number = self.data, number.to(self.device)
        task = fold(self._state, number)  # [T]

        def draw(*sizes: int, place: int) -> Tensor:
            """Uniform in [0, 1), ``[T, *sizes]``: another place, other numbers."""
            state = fold(task, torch.tensor(place, device=self.device))
            for size in sizes:
                state = fold(state[..., None], torch.arange(size, device=self.device))
            return uniform(state)

        least, most = data.goal
        goal = (least + (most - least) * draw(2, place=0)).float()

        def rollouts(place: int, count: int) -> Examples:
            noise = normal(draw(count, data.horizon, 2, 2, place=place))[..., 0]
            goals = goal[:, None].expand(-1, count, -1)
            origin = torch.zeros_like(goals)
            x = torch.cat([origin, goals], dim=-1) if data.oracle else origin
            return Examples(x, goals, {"noise": noise.float()})

        support, query = rollouts(1, self.shots), rollouts(2, self.queries)
        return Episode(support, query, number, about={"goal": goal})
