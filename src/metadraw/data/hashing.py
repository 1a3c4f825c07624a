"""Random choices as hashes in integer arithmetic, the same on every device.

A stateful generator would make a choice depend on what was drawn before it, and CPU and GPU
generators differ. Here every choice is a hash of what it is for: seed, split, episode, and what
is chosen.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """An unsigned 64-bit constant as the int64 with the same bits."""
    return value - (1 << 64) if value >> 63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_LARGEST = (1 << 63) - 1
_MULTIPLIERS = (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))


def mix(bits: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014, "Fast splittable PRNGs", figure 17)."""

    def xor_shift(x: Tensor, by: int) -> Tensor:
        # int64's >> copies the sign bit; the mask makes it a shift of unsigned bits.
        return x ^ ((x >> by) & ((1 << (64 - by)) - 1))

    bits = xor_shift(bits, 30) * _MULTIPLIERS[0]
    bits = xor_shift(bits, 27) * _MULTIPLIERS[1]
    return xor_shift(bits, 31)


def start(seed: int, *data: int) -> Tensor:
    """The hash of a seed followed by data, a scalar int64."""
    state = mix(torch.tensor(seed, dtype=torch.int64))
    for each in data:
        state = fold(state, torch.tensor(each))
    return state


def fold(state: Tensor, data: Tensor) -> Tensor:
    """The hash of everything in ``state`` followed by ``data``; int64, broadcast."""
    return mix(state + _GAMMA * (data + 1))


def draw(state: Tensor, among: Tensor, count: int) -> Tensor:
    """The first numbers of a random order of 0 to n-1, in time independent of n.

    Each draw picks one of the numbers that are left by its rank among them, so every order is
    equally likely and more draws only add to the result.

    Args:
        state: ``[...]`` int64, hashes, each with its own order.
        among: ``[...]`` int64, n for each state, at least ``count``.
        count: k, how many to draw.

    Returns:
        ``[..., k]`` int64, without repeats.
    """
    place = torch.arange(count, device=state.device)
    # The sign bit is dropped; the bias of the remainder is below n / 2**63.
    ranks = (fold(state[..., None], place) & _LARGEST) % (among[..., None] - place)
    drawn = in_order = ranks[..., :1]
    for i in range(1, count):
        rank = ranks[..., i : i + 1]
        # in_order - place: how many numbers are left below each one drawn.
        number = rank + (in_order - place[:i] <= rank).sum(dim=-1, keepdim=True)
        drawn = torch.cat([drawn, number], dim=-1)
        in_order = torch.cat([in_order, number], dim=-1).sort(dim=-1).values
    return drawn


def uniform(state: Tensor) -> Tensor:
    """Float64 numbers, uniform in [0, 1), from hashes of any shape."""
    return (state & _LARGEST).to(torch.float64) / 2.0**63


def normal(random: Tensor) -> Tensor:
    """Standard normal numbers ``[..., 2]`` of uniform ones ``[..., 2]`` (Box and Muller 1958)."""
    radius, angle = random.unbind(dim=-1)
    length, turn = (-2 * (1 - radius).log()).sqrt(), 2 * math.pi * angle
    return torch.stack([length * turn.cos(), length * turn.sin()], dim=-1)
