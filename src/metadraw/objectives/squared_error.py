"""Regression: the distance of outputs from real values."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from metadraw.data.episode import Examples
from metadraw.errors import InputError
from metadraw.objectives.base import Metric, Objective, exact, mean


class SquaredError(Objective):
    """Outputs ``[B, size]`` for real values ``[B, size]``: their mean squared difference.

    Finn et al. 2017 ("Model-Agnostic Meta-Learning"), equation 3, as a mean instead of a sum.

    Args:
        size: number of values per example.
        monitor: see `Objective`.
        mode: see `Objective`.

    Raises:
        InputError: see `Objective`.
    """

    measured: ClassVar = {"loss": Metric("loss", "mean squared error", "min")}

    def __init__(self, *, size: int = 1, monitor: str = "loss", mode: str = "min") -> None:
        super().__init__(size=size, monitor=monitor, mode=mode)

    def encode(self, y: Tensor, width: int) -> Tensor:
        """The values, unchanged."""
        return y

    def loss(self, outputs: Tensor, examples: Examples) -> Tensor:
        """The mean over examples and their values.

        Raises:
            InputError: outputs and targets differ in shape.
        """
        if outputs.shape != examples.y.shape:
            raise InputError(
                f"objective: outputs of shape {list(outputs.shape)} for targets of shape "
                f"{list(examples.y.shape)}: SquaredError takes objective.size real values per "
                "example"
            )
        return mean((outputs - examples.y).square().mean(dim=-1), examples)

    def metrics(self, outputs: Tensor, examples: Examples) -> dict[str, Tensor]:
        """The loss."""
        return {"loss": self.loss(exact(outputs), examples)}
