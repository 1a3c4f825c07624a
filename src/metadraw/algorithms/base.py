"""What a meta-learning algorithm has to say, and nothing of how it is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from metadraw.algorithms.gradient import grad
from metadraw.algorithms.inner_loop import Params
from metadraw.algorithms.recompute import grad_by_steps
from metadraw.data.episode import Episode
from metadraw.errors import InputError
from metadraw.models.batch_norm import refuse_running_statistics, statistics_of_first
from metadraw.models.functional import call

if TYPE_CHECKING:
    from typing_extensions import Self


class Outcome(NamedTuple):
    """Query logits of one task, ``[N*Q, N]`` each."""

    before: Tensor  # with the parameters that adaptation starts from
    after: Tensor  # with the adapted parameters


class Algorithm(nn.Module, ABC):
    """A network together with a way to learn one task.

    Every method is about one task, without a batch dimension: whoever calls them maps them over
    tasks (`metadraw.training.map_tasks`). They are pure functions of this module's parameters,
    which are the meta-parameters: the network's, and any that a subclass adds.

    What the network keeps to itself stays so: a parameter with ``requires_grad=False`` is neither
    adapted nor meta-learned, and a layer that is in evaluation mode when it gets here, such as the
    batch norm of a pre-trained body, stays in it.

    A subclass implements `adapt`. It may change what the outer step minimises (`outer_loss`),
    or, where that is no gradient of a loss, `meta_gradient`; what is not learned by the outer
    optimiser, it moves in `outer_step`; what goes by the epoch, it sets in `begin_epoch`.

    Args:
        network: any module that does not change its own buffers, ``[B, C, H, W]`` -> ``[B, N]``
            logits.
        inner_steps: K, adaptation steps in meta-training; 1 where there is no inner loop.
        eval_inner_steps: adaptation steps in meta-validation and meta-test.

    Raises:
        InputError: a number of steps below 1, or batch norm that would update its running
            statistics.
    """

    #: Whether a trained algorithm can be tested with another number of ways.
    any_ways = False
    #: Whether a task is learned by inner steps.
    inner_loop = True
    #: Whether it keeps running statistics, for ``learner.query_statistics=running``.
    running_statistics = False
    #: Whether each inner step is computed again on the way back: slower, in memory for one.
    recompute_steps = False
    #: Whether batch norm normalises the query set by the support set's statistics, or its own.
    support_statistics = False

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
        # By name: inside of a task other tensors stand in the parameters' places.
        self._adaptable = {n for n, p in network.named_parameters() if p.requires_grad}
        self._evaluating = [m for m in network.modules() if not m.training]
        self.inner_steps, self.eval_inner_steps = inner_steps, eval_inner_steps

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode, but for layers that stay in evaluation mode."""
        super().train(mode)
        for module in self._evaluating:
            module.training = False
        return self

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
        return call(self.network, params, x)

    def classify(self, params: Params, episode: Episode) -> Tensor:
        """Logits ``[N*Q, N]`` of a task's query set, normalised as `support_statistics` says."""
        if not self.support_statistics:
            return self.predict(params, episode.query_x)
        support = len(episode.support_x)
        with statistics_of_first(support, self.network):
            return self.predict(params, torch.cat([episode.support_x, episode.query_x]))[support:]

    def network_parameters(self) -> Params:
        """The network's parameters, frozen ones aside, by their names in it: a start of a task."""
        named = self.network.named_parameters()
        return {name: p for name, p in named if name in self._adaptable}

    def meta_parameters(self) -> dict[str, nn.Parameter]:
        """What is meta-learned: this module's parameters by name, frozen ones aside."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def loss_on(self, x: Tensor, y: Tensor) -> Callable[[Params], Tensor]:
        """The cross-entropy of images ``[B, C, H, W]`` with labels ``[B]``, of parameters."""
        return lambda params: F.cross_entropy(self.predict(params, x), y)

    def outer_loss(self, path: list[Params], episode: Episode) -> tuple[Tensor, Tensor]:
        """What the outer step minimises for one task: by default, the adapted query loss.

        Args:
            path: what `adapt` returned for the episode's support set.
            episode: one task.

        Returns:
            The loss, a scalar, and the query logits ``[N*Q, N]`` after adaptation.
        """
        logits = self.classify(path[-1], episode)
        return F.cross_entropy(logits, episode.query_y), logits

    def meta_gradient(self, meta: Params, episode: Episode) -> tuple[Params, Outcome]:
        """One task's gradient of the outer loss with respect to the meta-parameters.

        It has to be taken here, inside of the map over tasks. Averaging the loss outside and
        differentiating that is the same in mathematics, but wrong in PyTorch (2.13, silently):
        the batching rule of batch norm's backward pass is, see functorch's issue 534.

        Args:
            meta: values of the `meta_parameters` by name.
            episode: one task.

        Returns:
            The gradient by parameter name, with what `observe` adds, and the task's outcome.
        """

        def loss(meta: Params) -> tuple[Tensor, tuple[Outcome, Params]]:
            loss, outcome, observed = call(self, meta, episode)
            return loss, (outcome, observed)

        of = grad_by_steps(loss) if self.recompute_steps else grad(loss, has_aux=True)
        gradient, (outcome, observed) = of(meta)
        return gradient | observed, outcome

    def forward(self, episode: Episode) -> tuple[Tensor, Outcome, Params]:
        """The outer loss of one meta-training task, its outcome, and what was observed."""
        path = self.adapt(episode.support_x, episode.support_y, self.inner_steps)
        loss, after = self.outer_loss(path, episode)
        constant = [{name: p.detach() for name, p in params.items()} for params in path]
        before = self.classify(constant[0], episode)
        return loss, Outcome(before, after), self.observe(constant, episode)

    def observe(self, path: list[Params], episode: Episode) -> Params:
        """What else `outer_step` needs the mean over tasks of, by names of its own.

        Args:
            path: what `adapt` returned for the episode's support set, as constants.
            episode: one task.
        """
        return {}

    def begin_epoch(self, epoch: int) -> None:
        """Set what goes by the epoch, counted from 0; a resumed run begins at a later one."""

    def outer_step(self, means: Params, optimizer: Optimizer) -> None:
        """Take one step of the outer optimiser, whose parameters have their ``grad``.

        Args:
            means: what `meta_gradient` returned, by name, the means over the tasks of a batch.
            optimizer: of this module's parameters.
        """
        optimizer.step()

    def learned(self) -> dict[str, Tensor]:
        """What is worth watching: a scalar or ``[steps]`` values by ``quantity/layer``."""
        return {}

    def check_classes(self, count: int) -> None:
        """Check that it can be meta-trained on data of so many classes, all splits together.

        Raises:
            InputError: it cannot.
        """


def positive(**setting: float) -> float:
    """The value of the one setting given.

    Raises:
        InputError: it is not above 0.
    """
    ((key, value),) = setting.items()
    if not isinstance(value, (int, float)) or not value > 0:
        raise InputError(f"algorithm.{key}={value}: must be a number above 0")
    return value
