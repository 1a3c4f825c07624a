"""The synthetic tasks of Fair-MAML: two outcomes and a protected group in the plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from metadraw.data.episode import Episode
from metadraw.data.hashing import fold, normal, uniform
from metadraw.data.outcomes import OutcomeTasks, tasks_of
from metadraw.data.tasks import TaskSampler, family, interval

#: Mean and covariance of the two Gaussian distributions (Zafar et al. 2017).
_GAUSSIANS = (
    ((2.0, 2.0), ((5.0, 1.0), (1.0, 5.0))),
    ((-2.0, -2.0), ((10.0, 1.0), (1.0, 3.0))),
)


class FairSynthetic(OutcomeTasks):
    """Each task divides the plane by a line, and its protected group is mostly on one side.

    After Slack et al. 2020 ("Fairness Warnings and Fair-MAML"), who take the points and groups of
    Zafar et al. 2017 ("Fairness Constraints: Mechanisms for Fair Classification"):
    points are of two Gaussian distributions, half of each. The outcome is positive above a line
    through the origin, whose slope is a task's own. A point is rotated by an angle, also a task's
    own, and is of the protected group with the probability that it then is of the second
    distribution, most of which has a negative outcome. The smaller the angle, the more do group and
    outcome agree. The group is not among the inputs.

    The ranges of slope and angle are this project's. Meta-training, -validation and -test share one
    distribution of tasks, but no random numbers.

    Args:
        slope: minimum and maximum.
        angle: minimum and maximum, in radians.
        **tasks: see `OutcomeTasks`.

    Raises:
        InputError: an invalid range; see also `OutcomeTasks`.
    """

    def __init__(self, *, slope: Sequence[float], angle: Sequence[float], **tasks: Any) -> None:
        super().__init__(**tasks)
        self.slope, self.angle = interval(slope=slope), interval(angle=angle)

    @property
    def provenance(self) -> Mapping[str, Any]:
        """The family of tasks, with a checksum of its ranges."""
        return family("two Gaussian distributions", slope=list(self.slope), angle=list(self.angle))

    def episodes(self, split: str, device: torch.device | str = "cpu") -> FairSyntheticSampler:
        """See `TaskDataModule.episodes`."""
        return FairSyntheticSampler(self, split, device)


class FairSyntheticSampler(TaskSampler):
    """Task i of a split; see `TaskSampler`."""

    data: FairSynthetic

    def __call__(self, number: Tensor) -> Episode:
        """The tasks with these numbers.

        Args:
            number: ``[T]`` int64, each at least 0.

        Returns:
            T tasks, float32 x ``[T, K, 2]`` and ``[T, Q, 2]``; ``about`` has ``slope`` and
            ``angle``, ``[T]``.
        """
        number = number.to(self.device)
        task = fold(self._state, number)[:, None]
        # One state for each of: slope, angle, support set, query set.
        states = fold(task, torch.arange(4, device=self.device))
        slope, angle = (
            ends[0] + (ends[1] - ends[0]) * uniform(states[:, place, None])
            for place, ends in enumerate((self.data.slope, self.data.angle))
        )  # [T, 1]
        # One state for each point, and four random numbers of it: [T, K+Q, 4].
        points = torch.cat(
            [
                fold(states[:, place, None], torch.arange(size, device=self.device))
                for place, size in ((2, self.shots), (3, self.queries))
            ],
            dim=1,
        )
        random = uniform(fold(points[..., None], torch.arange(4, device=self.device)))
        x = _points(random[..., :3])
        y = (x[..., 1] > slope * x[..., 0]).long()
        cos, sin = angle.cos(), angle.sin()
        turned = torch.stack(
            [cos * x[..., 0] - sin * x[..., 1], sin * x[..., 0] + cos * x[..., 1]], dim=-1
        )
        first, second = (each.log_prob(turned) for each in _distributions(turned))
        protected = random[..., 3] < (second - first).sigmoid()
        about = {"slope": slope[:, 0].float(), "angle": angle[:, 0].float()}
        return tasks_of(x.float(), y, protected, self.shots, number, **about)


def _points(random: Tensor) -> Tensor:
    """Points ``[..., 2]``, half of each distribution, of three uniform numbers ``[..., 3]``."""
    noise = normal(random[..., 1:])
    first, second = (each.loc + noise @ each.scale_tril.T for each in _distributions(noise))
    return torch.where(random[..., :1] < 0.5, first, second)


def _distributions(like: Tensor) -> list[MultivariateNormal]:
    """The two distributions, with the dtype and device of a tensor."""
    found = []
    for gaussian in _GAUSSIANS:
        mean, covariance = (torch.tensor(e, dtype=like.dtype, device=like.device) for e in gaussian)
        found.append(MultivariateNormal(mean, covariance))
    return found
