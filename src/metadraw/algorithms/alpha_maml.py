"""Alpha MAML (Behl, Baydin and Torr 2019, "Alpha MAML: Adaptive Model-Agnostic Meta-Learning")."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metadraw.algorithms.base import Algorithm, positive
from metadraw.algorithms.inner_loop import Params, gradient_steps


class AlphaMAML(Algorithm):
    """MAML whose inner and outer learning rates are adapted while it trains.

    Both go down their hypergradient, the derivative of the outer loss with respect to the rate.
    For the inner rate alpha that is taken through the whole inner loop. For the outer rate beta
    it is that of the latest outer step (Baydin et al. 2018, "Online Learning Rate Adaptation with
    Hypergradient Descent"): minus the meta-gradient times the direction of that step,
    which was the meta-gradient before in gradient descent, and is what it was for any other
    outer optimiser.

    Args:
        network: see `Algorithm`.
        inner_lr: what alpha starts from, above 0.
        inner_hyper_lr: the learning rate of alpha.
        outer_hyper_lr: the learning rate of beta, which starts from the outer optimiser's.
        inner_steps: see `Algorithm`.
        eval_inner_steps: see `Algorithm`.

    Raises:
        InputError: a rate that is not above 0; see also `Algorithm`.
    """

    inner_lr: Tensor
    outer_lr: Tensor
    direction: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        inner_lr: float,
        inner_hyper_lr: float,
        outer_hyper_lr: float,
        inner_steps: int,
        eval_inner_steps: int,
    ) -> None:
        super().__init__(network, inner_steps=inner_steps, eval_inner_steps=eval_inner_steps)
        self.inner_lr = nn.Parameter(torch.tensor(positive(inner_lr=inner_lr)))
        self.inner_hyper_lr = positive(inner_hyper_lr=inner_hyper_lr)
        self.outer_hyper_lr = positive(outer_hyper_lr=outer_hyper_lr)
        # Buffers, so that a resumed run has them. NaN: not known before the first outer step.
        self.register_buffer("outer_lr", torch.tensor(float("nan")))
        size = sum(p.numel() for p in self.network_parameters().values())
        self.register_buffer("direction", torch.zeros(size))

    def adapt(self, support_x: Tensor, support_y: Tensor, steps: int) -> list[Params]:
        """The network's parameters before and after each gradient step; see `Algorithm.adapt`."""
        return gradient_steps(
            self.loss_on(support_x, support_y),
            self.network_parameters(),
            steps=steps,
            lr=self.inner_lr,
        )

    @torch.no_grad()
    def outer_step(self, means: Params, optimizer: Optimizer) -> None:
        """A step of both rates, then one of the outer optimiser; see `Algorithm.outer_step`."""
        slope, self.inner_lr.grad = self.inner_lr.grad, None  # not the optimiser's to move
        assert slope is not None
        # A rate below zero would climb: the least one is next to nothing.
        self.inner_lr.sub_(self.inner_hyper_lr * slope).clamp_(min=1e-8)
        parameters = self.network_parameters()
        slopes = [p.grad.flatten() for p in parameters.values() if p.grad is not None]  # clipped
        gradient = torch.cat(slopes)
        (group,) = optimizer.param_groups
        climb = self.outer_hyper_lr * (gradient @ self.direction).item()
        group["lr"] = max(group["lr"] + climb, 1e-8)
        self.outer_lr.fill_(group["lr"])
        before = torch.cat([p.flatten() for p in parameters.values()])
        optimizer.step()
        after = torch.cat([p.flatten() for p in parameters.values()])
        self.direction.copy_((before - after) / self.outer_lr)

    def learned(self) -> dict[str, Tensor]:
        """Both rates."""
        return {"inner_lr/all": self.inner_lr, "outer_lr/all": self.outer_lr}
