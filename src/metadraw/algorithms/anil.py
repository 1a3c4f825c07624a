"""ANIL (Raghu et al. 2020, "Rapid Learning or Feature Reuse?")."""

from __future__ import annotations

from metadraw.algorithms.base import Algorithm, State, linear
from metadraw.algorithms.maml import MAML
from metadraw.data.episode import Episode


class ANIL(MAML):
    """MAML whose inner loop adapts the head alone, on fixed features (section 4).

    Features are computed once for all inner steps, so a step costs next to nothing.
    """

    def adapt(self, task: Episode, steps: int) -> list[State]:
        """The head before and after each gradient step; see `Algorithm.adapt`."""
        head = {name: p for name, p in self.start(task).items() if name.startswith("head.")}
        return head_path(self, head, task, steps)


def head_path(algorithm: Algorithm, head: State, task: Episode, steps: int) -> list[State]:
    """The path of an inner loop that adapts a head alone, on features computed once.

    Args:
        algorithm: provides features, objective and inner loop.
        head: ``head.weight`` and ``head.bias`` to start from.
        task: one task.
        steps: inner steps.
    """
    assert algorithm.inner is not None
    with algorithm.weighted(task.support):
        features = algorithm.features(task.support.x)
    return algorithm.inner.path(
        lambda head: algorithm.objective.loss(linear(features, head), task.support), head, steps
    )
