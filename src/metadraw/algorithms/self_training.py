"""Self-training: gradient steps on labels that the learner itself gives to unlabelled examples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metadraw.algorithms.base import State
from metadraw.algorithms.inner_loop import positive, whole
from metadraw.algorithms.unicorn_maml import UnicornMAML
from metadraw.data.episode import Episode
from metadraw.objectives import Objective
from metadraw.objectives.base import mean


class SelfTraining(UnicornMAML):
    """UNICORN-MAML that goes on learning a task from its set ``unlabelled``.

    After the steps on the support set, further steps minimise the sum of the losses on both sets.
    The label of an unlabelled example is the class with the highest probability at that step (Lee
    2013, "Pseudo-Label"), and its loss is multiplied by that probability, so that doubtful ones
    count less. How much the unlabelled set counts is meta-learned. (In Li et al. 2019, "Learning to
    Self-Train for Semi-Supervised Few-Shot Classification", a further network learns a weight for
    each example.) Labels and probabilities are constants in every derivative. Without such a set it
    is UNICORN-MAML.

    Args:
        network: see `Algorithm`.
        head: see `UnicornMAML`.
        objective: classification.
        self_training_steps: how many steps follow those on the support set, at least 1.
        unlabelled_weight: what the learned factor of the loss on the unlabelled set starts from,
            above 0.
        **inner: see `InnerLoop`.

    Raises:
        InputError: a number of steps below 1, or a weight that is not above 0; see also
            `UnicornMAML`.
    """

    def __init__(
        self,
        network: nn.Module,
        head: nn.Linear,
        objective: Objective,
        *,
        self_training_steps: int,
        unlabelled_weight: float,
        **inner: Any,
    ) -> None:
        super().__init__(network, head, objective, **inner)
        self.self_training_steps = whole(self_training_steps=self_training_steps)
        weight = torch.tensor(float(positive(unlabelled_weight=unlabelled_weight)))
        self.log_weight = nn.Parameter(weight.log())

    def adapt(self, task: Episode, steps: int) -> list[State]:
        """The parameters before and after each step, of both kinds; see `Algorithm.adapt`."""
        path, unlabelled = super().adapt(task, steps), task.sets.get("unlabelled")
        if unlabelled is None:
            return path
        loss_on_support = self.loss_on(task.support)

        def loss(state: State) -> Tensor:
            logits = self.answer(state, task, unlabelled)
            confidence, guess = logits.detach().softmax(dim=1).max(dim=1)
            weight = 1.0 if unlabelled.weight is None else unlabelled.weight
            extra = unlabelled.extra | {"weight": confidence * weight}
            labelled = unlabelled._replace(y=guess, extra=extra)
            # The objective divides by the sum of the weights: this undoes it.
            factor = self.log_weight.exp() * mean(confidence, unlabelled)
            return loss_on_support(state) + factor * self.objective.loss(logits, labelled)

        return path + self.inner.path(loss, path[-1], self.self_training_steps)[1:]

    def learned(self) -> dict[str, Tensor]:
        """The weight of the unlabelled set."""
        return {"unlabelled_weight/all": self.log_weight.exp()}
