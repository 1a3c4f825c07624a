"""RFS: logistic regression on the features of a pre-trained network (Tian et al. 2020)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metadraw.algorithms.base import State, linear
from metadraw.algorithms.inner_loop import positive
from metadraw.algorithms.pretrained import Pretrained
from metadraw.data.episode import Episode
from metadraw.models.head import one_hot, solve
from metadraw.objectives import Objective

#: With a ridge of 1, the gradient is then below 1e-7 for 10 ways of 10 shots. A ridge far below 0.1
#: is not followed to the end, as if stopped early.
_ITERATIONS = 100


class LogisticRegression(Pretrained):
    """A pre-trained classifier; a task is learned by logistic regression on its features.

    Tian et al. 2020 ("Rethinking Few-Shot Image Classification").

    Features are scaled to length 1 (section 3.2). The head minimises the cross-entropy, summed over
    the support set, plus half the ridge times its squared norm. Before adaptation it is zero, so
    all classes are equally likely.

    The minimum is found by bound optimisation (Böhning 1992, "Multinomial logistic regression
    algorithm"): Newton's method with a bound of all Hessians, which is inverted once. As the
    weights are combinations of the examples, it solves for as many unknowns as there are examples,
    whatever the number of features.

    Args:
        network: see `Algorithm`.
        head: not used, except for how many features it takes.
        objective: classification.
        ridge: the regularisation, above 0; the paper has 1.
        **pretraining: see `Pretrained`.

    Raises:
        InputError: a ridge that is not above 0; see also `Pretrained`.
    """

    def __init__(
        self,
        network: nn.Module,
        head: nn.Linear,
        objective: Objective,
        *,
        ridge: float,
        **pretraining: Any,
    ) -> None:
        super().__init__(network, head, objective, **pretraining)
        self.ridge = positive(ridge=ridge)

    def adapt(self, task: Episode, steps: int) -> list[State]:
        """A head of zeros, and the one of the minimum; see `Algorithm.adapt`."""
        support, ways = task.support, self.objective.width(task)
        x = F.normalize(self.embed(support), dim=1)
        right = one_hot(support.y, ways).to(x.dtype)
        weight = torch.ones_like(x[:, 0]) if support.weight is None else support.weight
        # The bias is the weight of a feature that is always 1.
        kernel = x @ x.T + 1
        # The Hessian is at most half of this, whatever the probabilities (Böhning, equation 2.3).
        identity = torch.eye(len(x), dtype=x.dtype, device=x.device)
        inverse = solve(self.ridge * identity + weight[:, None] * kernel / 2, identity)

        def chances(shares: Tensor) -> Tensor:
            return self.objective.outputs(lambda _: kernel @ shares, support).softmax(dim=1)

        shares = torch.zeros_like(right)  # of each example in the weights of each class
        for _ in range(_ITERATIONS):
            wrong = weight[:, None] * (chances(shares) - right)
            shares = shares - inverse @ (wrong + self.ridge * shares)
        return [
            {"head.weight": each.T @ x, "head.bias": each.sum(dim=0)}
            for each in (torch.zeros_like(shares), shares)
        ]

    def predict(self, state: State, x: Tensor) -> Tensor:
        """Logits ``[B, N]`` of images ``[B, C, H, W]``."""
        return linear(F.normalize(self.features(x), dim=1), state)
