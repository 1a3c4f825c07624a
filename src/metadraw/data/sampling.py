"""Episode i of a split as a pure function of (seed, split, i), vectorised on any device.

A stateful generator would make an episode depend on what was drawn before it, and CPU and GPU
generators differ. Here every candidate gets a key by hashing (seed, split, episode, candidate)
with integer arithmetic, which is the same everywhere, and the smallest keys are drawn.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metadraw.data import augmentation
from metadraw.data.episode import Episode

#: ``all``: every class of the data, for data that nothing was trained on. The last one: a split's
#: place is part of the hash.
SPLITS = ("train", "val", "test", "all")


def _signed(value: int) -> int:
    """An unsigned 64-bit constant as the int64 with the same bits."""
    return value - (1 << 64) if value >> 63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
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
        images: ``[C, S, H, W]`` or ``[C, S, channels, H, W]`` uint8, all classes of the data.
        classes: ``[M]`` int64, the classes of this split.
        split: one of `SPLITS`: part of the hash, so splits never share a stream.
        ways: N, classes a task, at most M.
        shots: K, support drawings a class.
        queries: Q, query drawings a class; K + Q at most S.
        seed: another seed, other episodes.
        orientations: O, in how many orientations each class is a class of its own: 1, 4 or 8.
        shift: each drawing is moved at random by up to so many pixels in each direction.
        mirror: each drawing is mirrored left-right or not at random; O is 1 or 4 then.
    """

    def __init__(
        self,
        images: Tensor,
        classes: Tensor,
        *,
        split: str,
        ways: int,
        shots: int,
        queries: int,
        seed: int,
        orientations: int = 1,
        shift: int = 0,
        mirror: bool = False,
    ) -> None:
        self.images = images if images.ndim == 5 else images.unsqueeze(2)
        # [O*M], orientation * C + class
        classes = torch.cat([classes + o * len(images) for o in range(orientations)])
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
        # [T, O*M] keys; the first N in the order of their keys are a draw without replacement.
        episode_state = _fold(self._state, number)
        order = _fold(episode_state[:, None], self.classes).argsort(dim=1, stable=True)
        classes = self.classes[order[:, : self.ways]]  # [T, N]
        # One [T, N, 1] state for each kind of choice within a class, from the class itself and not
        # from its label: see the class docstring.
        class_state = _fold(episode_state[:, None], classes)[..., None, None]
        order, mirror, dx, dy = _fold(class_state, torch.arange(4, device=number.device)).unbind(-1)
        candidates = torch.arange(self.images.shape[1], device=number.device)
        drawn = _fold(order, candidates).argsort(dim=2, stable=True)  # [T, N, S]
        drawn = drawn[..., : self.shots + self.queries]  # [T, N, K+Q]
        # [T, N, K+Q, channels, H, W]
        pictures = self.images[classes[..., None] % len(self.images), drawn]
        orientation = classes[..., None] // len(self.images)
        if self.mirror:
            # Mirrored before it is turned, as `orient` does it: mirrored after, a symmetric drawing
            # turned by 90 degrees would be one turned by 270, which is of another class.
            orientation = orientation + 4 * (_fold(mirror, drawn) & 1)
        if self.mirror or self.orientations > 1:
            pictures = augmentation.orient(pictures, orientation[..., None])  # all channels alike
        if self.shift:
            by = [_fold(s, drawn) % (2 * self.shift + 1) - self.shift for s in (dx, dy)]
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
