"""Pictures to complete from a few of their pixels: regression on the drawings of any data set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metadraw.data.datamodule import EpisodeDataModule
from metadraw.data.episode import Episode, Examples
from metadraw.data.figures import draw_completion
from metadraw.data.hashing import fold
from metadraw.data.tasks import TaskDataModule, TaskSampler
from metadraw.errors import InputError


class Completion(TaskDataModule):
    """Each task is one drawing: learn its ink as a function of the place, from a few pixels.

    Garnelo et al. 2018 ("Conditional neural processes"), section 4.2. The drawing of task i is the
    first support drawing of episode i of ``drawings``, whose loading, class split and augmentation
    thus apply: the drawings of meta-test are of classes that meta-training has not seen. Seeds are
    those of this data set.

    Support pixels are drawn at random without replacement; query pixels likewise, from those that
    are left, as long as there are any: as many queries as pixels are the whole picture.

    Args:
        drawings: a data set with classes.
        **tasks: see `TaskDataModule`; shots and queries are numbers, not ranges.

    Raises:
        InputError: another data set, or more shots or queries than pixels; see also
            `TaskDataModule`.
    """

    ranges = False

    def __init__(self, *, drawings: EpisodeDataModule, **tasks: Any) -> None:
        super().__init__(**tasks)
        if not isinstance(drawings, EpisodeDataModule):
            raise InputError("data.drawings: must be a data set with classes, such as quickdraw")
        self.drawings = drawings
        drawings.seeds = self.seeds
        for split in ("test", "train"):
            for name, number in zip(("shots", "queries"), self.fixed_sizes(split), strict=True):
                if number > self.pixels:
                    raise InputError(
                        f"{self.key(name, split)}={number}: a drawing has {self.pixels} pixels "
                        f"(data.drawings.image_size={drawings.image_size})"
                    )

    @property
    def pixels(self) -> int:
        """The number of pixels of a drawing."""
        return self.drawings.image_size**2

    @property
    def provenance(self) -> Mapping[str, Any]:
        """The origin of the drawings."""
        return self.drawings.provenance

    def setup(self, stage: str | None = None) -> None:
        """Load the drawings.

        Raises:
            InputError: see `EpisodeDataModule.setup`.
        """
        self.drawings.setup(stage)

    def episodes(self, split: str, device: torch.device | str = "cpu") -> CompletionSampler:
        """See `TaskDataModule.episodes`."""
        return CompletionSampler(self, split, device)

    def example(self, tasks: int) -> Episode:
        """Tasks of noise."""
        shapes = (
            [tasks, count, self.drawings.image_channels] for count in self.fixed_sizes("test")
        )
        support, query = (
            Examples(torch.rand(*shape[:2], 2) * 2 - 1, torch.rand(shape)) for shape in shapes
        )
        return Episode(support, query, torch.arange(tasks))

    def picture(self, task: Episode, path: Path, before: Tensor, after: Tensor) -> None:
        """The known pixels, the picture before and after adaptation, and the drawing."""
        size, ink = self.drawings.image_size, self.drawings.ink
        draw_completion([(task, {"before adaptation": before, "adapted": after})], size, path, ink)


class CompletionSampler(TaskSampler):
    """Task i of a split; see `TaskSampler`."""

    def __init__(self, data: Completion, split: str, device: torch.device | str) -> None:
        super().__init__(data, split, device, data.pixels)  # not the drawings' own hash
        self.drawn = data.drawings.episodes(split, device)
        self.places = places(data.drawings.image_size).to(device)

    def __call__(self, number: Tensor) -> Episode:
        """The tasks with these numbers.

        Args:
            number: ``[T]`` int64, each at least 0.

        Returns:
            T tasks, float32: x ``[T, K, 2]``, column and row in -1..1, and y ``[T, K, channels]``,
            values in 0..1.
        """
        drawn = self.drawn(number)
        values = drawn.support.x[:, 0].flatten(2).transpose(1, 2)  # [T, pixels, channels]
        pixels = torch.arange(len(self.places), device=values.device)
        order = fold(fold(self._state, drawn.number)[:, None], pixels).argsort(dim=1)

        def examples(chosen: Tensor) -> Examples:
            return Examples(self.places[chosen], values.take_along_dim(chosen[..., None], dim=1))

        support = examples(order[:, : self.shots])
        # From the other end, so that they are known pixels only if there are no others.
        query = examples(order.flip(1)[:, : self.queries])
        return Episode(support, query, drawn.number)


def places(size: int) -> Tensor:
    """Column and row of each pixel's centre, ``[size**2, 2]``, from -1 to 1 at the edges."""
    centres = (2 * torch.arange(size) + 1) / size - 1
    rows, columns = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([columns, rows], dim=-1).flatten(0, 1)
