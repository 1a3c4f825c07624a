"""Mixtures: tasks from several data sets, each with classes of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from metadraw.data.composed import Composed, OnePartEach
from metadraw.data.drawings import Drawings
from metadraw.data.episode import Episode
from metadraw.data.tasks import Sampler, check_split
from metadraw.errors import InputError, is_number

_CLASSES = ("classes", "exclude_classes", "train_classes", "val_classes", "test_classes")


class Mixture(Composed):
    """Each task comes from one of several data sets, drawn by weight, in all splits.

    Each data set chooses and splits its own classes; together they are called ``PART/CLASS``.

    Args:
        parts: the config of each data set by name.
        weights: how likely each is, relative to the others, by name; 1 for any other.
        **episodes: what `EpisodeDataModule` takes; classes are chosen in the parts.

    Raises:
        InputError: an impossible value; see also `EpisodeDataModule`.
    """

    key_of_parts = "parts"
    own = _CLASSES

    def __init__(
        self, *, parts: Mapping[str, Any], weights: Mapping[str, float], **episodes: Any
    ) -> None:
        for key in _CLASSES:
            if episodes.get(key) is not None:
                raise InputError(
                    f"data.{key}={episodes[key]}: must be null: each data set of a mixture has its "
                    f"own, data.parts.NAME.{key}"
                )
        super().__init__(parts=parts, **episodes)
        right = isinstance(weights, Mapping) and all(
            name in self.parts and is_number(weight) and weight > 0
            for name, weight in weights.items()
        )
        if not right:
            raise InputError(
                f"data.weights={weights}: must be numbers above 0 by name, of "
                f"{', '.join(self.parts)}"
            )
        each = [float(weights.get(name, 1)) for name in self.parts]
        self.shares = [weight / sum(each) for weight in each]

    def compose(self) -> Drawings:
        """Set up all parts.

        Returns:
            The drawings of all classes.

        Raises:
            InputError: see `EpisodeDataModule.setup`.
        """
        for name, part in self.parts.items():
            with self.naming(name):
                part.setup()
        self.splits = {
            split: [f"{name}/{c}" for name, part in self.parts.items() for c in part.splits[split]]
            for split in ("train", "val", "test")
        }
        drawings = [(name, part.drawings) for name, part in self.parts.items()]
        classes = tuple(f"{name}/{c}" for name, each in drawings for c in each.classes)
        return Drawings(
            [i for _, each in drawings for i in each.images],
            classes,
            self.origin(shares=self.shares),
        )

    def groups(self, split: str, number: Tensor) -> list[str]:
        """The data set of each episode."""
        names = list(self.parts)
        return [names[part] for part in self._one_each([], split).part_of(number).tolist()]

    def _one_each(self, samplers: list[Sampler], split: str) -> OnePartEach:
        return OnePartEach(samplers, self.shares, split, self.seeds[split])

    def episodes(self, split: str, device: torch.device | str = "cpu") -> Sampler:  # type: ignore[override]
        """The sampler of one split; see `EpisodeDataModule.episodes`."""
        check_split(split)
        self.setup()
        samplers: list[Sampler] = []
        before, count = 0, len(self.drawings.classes)
        for name, part in self.parts.items():
            with self.naming(name):
                sampler = part.episodes(split, device)
            own = len(part.drawings.classes)
            samplers.append(Renumbered(sampler, own, before, count))
            before += own
        return self._one_each(samplers, split)


class Renumbered:
    """The episodes of a part, with its classes numbered among those of all parts.

    Args:
        sampler: of the part.
        own: how many classes the part has.
        before: how many classes the parts before it have.
        count: how many classes all parts have.
    """

    def __init__(self, sampler: Sampler, own: int, before: int, count: int) -> None:
        self.sampler, self.own, self.before, self.count = sampler, own, before, count

    def __call__(self, number: Tensor) -> Episode:
        """The episodes with these numbers; see `Sampler`."""
        episode = self.sampler(number)
        classes = episode.about["classes"]
        # The orientation stays: see `Episode.about`.
        classes = classes // self.own * self.count + self.before + classes % self.own
        return episode._replace(about={**episode.about, "classes": classes})
