"""What algorithms share that pre-train as an ordinary classifier of all classes."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from metadraw.algorithms.base import Algorithm, Outcome, State, place
from metadraw.algorithms.inner_loop import InnerLoop
from metadraw.algorithms.recompute import Params
from metadraw.data.episode import Episode, Examples, joined
from metadraw.errors import InputError
from metadraw.models.batch_norm import batch_norms, batch_statistics
from metadraw.objectives import Objective
from metadraw.objectives.base import mean

Observed: TypeAlias = tuple[Tensor, Tensor, Params]


class Pretrained(Algorithm):
    """A classifier of all meta-training classes; a subclass learns a task from its features.

    Pre-training sees support and query set together, as members of their class among all classes.
    What is logged there as after adaptation is the classifier's choice among the classes of the
    task. One task of many classes in a batch is an ordinary batch of images: see
    ``experiment=pretrain``.

    Args:
        network: see `Algorithm`.
        head: not used, except for how many features it takes.
        objective: classification.
        classes: how many classes the data have, all splits together.
        label_smoothing: the share of a label that is spread over all classes, in 0..1.
        running_statistics: keep running statistics of batch norm, with which
            ``learner.query_statistics=running`` normalises in evaluation, as an ordinary
            classifier does.
        inner: see `Algorithm`.

    Raises:
        InputError: a number of classes below 1, or an impossible share; see also `Algorithm`.
    """

    any_ways = only_classes = True
    #: Of the running statistics, PyTorch's default.
    momentum = 0.1

    def __init__(
        self,
        network: nn.Module,
        head: nn.Linear,
        objective: Objective,
        *,
        classes: int,
        label_smoothing: float,
        running_statistics: bool,
        inner: InnerLoop | None = None,
    ) -> None:
        super().__init__(network, None, objective, inner)
        if type(classes) is not int or classes < 1:
            raise InputError(f"algorithm.classes={classes}: must be a whole number of at least 1")
        if not 0 <= label_smoothing < 1:
            raise InputError(
                f"algorithm.label_smoothing={label_smoothing}: must be at least 0, below 1"
            )
        self.classifier = nn.Linear(head.in_features, classes)
        self.label_smoothing = label_smoothing
        self.statistics: list[str] = []  # of each layer, its mean and its variance
        norms = batch_norms(network) if running_statistics else {}
        for name, layer in norms.items():
            for kind, value in (("running_mean", 0.0), ("running_var", 1.0)):
                self.statistics.append(f"network.{name}.{kind}")
                start = torch.full((layer.num_features,), value)
                self.register_buffer(_buffer(self.statistics[-1]), start)
        self.running_statistics = bool(self.statistics)

    def features(self, x: Tensor, state: State | None = None) -> Tensor:
        """Features ``[B, F]``, in evaluation mode of batch norm by the running statistics."""
        running = {name: self.get_buffer(_buffer(name)) for name in self.statistics}
        return super().features(x, running | (state or {}))

    def forward(self, task: Episode) -> tuple[Tensor, Outcome, Params]:
        """The pre-training loss of one task's examples; see `Algorithm.forward`."""
        examples, classes = joined(task.support, task.query), task.about["classes"]
        seen: Params = {}
        with self.weighted(examples), ExitStack() as stack:
            if self.running_statistics:
                seen = stack.enter_context(batch_statistics(self.network, examples.weight))
            features = self.features(examples.x)
        loss, logits, observed = self.pretrain(features, examples, classes)
        after = logits[len(task.support.x) :, classes]
        observed |= {f"network.{name}": values.detach() for name, values in seen.items()}
        return loss, Outcome(torch.zeros_like(after), after), observed

    def pretrain(self, features: Tensor, examples: Examples, classes: Tensor) -> Observed:
        """The loss of the classifier of all classes.

        Args:
            features: ``[B, F]`` of the examples.
            examples: whose labels are positions in ``classes``.
            classes: ``[N]``, the ids of the task's classes.

        Returns:
            The loss, logits ``[B, all classes]``, and what else is averaged over the batch.
        """
        logits = self.classifier(features)
        losses = F.cross_entropy(
            logits, classes[examples.y], reduction="none", label_smoothing=self.label_smoothing
        )
        return mean(losses, examples), logits, {}

    @torch.no_grad()
    def outer_step(self, means: Params, optimizer: Optimizer) -> None:
        """A step of the outer optimiser and of the running statistics."""
        optimizer.step()
        for name in self.statistics:
            self.get_buffer(_buffer(name)).lerp_(means[name], self.momentum)

    def check_classes(self, count: int) -> None:
        """Check that the classifier has an output for each class.

        Raises:
            InputError: it has too few.
        """
        if count > self.classifier.out_features:
            raise InputError(
                f"algorithm.classes={self.classifier.out_features}: the data have {count} classes, "
                f"so it must be at least {count}"
            )


def _buffer(name: str) -> str:
    """A buffer's name may have no dots."""
    return place(name).replace(".", "-")
