"""Alpha MAML (Behl, Baydin and Torr 2019, "Alpha MAML: Adaptive Model-Agnostic Meta-Learning")."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metadraw.algorithms.base import State
from metadraw.algorithms.inner_loop import positive
from metadraw.algorithms.maml import MAML
from metadraw.algorithms.recompute import Params
from metadraw.data.episode import Episode
from metadraw.objectives import Objective


class AlphaMAML(MAML):
    """MAML whose inner and outer learning rates are adapted while it trains.

    Each rate descends its hypergradient, the derivative of the outer loss with respect to the rate.
    For the inner rate alpha, this goes through the whole inner loop. For the outer rate beta, it
    goes through the latest outer step (Baydin et al. 2018, "Online Learning Rate Adaptation with
    Hypergradient Descent"): minus the dot product of the meta-gradient and the direction of that
    step, which is the previous meta-gradient with gradient descent, and the step divided by beta
    with any other outer optimiser.

    Args:
        network: see `Algorithm`.
        head: see `Algorithm`.
        objective: see `Algorithm`.
        inner_hyper_lr: the learning rate of alpha, which starts at ``inner_lr``.
        outer_hyper_lr: the learning rate of beta, which starts at the outer optimiser's rate.
        **inner: see `InnerLoop`.

    Raises:
        InputError: a rate that is not above 0; see also `MAML`.
    """

    inner_lr: Tensor
    outer_lr: Tensor
    direction: Tensor

    def __init__(
        self,
        network: nn.Module,
        head: nn.Linear,
        objective: Objective,
        *,
        inner_hyper_lr: float,
        outer_hyper_lr: float,
        **inner: Any,
    ) -> None:
        super().__init__(network, head, objective, **inner)
        self.inner_hyper_lr = positive(inner_hyper_lr=inner_hyper_lr)
        self.outer_hyper_lr = positive(outer_hyper_lr=outer_hyper_lr)
        # Buffers, so that a resumed run restores them. NaN: unknown before the first outer step.
        self.register_buffer("outer_lr", torch.tensor(float("nan")))
        size = sum(p.numel() for p in self.adaptable().values())
        self.register_buffer("direction", torch.zeros(size))
        self.inner_lr = nn.Parameter(torch.tensor(float(self.inner.inner_lr)))

    def adapt(self, task: Episode, steps: int) -> list[State]:
        """The parameters before and after each gradient step; see `Algorithm.adapt`."""
        start = self.start(task)
        return self.inner.path(self.loss_on(task.support), start, steps, self.inner_lr)

    @torch.no_grad()
    def outer_step(self, means: Params, optimizer: Optimizer) -> None:
        """A step of both rates, then one of the outer optimiser; see `Algorithm.outer_step`."""
        hypergradient, self.inner_lr.grad = self.inner_lr.grad, None  # hidden from the optimiser
        assert hypergradient is not None
        # A negative rate would ascend, so the rate stays just above 0.
        self.inner_lr.sub_(self.inner_hyper_lr * hypergradient).clamp_(min=1e-8)
        parameters = list(self.adaptable().values())
        # Already clipped, if gradient clipping is on.
        gradient = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        (group,) = optimizer.param_groups
        climb = self.outer_hyper_lr * (gradient @ self.direction).item()
        group["lr"] = max(group["lr"] + climb, 1e-8)
        self.outer_lr.fill_(group["lr"])
        before = torch.cat([p.flatten() for p in parameters])
        optimizer.step()
        after = torch.cat([p.flatten() for p in parameters])
        self.direction.copy_((before - after) / self.outer_lr)

    def learned(self) -> dict[str, Tensor]:
        """Both rates."""
        return {"inner_lr/all": self.inner_lr, "outer_lr/all": self.outer_lr}
