"""N-way classification: cross-entropy, accuracy and weighted precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from metadraw.data.episode import Episode, Examples
from metadraw.errors import InputError
from metadraw.models.head import one_hot
from metadraw.objectives.base import Metric, Objective, exact, mean


class Classification(Objective):
    """Logits ``[B, N]`` for labels ``[B]``, int64 in 0..N-1.

    Where examples know the ways of their task, the logits of other labels are the lowest number:
    they have probability 0, and no derivative.

    The weighted precision is the mean of the classes' precisions, weighted by their numbers of
    examples; it is 0 for a class that was never predicted (like scikit-learn's
    ``precision_score(average="weighted", zero_division=0)``).

    Args:
        ways: N, or its minimum and maximum.
        monitor: see `Objective`.
        mode: see `Objective`.

    Raises:
        InputError: see `Objective`.
    """

    measured: ClassVar = {
        "loss": Metric("loss", "loss (nats)", "min"),
        "acc": Metric("acc", "accuracy", "max", percent=True),
        "precision": Metric("precision", "weighted precision", "max", percent=True),
    }

    def __init__(
        self, *, ways: int | Sequence[int], monitor: str = "acc", mode: str = "max"
    ) -> None:
        size = ways if isinstance(ways, int) else max(ways)
        super().__init__(size=size, monitor=monitor, mode=mode)

    def width(self, task: Episode) -> int:
        """N, the ways of this task.

        Raises:
            InputError: it has no classes.
        """
        if "classes" not in task.about:
            raise InputError(
                "objective: these tasks have no classes: choose another one, e.g. "
                "objective=squared_error"
            )
        return task.about["classes"].shape[-1]

    def outputs(self, predict: Callable[[Tensor], Tensor], examples: Examples) -> Tensor:
        """The logits, see `Objective.outputs`."""
        logits = super().outputs(predict, examples)
        if (ways := examples.extra.get("ways")) is None:
            return logits
        label = torch.arange(logits.shape[-1], device=logits.device)
        # Not minus infinity, which times a weight of 0 is no number.
        return logits.where(label < ways[:, None], torch.finfo(logits.dtype).min)

    def encode(self, y: Tensor, width: int) -> Tensor:
        """One-hot labels, float ``[B, N]``."""
        return one_hot(y, width).float()

    def loss(self, outputs: Tensor, examples: Examples) -> Tensor:
        """The cross-entropy, in nats."""
        if examples.weight is None:
            return F.cross_entropy(outputs, examples.y)
        return mean(F.cross_entropy(outputs, examples.y, reduction="none"), examples)

    def metrics(self, outputs: Tensor, examples: Examples) -> dict[str, Tensor]:
        """Loss, accuracy and weighted precision."""
        logits = exact(outputs)
        guess = logits.argmax(dim=-1)
        guessed, actual = (
            one_hot(labels, logits.shape[-1]).to(logits.dtype) for labels in (guess, examples.y)
        )
        if examples.weight is not None:
            guessed, actual = (each * examples.weight[:, None] for each in (guessed, actual))
        hits = (one_hot(guess, logits.shape[-1]) * actual).sum(dim=0)  # [N]
        of_guesses, of_class = guessed.sum(dim=0), actual.sum(dim=0)
        precision = hits / of_guesses.where(of_guesses > 0, 1)
        return {
            "loss": self.loss(logits, examples),
            "acc": mean((guess == examples.y).to(logits.dtype), examples),
            "precision": (precision * of_class).sum() / of_class.sum(),
        }
