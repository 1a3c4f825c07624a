"""Quadratic discriminant analysis: linear discriminants whose classes differ in how they vary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metadraw.algorithms.base import State
from metadraw.algorithms.inner_loop import positive
from metadraw.algorithms.lda import LinearDiscriminant
from metadraw.data.episode import Episode
from metadraw.models.head import one_hot, whitening
from metadraw.objectives import Objective


class QuadraticDiscriminant(LinearDiscriminant):
    """`LinearDiscriminant` with a covariance of each class, as far as its examples tell one.

    Regularised discriminant analysis (Friedman 1989; Hastie, Tibshirani and Friedman 2009, "The
    Elements of Statistical Learning", section 4.3.1), in features of a pre-trained network; Simple
    CNAPS (Bateni et al. 2020, equation 2) does so, too. With one shot it is `LinearDiscriminant`.

    Args:
        network: see `Algorithm`.
        head: not used, except for how many features F it takes; each class of a task has F^2
            numbers.
        objective: classification.
        class_strength: how many examples of a class the covariance that all share counts as, above
            0.
        **settings: see `LinearDiscriminant`.

    Raises:
        InputError: a strength that is not above 0; see also `LinearDiscriminant`.
    """

    def __init__(
        self,
        network: nn.Module,
        head: nn.Linear,
        objective: Objective,
        *,
        class_strength: float,
        **settings: Any,
    ) -> None:
        super().__init__(network, head, objective, **settings)
        self.class_strength = positive(class_strength=class_strength)

    def adapt(self, task: Episode, steps: int) -> list[State]:
        """Gaussians that know nothing, and those of the classes; see `Algorithm.adapt`."""
        support, ways = task.support, self.objective.width(task)
        means, apart, weight = self.deviations(self.embed(support), support, ways)
        members = one_hot(support.y, ways).to(apart.dtype) * weight[:, None]
        scatter = torch.einsum("bn,bf,bg->nfg", members, apart, apart).to(apart.dtype)
        degrees = (members.sum(dim=0) - 1).clamp(min=0)
        shared = self.class_strength * self.shared(scatter.sum(dim=0), degrees.sum())
        # Equation 4.13, with more weight for what more examples tell.
        covariances = (shared + scatter) / (self.class_strength + degrees)[:, None, None]
        white, log_det = whitening(covariances)
        known = {"means": means, "whitening": white, "log_det": log_det}
        return [{name: torch.zeros_like(value) for name, value in known.items()}, known]

    def predict(self, state: State, x: Tensor) -> Tensor:
        """Logits ``[B, N]`` of images ``[B, C, H, W]``."""
        apart = self.normalised(self.features(x))[:, None] - state["means"]
        distances = torch.einsum("nfg,bng->bnf", state["whitening"], apart).square().sum(dim=2)
        # Equation 4.12, of equally likely classes.
        return -(distances + state["log_det"]) / (2 * self.temperature)
