"""The contract of a meta-learning algorithm: how one task is learned, not how it is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from metadraw.algorithms.gradient import grad
from metadraw.algorithms.inner_loop import InnerLoop
from metadraw.algorithms.recompute import Params, grad_by_steps
from metadraw.data.episode import Episode, Examples
from metadraw.errors import InputError
from metadraw.models.batch_norm import batch_norms, refuse_running_statistics, statistics_of
from metadraw.models.functional import call
from metadraw.objectives import Objective
from metadraw.objectives.classification import Classification

if TYPE_CHECKING:
    from typing_extensions import Self

#: What an algorithm has learned of a task: tensors by name, for most algorithms parameters.
State: TypeAlias = dict[str, Tensor]


class Outcome(NamedTuple):
    """The outputs for one task's query set, as `Objective.outputs` returns them."""

    before: Tensor  # in the state that adaptation starts from
    after: Tensor  # in the adapted state


class Algorithm(nn.Module, ABC):
    """A network together with a way to learn one task.

    Every method is about one task, without a batch dimension: callers map it over tasks
    (`metadraw.training.map_tasks`). All are pure functions of this module's parameters, which are
    the meta-parameters: the network's, the head's, and any that a subclass adds.

    A parameter with ``requires_grad=False`` is neither adapted nor meta-learned. A layer that is
    already in evaluation mode, such as the batch norm of a pre-trained body, stays in it.

    A subclass implements `adapt`. It may override `outer_loss`, which the outer step minimises;
    `meta_gradient`, if that is not the gradient of a loss; `outer_step`, to update what the outer
    optimiser does not learn; and `begin_epoch`, to set what depends on the epoch.

    Args:
        network: any module that does not change its own buffers, from inputs ``[B, ...]`` to
            features ``[B, F]``.
        head: an untrained linear layer from F features to the objective's outputs; kept only if
            `learns_head`.
        objective: defines targets, loss and metrics.
        inner: the inner loop, if there is one.

    Raises:
        InputError: batch norm that would update its running statistics, or an objective that this
            algorithm does not support.
    """

    #: Whether a trained algorithm can be tested with another number of ways.
    any_ways = False
    #: Whether it supports classification only.
    only_classes = False
    #: Whether it learns the head that it is given.
    learns_head = True
    #: Whether the backward pass recomputes each inner step: slower, with memory for one step.
    recompute_steps = False
    #: Whether batch norm normalises the query set by the support set's statistics, not its own.
    support_statistics = False
    #: Momentum of running statistics, PyTorch's default.
    momentum = 0.1

    def __init__(
        self,
        network: nn.Module,
        head: nn.Linear,
        objective: Objective,
        inner: InnerLoop | None = None,
    ) -> None:
        super().__init__()
        if self.only_classes and not isinstance(objective, Classification):
            raise InputError(
                f"objective: {type(self).__name__} learns classes: must be classification, not "
                f"{type(objective).__name__}"
            )
        refuse_running_statistics(network)
        self.network, self.head = network, head if self.learns_head else None
        self.objective, self.inner = objective, inner
        # By name, because within a task other tensors replace the parameters.
        self._adaptable = {name for name, p in self.named_parameters() if p.requires_grad}
        self._evaluating = [m for m in network.modules() if not m.training]
        self.statistics: list[str] = []  # mean and variance of each layer, see `keep_statistics`

    @property
    def inner_steps(self) -> int:
        """K, adaptation steps in meta-training; 1 without an inner loop."""
        return self.inner.inner_steps if self.inner else 1

    @property
    def eval_inner_steps(self) -> int:
        """Adaptation steps in meta-validation and meta-test; 1 without an inner loop."""
        return self.inner.eval_inner_steps if self.inner else 1

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode, except for layers that stay in evaluation mode."""
        super().train(mode)
        for module in self._evaluating:
            module.training = False
        return self

    @abstractmethod
    def adapt(self, task: Episode, steps: int) -> list[State]:
        """Learn one task.

        Args:
            task: without query targets, see `Episode.visible`.
            steps: adaptation steps.

        Returns:
            The states that `predict` takes: before adaptation and after each step.
        """

    def predict(self, state: State, x: Tensor) -> Tensor:
        """Outputs ``[B, width]`` for inputs ``[B, ...]`` in one of `adapt`'s states."""
        return linear(self.features(x, state), state)

    def features(self, x: Tensor, state: State | None = None) -> Tensor:
        """Features ``[B, F]`` of inputs ``[B, ...]``, with the network parameters of a state."""
        own = {
            place(name): p
            for name, p in (state or {}).items()
            if name.startswith("network.") and "@" not in name
        }
        return call(self.network, own, x)

    def start(self, task: Episode) -> State:
        """The parameters that adaptation starts from, by name, except frozen ones.

        If the head has more outputs than the task needs, its first rows.
        """
        params = self.adaptable()
        width = self.objective.width(task)
        if self.head is not None and width < self.head.out_features:
            params |= {n: p[:width] for n, p in params.items() if n.startswith("head.")}
        return params

    def adaptable(self) -> State:
        """The parameters of network and head by name, except frozen ones."""
        return {n: p for n, p in self.named_parameters() if n in self._adaptable}

    def keep_statistics(self, *steps: int) -> None:
        """Keep running statistics of the network's batch norm, as buffers ``[*steps, channels]``.

        `observe` has to return the statistics of a task by the same names.
        """
        for layer, norm in batch_norms(self.network).items():
            for kind, value in (("running_mean", 0.0), ("running_var", 1.0)):
                name = f"network.{layer}.{kind}"
                self.statistics.append(name)
                start = torch.full((*steps, norm.num_features), value)
                self.register_buffer(buffer_of(name), start)

    @property
    def running_statistics(self) -> bool:
        """Whether it keeps running statistics, for ``learner.query_statistics=running``."""
        return bool(self.statistics)

    def running(self) -> Params:
        """The running statistics by name, ``network.<layer>.running_mean`` and ``running_var``."""
        return {name: self.get_buffer(buffer_of(name)) for name in self.statistics}

    def embed(self, examples: Examples) -> Tensor:
        """Features ``[B, F]`` of examples, normalised by their weighted statistics."""
        with self.weighted(examples):
            return self.features(examples.x)

    def outputs(self, state: State, examples: Examples) -> Tensor:
        """The outputs for examples in a state, see `Objective.outputs`."""
        with self.weighted(examples):
            return self.objective.outputs(partial(self.predict, state), examples)

    @contextmanager
    def weighted(self, examples: Examples) -> Iterator[None]:
        """Within this context, batch norm weights these examples by their ``weight``."""
        if examples.weight is None:
            yield
        else:
            with statistics_of(examples.weight, self.network):
                yield

    def answer(self, state: State, task: Episode, examples: Examples | None = None) -> Tensor:
        """The outputs for a task's query set, or for other examples of it, see `like_query`."""
        examples = task.query if examples is None else examples
        predict = self.like_query(partial(self.predict, state), task, examples)
        return self.objective.outputs(predict, examples)

    def query_features(self, state: State, task: Episode) -> Tensor:
        """Features ``[B, F]`` of a task's query set, normalised as in `answer`."""
        features = self.like_query(partial(self.features, state=state), task, task.query)
        return features(task.query.x)

    def like_query(
        self, function: Callable[[Tensor], Tensor], task: Episode, examples: Examples
    ) -> Callable[[Tensor], Tensor]:
        """A function of the inputs of examples, with batch norm as `support_statistics` says.

        Args:
            function: maps inputs ``[B, ...]`` to ``[B, F]``.
            task: whose support set may provide the statistics.
            examples: of that task, outside its support set.
        """
        support = task.support

        def by_their_own(x: Tensor) -> Tensor:
            with self.weighted(examples):
                return function(x)

        def by_the_support_set(x: Tensor) -> Tensor:
            known = support.weight
            if known is None:
                known = torch.ones_like(support.x.flatten(1)[:, 0])
            weight = torch.cat([known, known.new_zeros(len(x))])
            with statistics_of(weight, self.network):
                return function(torch.cat([support.x, x]))[len(support.x) :]

        return by_the_support_set if self.support_statistics else by_their_own

    def loss_on(self, examples: Examples) -> Callable[[State], Tensor]:
        """The objective's loss on examples, as a function of the state."""
        return lambda state: self.objective.loss(self.outputs(state, examples), examples)

    def meta_parameters(self) -> dict[str, nn.Parameter]:
        """The meta-learned parameters by name: all of this module's, except frozen ones."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def outer_loss(self, path: list[State], task: Episode) -> tuple[Tensor, Tensor]:
        """The loss that the outer step minimises: by default, the query loss after adaptation.

        Args:
            path: what `adapt` returned for the task.
            task: one task.

        Returns:
            The loss, a scalar, and the query outputs after adaptation.
        """
        outputs = self.answer(path[-1], task)
        return self.objective.loss(outputs, task.query), outputs

    def meta_gradient(self, meta: Params, task: Episode) -> tuple[Params, Outcome]:
        """One task's gradient of the outer loss with respect to the meta-parameters.

        It must be taken here, within the map over tasks. Differentiating the mean loss outside the
        map is mathematically the same, but silently wrong in PyTorch 2.13: the batching rule of
        batch norm's backward pass is wrong (functorch issue 534).

        Args:
            meta: values of the `meta_parameters` by name.
            task: one task.

        Returns:
            The gradient by parameter name, with the tensors of `observe`, and the task's outcome.
        """

        def loss(meta: Params) -> tuple[Tensor, tuple[Outcome, Params]]:
            loss, outcome, observed = call(self, meta, task)
            return loss, (outcome, observed)

        of = grad_by_steps(loss) if self.recompute_steps else grad(loss, has_aux=True)
        gradient, (outcome, observed) = of(meta)
        return gradient | observed, outcome

    def forward(self, task: Episode) -> tuple[Tensor, Outcome, Params]:
        """The outer loss of one meta-training task, its outcome, and what was observed."""
        path = self.adapt(task.visible, self.inner_steps)
        loss, after = self.outer_loss(path, task)
        constant = [{name: p.detach() for name, p in state.items()} for state in path]
        before = self.answer(constant[0], task)
        return loss, Outcome(before, after), self.observe(constant, task)

    def observe(self, path: list[State], task: Episode) -> Params:
        """Extra tensors for `outer_step`, averaged over tasks; their names must not be parameters'.

        Args:
            path: what `adapt` returned for the task, as constants.
            task: one task.
        """
        return {}

    def begin_epoch(self, epoch: int) -> None:
        """Set what depends on the epoch, counted from 0; a resumed run begins at a later one."""

    @torch.no_grad()
    def outer_step(self, means: Params, optimizer: Optimizer) -> None:
        """Step the outer optimiser, whose parameters' ``grad`` is set, and running statistics.

        Args:
            means: what `meta_gradient` returned by name, averaged over the tasks of a batch.
            optimizer: of this module's parameters.
        """
        optimizer.step()
        for name, value in self.running().items():
            follow(value, means[name], self.momentum)

    def learned(self) -> dict[str, Tensor]:
        """Values worth logging by ``quantity/layer``: scalars, or ``[steps]``."""
        return {}

    def check_classes(self, count: int) -> None:
        """Check that it can be meta-trained on data with ``count`` classes over all splits.

        Raises:
            InputError: it cannot.
        """


def place(name: str) -> str:
    """A parameter's name within the network; ``head.weight`` and the like are unchanged."""
    return name.removeprefix("network.")


def buffer_of(name: str) -> str:
    """The buffer for a parameter's name, without dots, which PyTorch does not allow."""
    return place(name).replace(".", "-")


def follow(running: Tensor, observed: Tensor, momentum: float) -> None:
    """Move a running value, in place, towards what a batch observed, in whatever precision."""
    running.lerp_(observed.to(running.dtype), momentum)


def linear(features: Tensor, state: State) -> Tensor:
    """Outputs ``[B, width]`` of features ``[B, F]``, by a state's ``head.weight`` and ``.bias``."""
    return F.linear(features, state["head.weight"], state.get("head.bias"))
