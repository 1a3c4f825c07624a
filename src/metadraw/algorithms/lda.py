"""Linear discriminant analysis, with the covariance that meta-training classes have within them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metadraw.algorithms.base import State, follow
from metadraw.algorithms.inner_loop import positive
from metadraw.algorithms.pretrained import Observed
from metadraw.algorithms.recompute import Params
from metadraw.algorithms.simple_shot import SimpleShot
from metadraw.data.episode import Episode, Examples
from metadraw.errors import check_share
from metadraw.models.head import class_means, one_hot, solve
from metadraw.objectives import Objective


class LinearDiscriminant(SimpleShot):
    """`SimpleShot` with distances that count less where drawings of one class differ more.

    Linear discriminant analysis (Hastie, Tibshirani and Friedman 2009, "The Elements of Statistical
    Learning", section 4.3): classes are Gaussian, with a covariance that all of them share. A few
    shots do not tell it, but new classes vary much as those of meta-training do, so its prior is
    what is observed there, within classes, over the last hundred batches or so. Features are those
    of SimpleShot, centred and of length 1. No step is taken in a task.

    Args:
        network: see `Algorithm`.
        head: not used, except for how many features F it takes; the covariance has F^2 numbers.
        objective: classification.
        shrinkage: how far the prior is from what is observed, 0, to equal variances of all
            features, 1 (equation 4.14).
        strength: how many examples of a task the prior counts as, above 0.
        **settings: see `SimpleShot`; with a ``temperature`` of 1, probabilities are those of the
            Gaussians.

    Raises:
        InputError: a shrinkage outside 0..1, a strength that is not above 0; see also `SimpleShot`.
    """

    def __init__(
        self,
        network: nn.Module,
        head: nn.Linear,
        objective: Objective,
        *,
        shrinkage: float,
        strength: float,
        **settings: Any,
    ) -> None:
        super().__init__(network, head, objective, **settings)
        self.shrinkage = check_share("algorithm.shrinkage", shrinkage)
        self.strength = positive(strength=strength)
        self.register_buffer("covariance", torch.eye(head.in_features) / head.in_features)

    covariance: Tensor

    def pretrain(self, features: Tensor, examples: Examples, classes: Tensor) -> Observed:
        """See `SimpleShot.pretrain`; also observes the covariance within classes."""
        loss, logits, observed = super().pretrain(features, examples, classes)
        _, scatter, degrees = self._gaussians(features.detach(), examples, len(classes))
        return loss, logits, observed | {"covariance": scatter / degrees}

    @torch.no_grad()
    def outer_step(self, means: Params, optimizer: Optimizer) -> None:
        """A step as in `SimpleShot.outer_step`, and of the covariance."""
        super().outer_step(means, optimizer)
        # It has many more numbers than the center, so it takes more batches to tell.
        follow(self.covariance, means["covariance"], self.momentum / 10)

    def adapt(self, task: Episode, steps: int) -> list[State]:
        """A head that knows nothing, and the discriminants; see `Algorithm.adapt`."""
        support, ways = task.support, self.objective.width(task)
        means, scatter, degrees = self._gaussians(self.embed(support), support, ways)
        # Equation 4.10, of equally likely classes.
        weight = solve(self.shared(scatter, degrees), means.T).T / self.temperature
        bias = -(weight * means).sum(dim=1) / 2
        known = {"head.weight": weight, "head.bias": bias}
        return [{name: torch.zeros_like(value) for name, value in known.items()}, known]

    def shared(self, scatter: Tensor, degrees: Tensor) -> Tensor:
        """The covariance ``[F, F]`` of all classes of a task: the prior, and what the task tells.

        Args:
            scatter: of its examples about their class means, ``[F, F]``.
            degrees: of freedom of that, a scalar.
        """
        variances = self.covariance.diagonal()
        equal = variances.mean().expand_as(variances).diag()
        prior = torch.lerp(self.covariance, equal, self.shrinkage)
        return (self.strength * prior + scatter) / (self.strength + degrees)

    def deviations(
        self, features: Tensor, examples: Examples, ways: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Class means ``[N, F]``, how features differ from theirs ``[B, F]``, weights ``[B]``."""
        x = self.normalised(features)
        weight = torch.ones_like(x[:, 0]) if examples.weight is None else examples.weight
        # In mixed precision, products of matrices are of lower precision than what they are of.
        means = class_means(x, examples.y, ways, weight).to(x.dtype)
        return means, x - means[examples.y], weight

    def _gaussians(
        self, features: Tensor, examples: Examples, ways: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Class means ``[N, F]``, the scatter about them ``[F, F]``, and its degrees of freedom."""
        means, apart, weight = self.deviations(features, examples, ways)
        scatter = ((apart * weight[:, None]).T @ apart).to(apart.dtype)
        present = (weight @ one_hot(examples.y, ways).to(apart.dtype) > 0).sum()
        return means, scatter, weight.sum() - present
