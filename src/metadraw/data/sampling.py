"""Episode i of a split as a pure function of (seed, split, i), vectorised on any device.

Every choice is a hash, see `metadraw.data.hashing`. Drawing k of n takes the same time for any n.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from metadraw.data import augmentation
from metadraw.data.episode import Episode, Examples
from metadraw.data.hashing import draw, fold, mix, start, uniform
from metadraw.data.mapped import MappedImages
from metadraw.data.tasks import SPLITS, least, most
from metadraw.errors import InputError


class EpisodeSampler:
    """Draws episodes of one class split, on the device that holds the drawings.

    Classes are drawn without replacement within a task, drawings without replacement within a
    class, so support, query and unlabelled set are disjoint. More ways or shots with the same seed
    add to an episode and change nothing else in it: a 5-way episode's classes are the first five of
    the 10-way episode of the same index. With and without an unlabelled set it has the same support
    and query set.

    Each orientation of a class is a separate class: ``orientation * C + class`` has its drawings in
    that orientation, see `augmentation.orient`. How a drawing is shifted or mirrored depends on its
    index in the class, not on its position in the episode.

    Args:
        images: ``[D, channels, H, W]`` uint8, the D drawings of all C classes, one class after the
            other, in memory or mapped.
        counts: ``[C]`` int64, how many drawings each class has; their sum is D.
        classes: ``[M]`` int64, the classes of this split.
        groups: ``[M]`` int64, the group of each of them. A task draws one group, all equally
            likely, and then its classes within it; each group has at least N + D classes. All
            classes are one group if `None`.
        split: one of `SPLITS`: part of the hash, so splits never share a stream.
        ways: N, classes per task, at most M; or its minimum and maximum, between which it is drawn.
        shots: K, support drawings per class, likewise.
        queries: Q, query drawings per class, likewise; each class of this split has at least K + Q
            + U. With the same range as ``shots``, it is the same number, except if that is a mean.
        seed: another seed gives other episodes.
        vary: what numbers are drawn for, if they are ranges: a ``batch``; a ``task``, which is
            padded to the maxima with examples of weight 0; or the same with the ``class``, in which
            the number of shots is the mean of a task whose classes differ in theirs, see `sizes`.
        tasks_per_batch: T, if numbers are drawn for a batch: episodes ``b*T .. b*T+T-1`` are batch
            b, and all have the same ways, shots and queries.
        unlabelled: U, further drawings of each class, without labels.
        distractors: D, classes beside the task's that have U unlabelled drawings, too; N + D is at
            most M.
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
        vary: str = "batch",
        tasks_per_batch: int | None = None,
        unlabelled: int = 0,
        distractors: int = 0,
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
        ranges = not all(isinstance(each, int) for each in (ways, shots, queries))
        self.vary = vary if ranges else None
        self.tasks_per_batch = tasks_per_batch
        self.unlabelled, self.distractors = unlabelled, distractors
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
        group = torch.zeros_like(number)  # [T]
        if len(self.group_sizes) > 1:
            among = torch.tensor(len(self.group_sizes), device=number.device)
            group = draw(mix(classes_state), among, 1)[:, 0]
        places = draw(classes_state, self.group_sizes[group], ways + self.distractors)
        classes = self.classes[self.group_first[group][:, None] + places]  # [T, N+D]
        # One [T, N+D] state for each kind of choice within a class, from the class itself and not
        # from its label: see the class docstring.
        class_state = fold(episode_state[:, None], classes)[..., None]
        kinds = torch.arange(8, device=number.device)
        order, mirror, dx, dy, *affine, share = fold(class_state, kinds).unbind(-1)
        source = classes % len(self.counts)
        drawings = self.counts[source]
        drawn = draw(order, drawings, shots + queries + self.unlabelled)  # [T, N+D, K+Q+U]
        # [T, N+D, K+Q+U, channels, H, W]
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
        numbers = {}  # of each set's examples, by class
        if self.vary in ("task", "class"):
            numbers = self._within_tasks(episode_state, share[:, :ways], drawings[:, :ways])

        def examples(name: str, pictures: Tensor) -> Examples:
            labels = torch.arange(pictures.shape[1], device=number.device)
            labels = labels.where(labels < ways, -1).expand(len(number), -1)
            x, y = pictures.flatten(1, 2), labels.repeat_interleave(pictures.shape[2], dim=1)
            if not numbers:
                return Examples(x, y)
            of_class = F.pad(numbers[name], (0, pictures.shape[1] - ways), value=pictures.shape[2])
            there = torch.arange(pictures.shape[2], device=number.device) < of_class[..., None]
            own = (numbers["support"] > 0).sum(dim=1, keepdim=True).expand_as(y)
            return Examples(x, y, {"weight": there.flatten(1).float(), "ways": own})

        known, last = pictures[:, :ways], shots + queries
        support = examples("support", known[:, :, :shots])
        query = examples("query", known[:, :, shots:last])
        sets = {}
        if self.unlabelled:
            sets = {"unlabelled": examples("unlabelled", pictures[:, :, last:])}
        return Episode(support, query, number, sets, {"classes": classes[:, :ways]})

    def _within_tasks(self, state: Tensor, share: Tensor, drawings: Tensor) -> dict[str, Tensor]:
        """How many examples of each class belong to each task.

        Classes that differ in their shots follow Triantafillou et al. 2020 ("Meta-Dataset", section
        3 and the appendix on sampling), with the maximum of ``shots`` in place of 100, its minimum
        in place of 1, and no limit of the whole support set.

        Args:
            state: ``[T]``, hashes of the episodes.
            share: ``[T, N]``, hashes of their classes.
            drawings: ``[T, N]``, how many each class has in the data.

        Returns:
            ``[T, N]`` int64 by the name of a set, 0 for classes that a task does not have.
        """
        # Mixed twice: the classes are drawn from what is mixed once.
        ways, shots, queries = self._drawn(mix(mix(state)))
        place = torch.arange(share.shape[1], device=share.device)
        present = place < ways[:, None]
        of_class = shots[:, None].expand_as(share)
        if self.vary == "class":
            # A class's share of the support set, R_c: alpha is uniform in log 1/2 .. log 2.
            alpha = (2 * uniform(share) - 1) * math.log(2)
            size = alpha.exp() * drawings * present
            size = size / size.sum(dim=1, keepdim=True)
            fewest = least(self.shots)
            spare = ways * (shots - fewest)  # |S| - |C|
            of_class = fewest + (size * spare[:, None]).long()
            of_class = of_class.clamp(max=most(self.shots))
        numbers = {"support": of_class, "query": queries[:, None].expand_as(share)}
        numbers["unlabelled"] = torch.full_like(share, self.unlabelled)
        return {name: number * present for name, number in numbers.items()}

    def sizes(self, number: Tensor) -> tuple[int, int, int]:
        """Ways, shots and queries of the batch that these episodes belong to.

        If they are drawn for each task, their maxima, to which tasks are padded.

        Raises:
            InputError: they belong to several batches, whose ways and shots may differ.
        """
        if self.vary != "batch":
            return most(self.ways), most(self.shots), most(self.queries)
        assert self.tasks_per_batch is not None
        batches = (number.cpu() // self.tasks_per_batch).unique()
        if len(batches) != 1:
            raise InputError(
                f"episodes of {len(batches)} batches: their ways and shots may differ: ask for the "
                f"{self.tasks_per_batch} of one (data.tasks_per_batch), or for part of them"
            )
        ways, shots, queries = self._drawn(mix(fold(self._start, batches)))
        return int(ways), int(shots), int(queries)

    def _drawn(self, state: Tensor) -> list[Tensor]:
        """Ways, shots and queries, ``[B]`` int64 each, from hashes ``[B]``: all equally likely."""
        # One hash for ways, one for both shots and queries.
        first, second = fold(state[:, None], torch.arange(2, device=state.device)).unbind(-1)
        return [
            least(each) + (uniform(own) * (most(each) - least(each) + 1)).long()
            for each, own in ((self.ways, first), (self.shots, second), (self.queries, second))
        ]
