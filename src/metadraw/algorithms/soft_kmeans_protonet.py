"""Prototypes refined by unlabelled examples (Ren et al. 2018).

"Meta-Learning for Semi-Supervised Few-Shot Classification".
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metadraw.algorithms.inner_loop import positive
from metadraw.algorithms.protonet import ProtoNet
from metadraw.data.episode import Episode
from metadraw.errors import InputError
from metadraw.models.head import one_hot
from metadraw.objectives import Objective

_HIDDEN = 20  # units of the network that finds thresholds
_LEAST = 1e-6  # variance of distances, of which there may be one


class SoftKMeansProtoNet(ProtoNet):
    """A prototypical network that also learns a task from its set ``unlabelled``.

    Each unlabelled example belongs to each class in part, as the prototypes of the support set
    predict; the classes' means over both sets are the prototypes (one step of soft k-means).
    Without such a set it is a prototypical network.

    Args:
        network: see `Algorithm`.
        head: not used.
        objective: classification.
        distractors: what is done about unlabelled examples of other classes. ``ignore``: nothing
            (section 3.1.1). ``cluster``: they belong to a further cluster, around 0, of a learned
            radius (3.1.2). ``mask``: each class takes those within a soft threshold, which a small
            network finds from the statistics of their distances (3.1.3).
        radius: what the learned radius starts from, above 0; the paper's code has 100.

    Raises:
        InputError: an unknown choice, or a radius that is not above 0; see also `Algorithm`.
    """

    def __init__(
        self,
        network: nn.Module,
        head: nn.Linear,
        objective: Objective,
        *,
        distractors: str,
        radius: float,
    ) -> None:
        super().__init__(network, head, objective)
        if distractors not in ("ignore", "cluster", "mask"):
            raise InputError(
                f"algorithm.distractors={distractors}: must be ignore, cluster or mask"
            )
        self.distractors, radius = distractors, float(positive(radius=radius))
        if distractors == "cluster":
            self.log_radius = nn.Parameter(torch.tensor(radius).log())
        if distractors == "mask":
            self.thresholds = nn.Sequential(nn.Linear(5, _HIDDEN), nn.Tanh(), nn.Linear(_HIDDEN, 2))

    def prototypes(self, task: Episode) -> Tensor:
        """The refined prototypes ``[N, F]``."""
        prototypes, unlabelled = super().prototypes(task), task.sets.get("unlabelled")
        if unlabelled is None:
            return prototypes
        x = self.like_query(self.features, task, unlabelled)(unlabelled.x)  # [M, F]
        distances = (x[:, None] - prototypes).square().sum(dim=2)  # [M, N]
        near = self.objective.outputs(lambda _: -distances, unlabelled)
        if self.distractors == "cluster":
            # Section 3.1.2, with a radius of 1 for all classes; log(2 pi) / 2 cancels.
            far = -x.square().sum(dim=1) / (2 * self.log_radius).exp() - self.log_radius
            near = torch.cat([near, far[:, None]], dim=1)
        share = near.softmax(dim=1)[:, : len(prototypes)]  # section 3.1.1
        weight = torch.ones_like(x[:, 0]) if unlabelled.weight is None else unlabelled.weight
        if self.distractors == "mask":
            share = share * self._mask(distances, weight)
        share = share * weight[:, None]
        members = one_hot(task.support.y, len(prototypes)).to(x.dtype)
        if task.support.weight is not None:
            members = members * task.support.weight[:, None]
        count, more = members.sum(dim=0), share.sum(dim=0)  # [N]
        total = (count + more).where(count > 0, 1)
        return (prototypes * count[:, None] + share.T @ x) / total[:, None]

    def _mask(self, distances: Tensor, weight: Tensor) -> Tensor:
        """How much of each unlabelled example each class takes, ``[M, N]`` in 0..1."""
        mean_weight = (weight / weight.sum())[:, None]
        distances = distances / (distances * mean_weight).sum(dim=0)  # their mean is 1
        known = weight[:, None] > 0
        deviation = distances - 1
        variance = (deviation.square() * mean_weight).sum(dim=0)
        spread = (variance + _LEAST).sqrt()
        statistics = [
            distances.where(known, float("inf")).amin(dim=0),
            distances.where(known, float("-inf")).amax(dim=0),
            variance,
            ((deviation / spread) ** 3 * mean_weight).sum(dim=0),  # skewness
            ((deviation / spread) ** 4 * mean_weight).sum(dim=0) - 3,  # excess kurtosis
        ]
        # Section 3.1.3: threshold beta and slope gamma of each class.
        beta, gamma = self.thresholds(torch.stack(statistics, dim=1)).unbind(dim=1)
        return (-gamma * (distances - beta)).sigmoid()

    def learned(self) -> dict[str, Tensor]:
        """The radius of the cluster around 0, if there is one."""
        return {"radius/all": self.log_radius.exp()} if self.distractors == "cluster" else {}
