"""Reptile (Nichol, Achiam and Schulman 2018, "On First-Order Meta-Learning Algorithms")."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metadraw.algorithms.base import Algorithm, Outcome, positive
from metadraw.algorithms.inner_loop import Params, gradient_steps
from metadraw.data.episode import Episode


class Reptile(Algorithm):
    """Move the parameters towards where training on each task leads (algorithm 2).

    It needs no split into support and query set: in meta-training a task is learned from both
    together. What is logged there is the query accuracy after learning from the support set
    alone, which compares with other algorithms.

    Args:
        network: see `Algorithm`.
        inner_lr: alpha, above 0.
        inner_steps: see `Algorithm`; at least 2, because one step is plain training.
        eval_inner_steps: see `Algorithm`.

    Raises:
        InputError: an inner learning rate that is not above 0; see also `Algorithm`.
    """

    def __init__(
        self, network: nn.Module, *, inner_lr: float, inner_steps: int, eval_inner_steps: int
    ) -> None:
        super().__init__(network, inner_steps=inner_steps, eval_inner_steps=eval_inner_steps)
        self.inner_lr = positive(inner_lr=inner_lr)

    def _learn(self, network: Params, x: Tensor, y: Tensor, steps: int) -> list[Params]:
        return gradient_steps(
            self.loss_on(x, y), network, steps=steps, lr=self.inner_lr, first_order=True
        )

    def adapt(self, support_x: Tensor, support_y: Tensor, steps: int) -> list[Params]:
        """The network's parameters before and after each gradient step; see `Algorithm.adapt`."""
        return self._learn(self.network_parameters(), support_x, support_y, steps)

    def meta_gradient(self, meta: Params, episode: Episode) -> tuple[Params, Outcome]:
        """(theta - theta') / alpha, which section 2 hands to the outer optimiser as a gradient."""
        start = {name.removeprefix("network."): p for name, p in meta.items()}
        x = torch.cat([episode.support_x, episode.query_x])
        y = torch.cat([episode.support_y, episode.query_y])
        joint = self._learn(start, x, y, self.inner_steps)[-1]
        gradient = {f"network.{n}": (p - joint[n]) / self.inner_lr for n, p in start.items()}
        path = self._learn(start, episode.support_x, episode.support_y, self.inner_steps)
        before, after = (self.classify(params, episode) for params in (start, path[-1]))
        return gradient, Outcome(before, after)
