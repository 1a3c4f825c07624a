"""CAVIA (Zintgraf et al. 2019, "Fast Context Adaptation via Meta-Learning")."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from metadraw.algorithms.base import State
from metadraw.algorithms.inner_loop import whole
from metadraw.algorithms.maml import MAML
from metadraw.data.episode import Episode
from metadraw.errors import InputError
from metadraw.objectives import Objective


class CAVIA(MAML):
    """MAML whose inner loop adapts a small context vector alone; all else is shared by all tasks.

    The context starts at zero in every task and takes K gradient steps on the support loss
    (equation 4); the outer step learns everything else, through these steps (equation 5). It enters
    any network, unchanged, as linear functions that scale and shift the output of layers (FiLM,
    which the paper uses in convolutional networks): of all batch and group norms or, without any,
    of all convolutions and linear layers. The shift of a linear layer is what the paper uses in
    fully connected networks, a concatenation of the context to the layer's input.

    Args:
        network: see `Algorithm`.
        head: see `Algorithm`.
        objective: see `Algorithm`.
        context: elements of the context.
        **inner: see `InnerLoop`.

    Raises:
        InputError: a context that is not a whole number of at least 1, or a network without such a
            layer; see also `MAML`.
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
        whole(context=context)
        found = [(name, *_channels(m)) for name, m in network.named_modules()]
        norms = [(name, size) for name, size, is_norm in found if is_norm]
        self.sizes = dict(norms or [(name, size) for name, size, _ in found if size])
        if not self.sizes:
            raise InputError(
                f"model: {type(network).__name__} has no norm, convolution or linear layer, which "
                "a context of CAVIA could scale and shift"
            )
        # Without bias: a context of zero changes nothing.
        self.film = nn.Linear(context, 2 * sum(self.sizes.values()), bias=False)

    def adapt(self, task: Episode, steps: int) -> list[State]:
        """The context before and after each gradient step, and the head; see `Algorithm.adapt`."""
        loss = self.loss_on(task.support)
        head = {n: p for n, p in self.start(task).items() if n.startswith("head.")}
        start = {"context": self.film.weight.new_zeros(self.film.in_features)}
        path = self.inner.path(lambda state: loss(state | head), start, steps)
        return [state | head for state in path]

    def features(self, x: Tensor, state: State | None = None) -> Tensor:
        """Features ``[B, F]`` of inputs ``[B, ...]``, in the context of a state."""
        if state is None:
            return super().features(x)
        by_layer = self.film(state["context"]).split([2 * size for size in self.sizes.values()])
        hooks = [
            self.network.get_submodule(name).register_forward_hook(_film(*values.chunk(2)))
            for name, values in zip(self.sizes, by_layer, strict=True)
        ]
        try:
            return super().features(x)
        finally:
            for hook in hooks:
                hook.remove()


def _channels(layer: nn.Module) -> tuple[int, bool]:
    """How many channels a layer has, 0 if it cannot be modulated, and whether it is a norm."""
    match layer:
        case _BatchNorm():
            return layer.num_features, True
        case nn.GroupNorm():
            return layer.num_channels, True
        case _ConvNd():
            return layer.out_channels, False
        case nn.Linear():
            return layer.out_features, False
    return 0, False


def _film(scale: Tensor, shift: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """A forward hook that scales and shifts the channels of a layer's output."""

    def modulate(layer: nn.Module, _: Any, output: Tensor) -> Tensor:
        after = 0 if isinstance(layer, nn.Linear) else output.ndim - 2
        one, other = (each.view(-1, *[1] * after) for each in (1 + scale, shift))
        return output * one + other

    return modulate
