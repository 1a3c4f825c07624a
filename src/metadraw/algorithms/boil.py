"""BOIL (Oh et al. 2021, "BOIL: Towards Representation Change for Few-shot Learning")."""

from __future__ import annotations

from metadraw.algorithms.base import State
from metadraw.algorithms.maml import MAML
from metadraw.data.episode import Episode


class BOIL(MAML):
    """MAML whose inner loop changes the network alone, under a head that stays as it is.

    The opposite of ANIL (section 3.1): the inner learning rate of the head is 0.
    """

    def adapt(self, task: Episode, steps: int) -> list[State]:
        """The parameters before and after each gradient step; see `Algorithm.adapt`."""
        start, loss = self.start(task), self.loss_on(task.support)
        head = {name: p for name, p in start.items() if name.startswith("head.")}
        network = {name: p for name, p in start.items() if name not in head}
        path = self.inner.path(lambda network: loss(network | head), network, steps)
        return [state | head for state in path]
