"""Matching networks (Vinyals et al. 2016, "Matching Networks for One Shot Learning")."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metadraw.algorithms.base import Algorithm
from metadraw.algorithms.inner_loop import Params
from metadraw.models.head import one_hot, open_head


class MatchingNet(Algorithm):
    """Classify by attention over the support set, in the cosine similarity of features.

    There is no inner loop: the support set's features and labels are all that is learned of a
    task. Support and query images have the same embedding, without the paper's full context
    embeddings (section 2.1.2). Before adaptation all classes are the same.

    Args:
        network: see `Algorithm`; what its last linear layer takes are the features.

    Raises:
        InputError: a network without a linear layer; see also `Algorithm`.
    """

    any_ways = True
    inner_loop = False

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network, inner_steps=1, eval_inner_steps=1)
        _, head = open_head(network)
        self.ways = head.out_features

    def adapt(self, support_x: Tensor, support_y: Tensor, steps: int) -> list[Params]:
        """The support set's features ``[B, F]`` and labels ``[B, N]``; see `Algorithm.adapt`."""
        features = self.network(support_x)
        labels = one_hot(support_y, self.ways).to(features.dtype)
        unknown = torch.full_like(labels, 1 / self.ways)
        return [{"features": features, "labels": labels} for labels in (unknown, labels)]

    def predict(self, params: Params, x: Tensor) -> Tensor:
        """Log-probabilities ``[B, N]`` of images ``[B, C, H, W]``."""
        features = F.normalize(self.network(x), dim=1)
        # Section 2.1.1: a softmax over cosine distances c(f(x), g(x_i)) to the support examples.
        similarity = features @ F.normalize(params["features"], dim=1).T
        # Equation 1: the attention's share of each class. Logarithms make it a logit.
        return (similarity.softmax(dim=1) @ params["labels"]).log()
