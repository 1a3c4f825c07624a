"""CAVIA (Zintgraf et al. 2019, "Fast Context Adaptation via Meta-Learning")."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from metadraw.algorithms.base import State, linear
from metadraw.algorithms.inner_loop import whole
from metadraw.algorithms.maml import MAML
from metadraw.data.episode import Episode
from metadraw.objectives import Objective


class CAVIA(MAML):
    """MAML whose inner loop adapts a small context vector alone; all else is shared by all tasks.

    The context starts at zero in every task and takes K gradient steps on the support loss
    (equation 4); the outer step learns everything else, through these steps (equation 5). It enters
    after the network, so that any network works, unchanged: a linear function of the context scales
    and shifts the features (FiLM, which the paper uses in convolutional networks), and a layer with
    ReLU follows. To that layer, the shift is what a concatenation of context and features would be,
    which the paper uses in fully connected networks, at their first layer.

    Args:
        network: see `Algorithm`.
        head: see `Algorithm`.
        objective: see `Algorithm`.
        context: elements of the context.
        **inner: see `InnerLoop`.

    Raises:
        InputError: a context that is not a whole number of at least 1; see also `MAML`.
    """

    def __init__(
        self,
        network: nn.Module,
        head: nn.Linear,
        objective: Objective,
        *,
        context: int,
        **inner: Any,
    ) -> None:
        super().__init__(network, head, objective, **inner)
        features = head.in_features
        # Without bias: a context of zero changes nothing.
        self.film = nn.Linear(whole(context=context), 2 * features, bias=False)
        self.layer = nn.Sequential(nn.Linear(features, features), nn.ReLU())

    def adapt(self, task: Episode, steps: int) -> list[State]:
        """The context before and after each gradient step, and the head; see `Algorithm.adapt`."""
        features = self.embed(task.support)
        head = {n: p for n, p in self.start(task).items() if n.startswith("head.")}

        def loss(state: State) -> Tensor:
            return self.objective.loss(self._outputs(features, state | head), task.support)

        start = {"context": features.new_zeros(self.film.in_features)}
        return [state | head for state in self.inner.path(loss, start, steps)]

    def predict(self, state: State, x: Tensor) -> Tensor:
        """Outputs ``[B, width]`` for inputs ``[B, ...]``."""
        return self._outputs(self.features(x), state)

    def _outputs(self, features: Tensor, state: State) -> Tensor:
        scale, shift = self.film(state["context"]).chunk(2)
        return linear(self.layer(features * (1 + scale) + shift), state)
