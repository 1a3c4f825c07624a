"""ANIL (Raghu et al. 2020, "Rapid Learning or Feature Reuse?")."""

from __future__ import annotations

from torch import Tensor

from metadraw.algorithms.base import Algorithm, State, linear
from metadraw.algorithms.maml import MAML
from metadraw.data.episode import Episode


class ANIL(MAML):
    """MAML whose inner loop adapts the head alone, on fixed features (section 4).

    Features are computed once for all inner steps, so a step costs next to nothing.
    """

    def adapt(self, task: Episode, steps: int) -> list[State]:
        """The head before and after each gradient step; see `Algorithm.adapt`."""
        return head_path(self, task, steps)


def head_path(algorithm: Algorithm, task: Episode, steps: int) -> list[State]:
    """The path of an inner loop that adapts a head alone, on features computed once.

    Args:
        algorithm: provides features, the head to start from, objective and inner loop.
        task: one task.
        steps: inner steps.
    """
    assert algorithm.inner is not None
    support, features = task.support, algorithm.embed(task.support)
    head = {n: p for n, p in algorithm.start(task).items() if n.startswith("head.")}

    def loss(head: State) -> Tensor:
        def predict(x: Tensor) -> Tensor:  # of other inputs than the examples', too, in rollouts
            return linear(features if x is support.x else algorithm.features(x), head)

        return algorithm.objective.loss(algorithm.objective.outputs(predict, support), support)

    return algorithm.inner.path(loss, head, steps)
