"""Conditional neural processes (Garnelo et al. 2018, "Conditional Neural Processes")."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metadraw.algorithms.base import State, linear
from metadraw.algorithms.feature_based import FeatureBased
from metadraw.algorithms.inner_loop import whole
from metadraw.data.episode import Episode
from metadraw.models.head import class_means
from metadraw.objectives import Objective
from metadraw.objectives.base import mean
from metadraw.objectives.classification import Classification


class CNP(FeatureBased):
    """A decoder that knows a task by the mean of its encoded support examples.

    An encoder maps each example to a representation (equation 1), their mean is all that is learned
    of a task (equation 2), and a decoder maps it together with a query to outputs (equation 3). The
    network is the first part of both: it maps x to features.

    Of real values, the encoder reads features and target. The outputs are values, not a
    distribution: the mean of the paper's Gaussian. Of classes, it reads features, and each class
    has a mean of its own (section 4.3). Where the paper concatenates these for a fixed number of
    classes, the decoder here scores each class by its mean and the mean of all, so any number of
    ways works, whichever class has which label. Before adaptation all outputs are zero.

    Args:
        network: see `Algorithm`.
        head: not used, except for how many features it takes.
        objective: see `Algorithm`.
        width: size of a representation, and of each hidden layer.

    Raises:
        InputError: a width that is not a whole number of at least 1; see also `Algorithm`.
    """

    def __init__(
        self, network: nn.Module, head: nn.Linear, objective: Objective, *, width: int
    ) -> None:
        super().__init__(network, head, objective)
        whole(width=width)
        features, size = head.in_features, objective.size
        self.classes = isinstance(objective, Classification)
        read, known, outputs = (
            (features, 2 * width, 1) if self.classes else (features + size, width, size)
        )
        self.encoder = nn.Sequential(nn.Linear(read, width), nn.ReLU(), nn.Linear(width, width))
        self.decoder = nn.Sequential(
            *(nn.Linear(features + known, width), nn.ReLU()),
            *(nn.Linear(width, width), nn.ReLU()),
        )
        self.output = nn.Linear(width, outputs)

    def adapt(self, task: Episode, steps: int) -> list[State]:
        """Representations ``[N, R]``, or ``[1, R]`` of real values, and a last layer.

        That is zero before adaptation; see `Algorithm.adapt`.
        """
        support, width = task.support, self.objective.width(task)
        features = self.embed(support)
        if self.classes:
            means = class_means(self.encoder(features), support.y, width, support.weight)
            # 1 for each class, 0 for one without examples, which a larger task of the batch has.
            seen = class_means(torch.ones_like(features[:, :1]), support.y, width, support.weight)
            found = torch.cat([means, (means.sum(dim=0) / seen.sum()).expand_as(means)], dim=1)
        else:
            y = self.objective.encode(support.y, width)
            found = mean(self.encoder(torch.cat([features, y], dim=1)), support)[None]
        head = {f"head.{name}": p for name, p in self.output.named_parameters()}
        unknown = {name: torch.zeros_like(p) for name, p in head.items()}
        return [each | {"representation": found} for each in (unknown, head)]

    def predict(self, state: State, x: Tensor) -> Tensor:
        """Outputs ``[B, width]`` for inputs ``[B, ...]``."""
        features, known = self.features(x), state["representation"]
        pairs = torch.cat(
            [
                features[:, None].expand(-1, len(known), -1),
                known.to(features.dtype).expand(len(features), -1, -1),
            ],
            dim=2,
        )
        # Of each class one output, or of all values.
        return linear(self.decoder(pairs), state).flatten(1)
