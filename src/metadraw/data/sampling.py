"""Episode i of a split as a pure function of (seed, split, i), vectorised on any device.

A stateful generator would make an episode depend on what was drawn before it, and CPU and GPU
generators differ. Here every choice is a hash of (seed, split, episode, what is chosen) in integer
arithmetic, which is the same everywhere. Drawing k of n takes the same time for any n.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metadraw.data import augmentation
from metadraw.data.episode import Episode
from metadraw.data.mapped import MappedImages

#: ``all``: every class of the data, for data that nothing was trained on. The last one: a split's
#: place is part of the hash.
SPLITS = ("train", "val", "test", "all")


def _signed(value: int) -> int:
    """An unsigned 64-bit constant as the int64 with the same bits."""
    return value - (1 << 64) if value >> 63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_LARGEST = (1 << 63) - 1
_MULTIPLIERS = (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))


def _mix(bits: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014, "Fast splittable PRNGs", figure 17)."""

    def xor_shift(x: Tensor, by: int) -> Tensor:
        # int64's >> copies the sign bit; the mask makes it a shift of unsigned bits.
        return x ^ ((x >> by) & ((1 << (64 - by)) - 1))

    bits = xor_shift(bits, 30) * _MULTIPLIERS[0]
    bits = xor_shift(bits, 27) * _MULTIPLIERS[1]
    return xor_shift(bits, 31)


def _fold(state: Tensor, data: Tensor) -> Tensor:
    """The hash of everything in ``state`` followed by ``data``; int64, broadcast."""
    return _mix(state + _GAMMA * (data + 1))


def draw(state: Tensor, among: Tensor, count: int) -> Tensor:
    """The first numbers of a random order of 0 to n-1, in a time that does not grow with n.

    Each draw picks one of the numbers that are left by its rank among them, so every order is
    equally likely and more draws only add to the result.

    Args:
        state: ``[...]`` int64, hashes: another one, another order.
        among: ``[...]`` int64, n for each state, at least ``count``.
        count: k, how many to draw.

    Returns:
        ``[..., k]`` int64, without repeats.
    """
    place = torch.arange(count, device=state.device)
    # The sign bit is dropped; the bias of the remainder is below n / 2**63.
    ranks = (_fold(state[..., None], place) & _LARGEST) % (among[..., None] - place)
    drawn = in_order = ranks[..., :1]
    for i in range(1, count):
        rank = ranks[..., i : i + 1]
        # in_order - place: how many numbers are left below each one drawn.
        number = rank + (in_order - place[:i] <= rank).sum(dim=-1, keepdim=True)
        drawn = torch.cat([drawn, number], dim=-1)
        in_order = torch.cat([in_order, number], dim=-1).sort(dim=-1).values
    return drawn


class EpisodeSampler:
    """Draws episodes of one class split, on the device that holds the drawings.

    Classes are drawn without replacement within a task, drawings without replacement within a
    class, so support and query are disjoint. More ways or shots with the same seed add to an
    episode and change nothing else in it: a 5-way episode's classes are the first five of the
    10-way episode of the same index.

    A class seen in several orientations is as many classes: ``orientation * C + class`` is the one
    whose drawings are all in that orientation, see `augmentation.orient`. How a drawing is moved or
    mirrored depends on its index in the class, not on its place in the episode.

    Args:
        images: ``[D, channels, H, W]`` uint8, the D drawings of all C classes, one class after the
            other, in memory or mapped.
        counts: ``[C]`` int64, how many drawings each class has; their sum is D.
        classes: ``[M]`` int64, the classes of this split.
        split: one of `SPLITS`: part of the hash, so splits never share a stream.
        ways: N, classes a task, at most M.
        shots: K, support drawings a class.
        queries: Q, query drawings a class; K + Q at most what each class of this split has.
        seed: another seed, other episodes.
        samples: only the first so many drawings of each class are drawn, all if None.
        orientations: O, in how many orientations each class is a class of its own: 1, 4 or 8.
        shift: each drawing is moved at random by up to so many pixels in each direction.
        mirror: each drawing is mirrored left-right or not at random; O is 1 or 4 then.
    """

    def __init__(
        self,
        images: Tensor | MappedImages,
        counts: Tensor,
        classes: Tensor,
        *,
        split: str,
        ways: int,
        shots: int,
        queries: int,
        seed: int,
        samples: int | None = None,
        orientations: int = 1,
        shift: int = 0,
        mirror: bool = False,
    ) -> None:
        self.images = images
        self.first = (counts.cumsum(dim=0) - counts).to(images.device)  # [C], rows of images
        drawable = counts if samples is None else counts.clamp(max=samples)
        self.counts = drawable.to(images.device)
        # [O*M], orientation * C + class
        classes = torch.cat([classes + o * len(counts) for o in range(orientations)])
        self.classes = classes.to(images.device)
        self.orientations, self.shift, self.mirror = orientations, shift, mirror
        self.ways, self.shots, self.queries = ways, shots, queries
        start = torch.tensor(seed, dtype=torch.int64, device=images.device)
        self._state = _fold(_mix(start), torch.tensor(SPLITS.index(split), device=images.device))

    def __call__(self, number: Tensor) -> Episode:
        """The episodes with these numbers.

        Args:
            number: ``[T]`` int64, each at least 0.

        Returns:
            A batch of T tasks on the device of the drawings.
        """
        number = number.to(self.images.device)
        episode_state = _fold(self._state, number)
        among = torch.tensor(len(self.classes), device=number.device)
        # Mixed once more: a class's own state below comes from the same one.
        classes = self.classes[draw(_mix(episode_state), among, self.ways)]  # [T, N]
        # One [T, N] state for each kind of choice within a class, from the class itself and not
        # from its label: see the class docstring.
        class_state = _fold(episode_state[:, None], classes)[..., None]
        order, mirror, dx, dy = _fold(class_state, torch.arange(4, device=number.device)).unbind(-1)
        source = classes % len(self.counts)
        drawn = draw(order, self.counts[source], self.shots + self.queries)  # [T, N, K+Q]
        # [T, N, K+Q, channels, H, W]
        pictures = self.images[self.first[source][..., None] + drawn]
        orientation = classes[..., None] // len(self.counts)
        if self.mirror:
            # Mirrored before it is turned, as `orient` does it: mirrored after, a symmetric drawing
            # turned by 90 degrees would be one turned by 270, which is of another class.
            orientation = orientation + 4 * (_fold(mirror[..., None], drawn) & 1)
        if self.mirror or self.orientations > 1:
            pictures = augmentation.orient(pictures, orientation[..., None])  # all channels alike
        if self.shift:
            by = [_fold(s[..., None], drawn) % (2 * self.shift + 1) - self.shift for s in (dx, dy)]
            pictures = augmentation.shift(pictures, *(b[..., None] for b in by))
        pictures = pictures.to(torch.float32) / 255
        labels = torch.arange(self.ways, device=number.device).expand(len(number), -1)
        return Episode(
            support_x=pictures[:, :, : self.shots].flatten(1, 2),
            support_y=labels.repeat_interleave(self.shots, dim=1),
            query_x=pictures[:, :, self.shots :].flatten(1, 2),
            query_y=labels.repeat_interleave(self.queries, dim=1),
            classes=classes,
            number=number,
        )
