"""SimpleShot (Wang et al. 2019, "SimpleShot: Revisiting Nearest-Neighbor Classification")."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from metadraw.algorithms.base import State, follow, linear
from metadraw.algorithms.inner_loop import positive
from metadraw.algorithms.pretrained import Observed, Pretrained
from metadraw.algorithms.recompute import Params
from metadraw.data.episode import Episode, Examples
from metadraw.models.head import class_means, nearest_prototype
from metadraw.objectives import Objective
from metadraw.objectives.base import mean


class SimpleShot(Pretrained):
    """A pre-trained classifier; a task is learned by the nearest mean of normalised features.

    Features are centred by their mean over meta-training and scaled to length 1 (section 3,
    "CL2N"); the nearest class mean of those wins (equation 2). No step is taken in a task. Before
    adaptation all classes are the same.

    Args:
        network: see `Algorithm`.
        head: not used, except for how many features it takes.
        objective: classification.
        temperature: by what squared distances are divided, above 0: accuracies do not depend on
            it, probabilities do.
        **pretraining: see `Pretrained`.

    Raises:
        InputError: see `Pretrained`.
    """

    def __init__(
        self,
        network: nn.Module,
        head: nn.Linear,
        objective: Objective,
        *,
        temperature: float,
        **pretraining: Any,
    ) -> None:
        super().__init__(network, head, objective, **pretraining)
        self.temperature = positive(temperature=temperature)
        self.register_buffer("center", torch.zeros(head.in_features))

    center: Tensor

    def normalised(self, features: Tensor) -> Tensor:
        """Features ``[B, F]``, centred, of length 1."""
        return F.normalize(features - self.center, dim=1)

    def pretrain(self, features: Tensor, examples: Examples, classes: Tensor) -> Observed:
        """See `Pretrained.pretrain`; also observes the mean feature."""
        loss, logits, observed = super().pretrain(features, examples, classes)
        return loss, logits, observed | {"center": mean(features.detach(), examples)}

    @torch.no_grad()
    def outer_step(self, means: Params, optimizer: Optimizer) -> None:
        """A step of the outer optimiser, of the running statistics and of the center."""
        super().outer_step(means, optimizer)
        follow(self.center, means["center"], self.momentum)

    def adapt(self, task: Episode, steps: int) -> list[State]:
        """A head that knows nothing, and the one of the class means; see `Algorithm.adapt`."""
        support, ways = task.support, self.objective.width(task)
        features = self.normalised(self.embed(support))
        means = class_means(features, support.y, ways, support.weight)
        heads = [nearest_prototype(c) for c in (torch.zeros_like(means), means)]
        return [
            {"head.weight": w / self.temperature, "head.bias": b / self.temperature}
            for w, b in heads
        ]

    def predict(self, state: State, x: Tensor) -> Tensor:
        """Logits ``[B, N]`` of images ``[B, C, H, W]``."""
        return linear(self.normalised(self.features(x)), state)
