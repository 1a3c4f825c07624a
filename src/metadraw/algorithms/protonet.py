"""Prototypical networks (Snell, Swersky and Zemel 2017)."""

from __future__ import annotations

import torch
from torch import Tensor

from metadraw.algorithms.base import State
from metadraw.algorithms.feature_based import FeatureBased
from metadraw.data.episode import Episode
from metadraw.models.head import class_means, nearest_prototype


class ProtoNet(FeatureBased):
    """Classify by the nearest class mean, in squared Euclidean distance of features.

    There is no inner loop: one pass over the support set gives the prototypes (equation 1), and a
    softmax over negative distances gives class probabilities (equation 2). Before adaptation there
    are no prototypes, and all classes are equally likely.

    Args:
        network: see `Algorithm`.
        head: not used.
        objective: classification.

    Raises:
        InputError: see `Algorithm`.
    """

    only_classes = True

    def adapt(self, task: Episode, steps: int) -> list[State]:
        """A head of zeros, and the head of the prototypes; see `Algorithm.adapt`."""
        prototypes = self.prototypes(task)
        heads = [nearest_prototype(c) for c in (torch.zeros_like(prototypes), prototypes)]
        return [{"head.weight": weight, "head.bias": bias} for weight, bias in heads]

    def prototypes(self, task: Episode) -> Tensor:
        """The class means ``[N, F]`` of the support set."""
        support, ways = task.support, self.objective.width(task)
        return class_means(self.embed(support), support.y, ways, support.weight)
