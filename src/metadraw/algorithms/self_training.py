"""Self-training: gradient steps on labels that the learner itself gives to unlabelled examples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metadraw.algorithms.base import State
from metadraw.algorithms.unicorn_maml import UnicornMAML
from metadraw.data.episode import Episode, Examples, joined
from metadraw.errors import InputError
from metadraw.objectives import Objective


class SelfTraining(UnicornMAML):
    """UNICORN-MAML that goes on learning a task from its set ``unlabelled``.

    After the steps on the support set, further steps minimise the loss on both sets. The label of
    an unlabelled example is the class with the highest probability at that step (Lee 2013,
    "Pseudo-Label"), and its weight is that probability, so that doubtful ones count less. (In Li et
    al. 2019, "Learning to Self-Train for Semi-Supervised Few-Shot Classification", a further
    network predicts the weights.) Labels and weights are constants in every derivative. Without
    such a set it is UNICORN-MAML.

    Args:
        network: see `Algorithm`.
        head: see `UnicornMAML`.
        objective: classification.
        self_training_steps: how many steps follow those on the support set, at least 1.
        **inner: see `InnerLoop`.

    Raises:
        InputError: a number of steps below 1; see also `UnicornMAML`.
    """

    def __init__(
        self,
        network: nn.Module,
        head: nn.Linear,
        objective: Objective,
        *,
        self_training_steps: int,
        **inner: Any,
    ) -> None:
        super().__init__(network, head, objective, **inner)
        if type(self_training_steps) is not int or self_training_steps < 1:
            raise InputError(
                f"algorithm.self_training_steps={self_training_steps}: must be a whole number of "
                "at least 1"
            )
        self.self_training_steps = self_training_steps

    def adapt(self, task: Episode, steps: int) -> list[State]:
        """The parameters before and after each step, of both kinds; see `Algorithm.adapt`."""
        path, unlabelled = super().adapt(task, steps), task.sets.get("unlabelled")
        if unlabelled is None:
            return path

        def loss(state: State) -> Tensor:
            known = self.outputs(state, task.support)
            unknown = self.answer(state, task, unlabelled)
            confidence, guess = unknown.detach().softmax(dim=1).max(dim=1)
            # In one mean: an unlabelled example counts at most as much as a labelled one.
            both = joined(
                _weighted(task.support), _weighted(unlabelled._replace(y=guess), confidence)
            )
            return self.objective.loss(torch.cat([known, unknown]), both)

        return path + self.inner.path(loss, path[-1], self.self_training_steps)[1:]


def _weighted(examples: Examples, by: Tensor | None = None) -> Examples:
    """The same examples with weights, multiplied by others."""
    weight = examples.weight
    if weight is None:
        weight = torch.ones_like(examples.x.flatten(1)[:, 0])
    weight = weight if by is None else weight * by
    return examples._replace(extra=examples.extra | {"weight": weight})
