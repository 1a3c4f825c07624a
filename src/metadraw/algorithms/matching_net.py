"""Matching networks (Vinyals et al. 2016, "Matching Networks for One Shot Learning")."""

from __future__ import annotations

import torch
from torch import Tensor

from metadraw.algorithms.base import State
from metadraw.algorithms.feature_based import FeatureBased
from metadraw.data.episode import Episode
from metadraw.models.head import cosine


class MatchingNet(FeatureBased):
    """Classify by attention over the support set, in the cosine similarity of features.

    There is no inner loop: the support set's features and labels are all that is learned of a
    task. Support and query images share one embedding, without the paper's full context embeddings
    (section 2.1.2). Before adaptation all classes are equally likely.

    Args:
        network: see `Algorithm`.
        head: not used.
        objective: classification.

    Raises:
        InputError: see `Algorithm`.
    """

    only_classes = True

    def adapt(self, task: Episode, steps: int) -> list[State]:
        """The support set's features ``[B, F]`` and labels ``[B, N]``; see `Algorithm.adapt`."""
        support, ways = task.support, self.objective.width(task)
        features = self.embed(support)
        labels = self.objective.encode(support.y, ways).to(features.dtype)
        unknown = torch.full_like(labels, 1 / ways)
        known: State = {"features": features}
        if support.weight is not None:
            known["weight"] = support.weight
        return [known | {"labels": labels} for labels in (unknown, labels)]

    def predict(self, state: State, x: Tensor) -> Tensor:
        """Log-probabilities ``[B, N]`` of images ``[B, C, H, W]``."""
        # Section 2.1.1: a softmax over cosine distances c(f(x), g(x_i)) to the support examples.
        similarity = cosine(self.features(x), state["features"])
        if "weight" in state:
            similarity = similarity + state["weight"].log()
        # Equation 1: the attention to each class. Its logarithm is a logit, also without any.
        attention = similarity.softmax(dim=1) @ state["labels"]
        return attention.clamp(min=torch.finfo(attention.dtype).tiny).log()
