"""Meta-Baseline (Chen et al. 2021, "Meta-Baseline: Exploring Simple Meta-Learning")."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metadraw.algorithms.base import State
from metadraw.algorithms.feature_based import FeatureBased
from metadraw.algorithms.inner_loop import positive
from metadraw.data.episode import Episode
from metadraw.models.head import class_means
from metadraw.objectives import Objective


class MetaBaseline(FeatureBased):
    """Classify by the nearest class mean in cosine similarity, with a learned temperature.

    Meta-training starts from a pre-trained network (``init_from``), which is what the method is
    about (section 3.2). Before adaptation all classes are the same.

    Args:
        network: see `Algorithm`.
        head: not used.
        objective: classification.
        scale: what the learned factor of similarities starts from, above 0; the paper has 10.

    Raises:
        InputError: a scale that is not above 0; see also `Algorithm`.
    """

    only_classes = True

    def __init__(
        self, network: nn.Module, head: nn.Linear, objective: Objective, *, scale: float
    ) -> None:
        super().__init__(network, head, objective)
        self.scale = nn.Parameter(torch.tensor(float(positive(scale=scale))))

    def adapt(self, task: Episode, steps: int) -> list[State]:
        """Class means ``[N, F]`` of length 1, or of length 0; see `Algorithm.adapt`."""
        support, ways = task.support, self.objective.width(task)
        features = self.embed(support)
        means = F.normalize(class_means(features, support.y, ways, support.weight), dim=1)
        return [{"means": each} for each in (torch.zeros_like(means), means)]

    def predict(self, state: State, x: Tensor) -> Tensor:
        """Logits ``[B, N]`` of images ``[B, C, H, W]`` (equation 3)."""
        return self.scale * F.normalize(self.features(x), dim=1) @ state["means"].T

    def learned(self) -> dict[str, Tensor]:
        """The factor of similarities."""
        return {"scale/all": self.scale}
