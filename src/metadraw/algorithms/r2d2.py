"""R2-D2 (Bertinetto et al. 2019, "Meta-learning with differentiable closed-form solvers")."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metadraw.algorithms.base import State
from metadraw.algorithms.feature_based import FeatureBased
from metadraw.algorithms.inner_loop import positive
from metadraw.data.episode import Episode
from metadraw.models.head import solve
from metadraw.objectives import Objective


class R2D2(FeatureBased):
    """A task's head is the closed-form solution of ridge regression on the support features.

    Its regularisation is meta-learned, and so are a scale and a bias that make outputs of its
    predictions (section 3.2). There is no inner loop: the solution is differentiated as a whole.
    Before adaptation the head is zero. It learns real values as it learns classes.

    Args:
        network: see `Algorithm`.
        head: not used.
        objective: see `Algorithm`.
        ridge: lambda, what the regularisation starts from, above 0.

    Raises:
        InputError: a ridge that is not above 0; see also `Algorithm`.
    """

    def __init__(
        self, network: nn.Module, head: nn.Linear, objective: Objective, *, ridge: float
    ) -> None:
        super().__init__(network, head, objective)
        self.log_ridge = nn.Parameter(torch.tensor(float(positive(ridge=ridge))).log())
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.bias = nn.Parameter(torch.tensor(0.0))

    def adapt(self, task: Episode, steps: int) -> list[State]:
        """A head of zeros, and the solution ``[F, width]``; see `Algorithm.adapt`."""
        support, width = task.support, self.objective.width(task)
        x = self.embed(support)
        y = self.objective.encode(support.y, width).to(x.dtype)
        if support.weight is not None:
            x, y = (each * support.weight.sqrt()[:, None] for each in (x, y))
        # Equation 4: W = X' (X X' + lambda I)^-1 Y, a system of as many equations as examples.
        ridge = self.log_ridge.exp() * torch.eye(len(x), dtype=x.dtype, device=x.device)
        solution = x.T @ solve(x @ x.T + ridge, y)
        return [{"solution": each} for each in (torch.zeros_like(solution), solution)]

    def predict(self, state: State, x: Tensor) -> Tensor:
        """Outputs ``[B, width]`` for inputs ``[B, ...]`` (equation 6)."""
        return self.scale * (self.features(x) @ state["solution"]) + self.bias

    def learned(self) -> dict[str, Tensor]:
        """Regularisation, scale and bias."""
        ridge = self.log_ridge.exp()
        return {"ridge/all": ridge, "scale/all": self.scale, "bias/all": self.bias}
