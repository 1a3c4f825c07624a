"""What a task is: examples to learn from, and examples to predict."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


class Examples(NamedTuple):
    """``B`` examples of one task, or of ``T`` tasks if every tensor has a leading dimension."""

    x: Tensor  # ([T,] B, ...) float inputs, such as images in 0..1
    y: Tensor  # ([T,] B, ...) targets: int64 labels, or real values
    #: ([T,] B, ...) by name, anything else that is known of each. "weight", float: how much it
    #: counts in losses, metrics and batch statistics; 0 is padding. Without it, all count equally.
    #: "ways", int64: how many classes its task has, the first labels; all labels without it.
    extra: dict[str, Tensor] = {}  # noqa: RUF012  (nothing is ever put into it)

    @property
    def weight(self) -> Tensor | None:
        """How much each example counts, ``([T,] B)``; `None` if all count equally."""
        return self.extra.get("weight")


class Episode(NamedTuple):
    """One task, or a batch of ``T`` tasks if every tensor has a leading dimension.

    An N-way k-shot episode has its rows grouped by label; the label of a class is its position in
    the random order in which the classes were drawn.
    """

    support: Examples  # to learn from
    query: Examples  # to predict
    number: Tensor  # ([T]) int64: which episode of its split this is
    #: further examples by name, of unknown targets. "unlabelled": to learn from; the label -1 is of
    #: a class that the task does not have
    sets: dict[str, Examples] = {}  # noqa: RUF012
    #: ([T,] ...) by name, what is known of the task as a whole. "classes", of a classification,
    #: ([T,] N) int64: the class behind each label, an index into the data's C classes. Where
    #: augmentation makes new classes, id % C is that index and id // C the orientation. If the
    #: examples know their task's ways, classes beyond those mean nothing.
    about: dict[str, Tensor] = {}  # noqa: RUF012

    def to(self, target: torch.device | str | torch.dtype) -> Episode:
        """The same episode on another device, or with another dtype for its floats."""
        only_floats = isinstance(target, torch.dtype)

        def move(values: Tensor) -> Tensor:
            return values.to(target) if values.is_floating_point() or not only_floats else values

        return tree_map(move, self)

    def task(self, position: int) -> Episode:
        """The one task at ``position`` of a batch."""
        return tree_map(lambda values: values[position], self)

    @property
    def visible(self) -> Episode:
        """What a learner may see of this task: all but the targets outside the support set."""

        def hide(examples: Examples) -> Examples:
            # number.ndim is the examples' dimension, of one task or of a batch.
            return examples._replace(y=examples.y.narrow(self.number.ndim, 0, 0))

        sets = {name: hide(examples) for name, examples in self.sets.items()}
        return self._replace(query=hide(self.query), sets=sets)


def joined(*parts: Examples) -> Examples:
    """Several sets of one task's examples as one set, such as its support and query set."""
    return tree_map(lambda *values: torch.cat(values), *parts)
