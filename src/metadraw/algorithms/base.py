"""What a meta-learning algorithm has to say, and nothing of how it is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad

from metadraw.adaptation import Params
from metadraw.data.episode import Episode
from metadraw.errors import InputError
from metadraw.models.batch_norm import refuse_running_statistics


class Outcome(NamedTuple):
    """Query logits of one task, ``[N*Q, N]`` each."""

    before: Tensor  # with the parameters that adaptation starts from
    after: Tensor  # with the adapted parameters


class Algorithm(nn.Module, ABC):
    """A network together with a way to learn one task.

    Every method is about one task, without a batch dimension: whoever calls them maps them over
    tasks with `torch.vmap`. They are pure functions of this module's parameters, which are the
    meta-parameters: the network's, and any that a subclass adds.

    A subclass implements `adapt`. It may change what the outer step minimises (`outer_loss`),
    or, where that is no gradient of a loss, `meta_gradient`.

    Args:
        network: any module without in-place buffers, ``[B, C, H, W]`` -> ``[B, N]`` logits.
        inner_steps: K, adaptation steps in meta-training.
        eval_inner_steps: adaptation steps in meta-validation and meta-test.

    Raises:
        InputError: a number of steps below 1, or a network with running statistics.
    """

    #: Whether a trained algorithm can be tested with another number of ways.
    any_ways = False

    def __init__(self, network: nn.Module, *, inner_steps: int, eval_inner_steps: int) -> None:
        super().__init__()
        for key, steps in {
            "inner_steps": inner_steps,
            "eval_inner_steps": eval_inner_steps,
        }.items():
            if not isinstance(steps, int) or steps < 1:
                raise InputError(f"algorithm.{key}={steps}: must be a whole number of at least 1")
        refuse_running_statistics(network)
        self.network = network
        self.inner_steps, self.eval_inner_steps = inner_steps, eval_inner_steps

    @abstractmethod
    def adapt(self, support_x: Tensor, support_y: Tensor, steps: int) -> list[Params]:
        """Learn one task from its support set.

        Args:
            support_x: ``[B, C, H, W]`` float, any number of examples a class.
            support_y: ``[B]`` int64, labels 0..N-1.
            steps: adaptation steps.

        Returns:
            What `predict` needs, before adaptation and after each step of it.
        """

    def predict(self, params: Params, x: Tensor) -> Tensor:
        """Logits ``[B, N]`` of images ``[B, C, H, W]`` with one of the results of `adapt`."""
        return functional_call(self.network, params, (x,))

    def outer_loss(self, path: list[Params], episode: Episode) -> tuple[Tensor, Tensor]:
        """What the outer step minimises for one task: by default, the adapted query loss.

        Args:
            path: what `adapt` returned for the episode's support set.
            episode: one task.

        Returns:
            The loss, a scalar, and the query logits ``[N*Q, N]`` after adaptation.
        """
        logits = self.predict(path[-1], episode.query_x)
        return F.cross_entropy(logits, episode.query_y), logits

    def meta_gradient(self, meta: Params, episode: Episode) -> tuple[Params, Outcome]:
        """One task's gradient of the outer loss with respect to the meta-parameters.

        It has to be taken here, inside of the map over tasks. Averaging the loss outside and
        differentiating that is the same in mathematics, but wrong in PyTorch (2.13, silently):
        the batching rule of batch norm's backward pass is, see functorch's issue 534.

        Args:
            meta: this module's parameters by name.
            episode: one task.

        Returns:
            The gradient by parameter name, and the task's outcome.
        """

        def loss(meta: Params) -> tuple[Tensor, Outcome]:
            return functional_call(self, meta, (episode,))

        return grad(loss, has_aux=True)(meta)

    def forward(self, episode: Episode) -> tuple[Tensor, Outcome]:
        """The outer loss of one meta-training task, and its outcome."""
        path = self.adapt(episode.support_x, episode.support_y, self.inner_steps)
        loss, after = self.outer_loss(path, episode)
        start = {name: p.detach() for name, p in path[0].items()}
        return loss, Outcome(self.predict(start, episode.query_x), after)
