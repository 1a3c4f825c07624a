"""Proto-MAML (Triantafillou et al. 2020, "Meta-Dataset")."""

from __future__ import annotations

from metadraw.algorithms.base import State
from metadraw.algorithms.maml import MAML
from metadraw.data.episode import Episode
from metadraw.models.head import class_means, nearest_prototype


class ProtoMAML(MAML):
    """MAML whose head starts from the prototypes of the support set, for any number of ways.

    Before adaptation it classifies like a prototypical network; the inner loop then adapts network
    and head. The meta-gradient also goes through the prototypes.

    Args:
        network: see `Algorithm`.
        head: not used.
        objective: classification.
        **inner: see `InnerLoop`.

    Raises:
        InputError: see `MAML`.
    """

    any_ways = only_classes = True
    learns_head = False

    def start(self, task: Episode) -> State:
        """The network, and the head that classifies like a prototypical network."""
        support, ways = task.support, self.objective.width(task)
        prototypes = class_means(self.embed(support), support.y, ways, support.weight)
        weight, bias = nearest_prototype(prototypes)
        return super().start(task) | {"head.weight": weight, "head.bias": bias}
