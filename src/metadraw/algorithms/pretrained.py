"""What algorithms share that pre-train as an ordinary classifier of all classes."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metadraw.algorithms.base import Algorithm, Outcome, State
from metadraw.algorithms.distillation import Teacher
from metadraw.algorithms.inner_loop import InnerLoop, whole
from metadraw.algorithms.recompute import Params
from metadraw.data.episode import Episode, Examples, joined
from metadraw.errors import InputError, check_part, check_switch
from metadraw.models.batch_norm import batch_statistics
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
        mirror_images: in evaluation, a picture's features are the mean of its own and those of its
            mirror image.
        inner: see `Algorithm`.

    Raises:
        InputError: a number of classes below 1, an impossible share, or a switch that is neither
            true nor false; see also `Algorithm`.
    """

    any_ways = only_classes = True
    learns_head = False

    def __init__(
        self,
        network: nn.Module,
        head: nn.Linear,
        objective: Objective,
        *,
        classes: int,
        label_smoothing: float,
        running_statistics: bool,
        mirror_images: bool = False,
        inner: InnerLoop | None = None,
    ) -> None:
        super().__init__(network, head, objective, inner)
        whole(classes=classes)
        check_part("algorithm.label_smoothing", label_smoothing)
        self.mirror_images = check_switch("algorithm.mirror_images", mirror_images)
        self.classifier = nn.Linear(head.in_features, classes)
        self.label_smoothing = label_smoothing
        if check_switch("algorithm.running_statistics", running_statistics):
            self.keep_statistics()
        self._teacher: Teacher | None = None

    def learn_from(self, teacher: Teacher) -> None:
        """Imitate a teacher from now on, in pre-training.

        Raises:
            InputError: a teacher of fewer classes.
        """
        known, needed = teacher.classifier.classifier.out_features, self.classifier.out_features
        if known < needed:
            raise InputError(
                f"teacher.ckpt_path: was trained on {known} classes, and algorithm.classes={needed}"
                ": must be at most as many"
            )
        self._teacher = teacher

    def features(self, x: Tensor, state: State | None = None) -> Tensor:
        """Features ``[B, F]``, in evaluation mode of batch norm by the running statistics."""
        state = self.running() | (state or {})
        if self.training or not self.mirror_images:
            return super().features(x, state)
        # Not as one batch, whose statistics would be those of both.
        return (super().features(x, state) + super().features(x.flip(-1), state)) / 2

    def forward(self, task: Episode) -> tuple[Tensor, Outcome, Params]:
        """The pre-training loss of one task's examples; see `Algorithm.forward`."""
        examples, classes = joined(task.support, task.query), task.about["classes"]
        seen: Params = {}
        with ExitStack() as stack:
            if self.running_statistics:
                seen = stack.enter_context(batch_statistics(self.network, examples.weight))
            features = self.embed(examples)
        loss, logits, observed = self.pretrain(features, examples, classes)
        after = logits[len(task.support.x) :, classes]

        def outputs(logits: Tensor) -> Tensor:
            return self.objective.outputs(lambda _: logits, task.query)

        observed |= {f"network.{name}": values.detach() for name, values in seen.items()}
        return loss, Outcome(outputs(torch.zeros_like(after)), outputs(after)), observed

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
        loss = mean(losses, examples)
        if self._teacher is not None:
            loss = self._teacher.loss(loss, logits, examples)
        return loss, logits, {}

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
