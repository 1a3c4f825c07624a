"""Episode i of a split as a pure function of (seed, split, i), vectorised on any device.

Every choice is a hash, see `metadraw.data.hashing`. Drawing k of n takes the same time for any n.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metadraw.data import augmentation
from metadraw.data.episode import Episode, Examples
from metadraw.data.hashing import draw, fold, mix, start, uniform
from metadraw.data.mapped import MappedImages
from metadraw.data.tasks import SPLITS
from metadraw.errors import InputError


class EpisodeSampler:
    """Draws episodes of one class split, on the device that holds the drawings.

    Classes are drawn without replacement within a task, drawings without replacement within a
    class, so support and query are disjoint. More ways or shots with the same seed add to an
    episode and change nothing else in it: a 5-way episode's classes are the first five of the
    10-way episode of the same index.

    Each orientation of a class is a separate class: ``orientation * C + class`` has its drawings in
    that orientation, see `augmentation.orient`. How a drawing is shifted or mirrored depends on its
    index in the class, not on its position in the episode.

    Args:
        images: ``[D, channels, H, W]`` uint8, the D drawings of all C classes, one class after the
            other, in memory or mapped.
        counts: ``[C]`` int64, how many drawings each class has; their sum is D.
        classes: ``[M]`` int64, the classes of this split.
        groups: ``[M]`` int64, the group of each of them. A task draws one group, all equally
            likely, and then its classes within it; each group has at least N classes. All classes
            are one group if `None`.
        split: one of `SPLITS`: part of the hash, so splits never share a stream.
        ways: N, classes per task, at most M; or its minimum and maximum, drawn for each batch.
        shots: K, support drawings per class, likewise.
        queries: Q, query drawings per class, likewise; each class of this split has at least K + Q.
            With the same range as ``shots``, it is the same number in every batch.
        seed: another seed gives other episodes.
        tasks_per_batch: T, if any of those three is a range: episodes ``b*T .. b*T+T-1`` are batch
            b, and all have the same ways, shots and queries.
        samples: how many drawings of each class are used, the first ones; all if `None`.
        orientations: O, how many orientations of each class count as classes: 1, 4 or 8.
        shift: drawings are shifted at random by up to this many pixels in each direction.
        mirror: drawings are mirrored left-right at random; O must be 1 or 4.
        affine: drawings are rotated, zoomed and sheared at random.
    """

    def __init__(
        self,
        images: Tensor | MappedImages,
        counts: Tensor,
        classes: Tensor,
        *,
        split: str,
        ways: int | tuple[int, int],
        shots: int | tuple[int, int],
        queries: int | tuple[int, int],
        seed: int,
        groups: Tensor | None = None,
        tasks_per_batch: int | None = None,
        samples: int | None = None,
        orientations: int = 1,
        shift: int = 0,
        mirror: bool = False,
        affine: augmentation.Affine | None = None,
    ) -> None:
        self.images = images
        self.first = (counts.cumsum(dim=0) - counts).to(images.device)  # [C], rows of images
        drawable = counts if samples is None else counts.clamp(max=samples)
        self.counts = drawable.to(images.device)
        # [O*M], orientation * C + class
        classes = torch.cat([classes + o * len(counts) for o in range(orientations)])
        # Group after group, each in the order of its classes.
        groups = torch.zeros_like(classes) if groups is None else groups.repeat(orientations)
        self.classes = classes[groups.argsort(stable=True)].to(images.device)
        _, sizes = groups.unique(return_counts=True)
        self.group_sizes = sizes.to(images.device)  # [G]
        self.group_first = (sizes.cumsum(dim=0) - sizes).to(images.device)  # [G], places in classes
        self.orientations, self.shift, self.mirror = orientations, shift, mirror
        self.affine = affine if affine and any(affine) else None
        self.ways, self.shots, self.queries = ways, shots, queries
        self.tasks_per_batch = tasks_per_batch
        self._start = start(seed, SPLITS.index(split))
        self._state = self._start.to(images.device)

    def __call__(self, number: Tensor) -> Episode:
        """The episodes with these numbers.

        Args:
            number: ``[T]`` int64, each at least 0.

        Returns:
            A batch of T tasks on the device of the drawings.

        Raises:
            InputError: episodes of several batches, whose ways and shots may differ.
        """
        ways, shots, queries = self.sizes(number)
        number = number.to(self.images.device)
        episode_state = fold(self._state, number)
        # Mixed once more, because the state of a class below comes from the same one.
        classes_state = mix(episode_state)
        groups = torch.tensor(len(self.group_sizes), device=number.device)
        group = draw(mix(classes_state), groups, 1)[:, 0]  # [T]
        places = draw(classes_state, self.group_sizes[group], ways)
        classes = self.classes[self.group_first[group][:, None] + places]  # [T, N]
        # One [T, N] state for each kind of choice within a class, from the class itself and not
        # from its label: see the class docstring.
        class_state = fold(episode_state[:, None], classes)[..., None]
        kinds = torch.arange(7, device=number.device)
        order, mirror, dx, dy, *affine = fold(class_state, kinds).unbind(-1)
        source = classes % len(self.counts)
        drawn = draw(order, self.counts[source], shots + queries)  # [T, N, K+Q]
        # [T, N, K+Q, channels, H, W]
        pictures = self.images[self.first[source][..., None] + drawn]
        orientation = classes[..., None] // len(self.counts)
        if self.mirror:
            # Mirrored before it is turned, as in `orient`: mirrored afterwards, a symmetric drawing
            # turned by 90 degrees would equal one turned by 270, which is of another class.
            orientation = orientation + 4 * (fold(mirror[..., None], drawn) & 1)
        if self.mirror or self.orientations > 1:
            pictures = augmentation.orient(pictures, orientation[..., None])  # all channels alike
        if self.shift:
            by = [fold(s[..., None], drawn) % (2 * self.shift + 1) - self.shift for s in (dx, dy)]
            pictures = augmentation.shift(pictures, *(b[..., None] for b in by))
        pictures = pictures.to(torch.float32) / 255
        if self.affine:
            angle, size, slant = (uniform(fold(state[..., None], drawn)) for state in affine)
            pictures = self.affine(pictures, angle, size, slant)
        labels = torch.arange(ways, device=number.device).expand(len(number), -1)
        support, query = (
            Examples(part.flatten(1, 2), labels.repeat_interleave(part.shape[2], dim=1))
            for part in (pictures[:, :, :shots], pictures[:, :, shots:])
        )
        return Episode(support, query, number, about={"classes": classes})

    def sizes(self, number: Tensor) -> tuple[int, int, int]:
        """Ways, shots and queries of the batch that these episodes belong to.

        Raises:
            InputError: they belong to several batches, whose ways and shots may differ.
        """
        ranges = self.ways, self.shots, self.queries
        if all(isinstance(each, int) for each in ranges):
            return ranges  # type: ignore[return-value]
        assert self.tasks_per_batch is not None
        batches = (number.cpu() // self.tasks_per_batch).unique()
        if len(batches) != 1:
            raise InputError(
                f"episodes of {len(batches)} batches: their ways and shots may differ: ask for the "
                f"{self.tasks_per_batch} of one (data.tasks_per_batch), or for part of them"
            )
        # One state for ways, one for both shots and queries.
        states = fold(mix(fold(self._start, batches)), torch.arange(2))
        ways, shots, queries = (
            _within(each, state)
            for each, state in zip(ranges, (states[0], states[1], states[1]), strict=True)
        )
        return ways, shots, queries


def _within(number: int | tuple[int, int], state: Tensor) -> int:
    """A number from a range, all equally likely."""
    if isinstance(number, int):
        return number
    least, most = number
    return least + int(uniform(state) * (most - least + 1))
