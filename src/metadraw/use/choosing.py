"""Which pictures of a pool to label next, and of which class: active few-shot learning.

Every strategy takes what an adapted classifier knows of a pool, and returns positions in it, the
most useful one first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from metadraw.data import hashing
from metadraw.errors import InputError, check_seed, check_whole
from metadraw.models.head import one_hot

#: How many examples of each class `weakest_class` holds out, one at a time.
_ROUNDS = 3


class Pool(NamedTuple):
    """What a classifier of N classes knows of P unlabelled pictures and of its B examples."""

    chances: Tensor  # [P, N], the probabilities of the classes
    features: Tensor  # [P, F]
    known: Tensor  # [B, F], the examples' features
    seed: int = 0  # of the strategies that choose at random


def choose(pool: Pool, n: int, strategy: str) -> list[int]:
    """The pictures to label next.

    Args:
        pool: P pictures.
        n: how many to choose; P if it is larger.
        strategy: one of `STRATEGIES`.

    Returns:
        Positions in the pool, without repeats, the most useful one first.

    Raises:
        InputError: see `check`.
    """
    check(n, strategy, pool.seed)
    # Centred and of length 1, so that features of any network are compared by their angles (Wang
    # et al. 2019, "SimpleShot", section 3).
    every = torch.cat([pool.known, pool.features])
    known, features = F.normalize(every - every.mean(dim=0), dim=1).split(
        [len(pool.known), len(pool.features)]
    )
    n = min(n, len(features))
    return STRATEGIES[strategy](pool._replace(known=known, features=features), n)


def check(n: int, strategy: str, seed: int) -> None:
    """Check the settings of `choose`.

    Raises:
        InputError: an unknown strategy, or a number that is not whole or is too small.
    """
    check_whole("suggest", n)
    if strategy not in STRATEGIES:
        raise InputError(f"strategy={strategy}: must be one of {', '.join(STRATEGIES)}")
    check_seed("seed", seed)


def random(pool: Pool, n: int) -> list[int]:
    """Any pictures, all equally likely."""
    among = torch.tensor(len(pool.features))
    return hashing.draw(hashing.start(pool.seed), among, n).tolist()


def entropy(pool: Pool, n: int) -> list[int]:
    """The least certain pictures, by the entropy of their probabilities.

    Settles 2009 ("Active Learning Literature Survey", section 3.1).
    """
    return _highest(torch.special.entr(pool.chances).sum(dim=1), n)


def margin(pool: Pool, n: int) -> list[int]:
    """Those whose two most probable classes are nearly equally probable.

    Scheffer et al. 2001 ("Active Hidden Markov Models for Information Extraction").
    """
    first, second = pool.chances.topk(2, dim=1).values.unbind(dim=1)
    return _highest(second - first, n)


def k_center(pool: Pool, n: int) -> list[int]:
    """The most diverse pictures: each is the farthest from all examples and choices so far.

    Sener and Savarese 2018 ("Active Learning for Convolutional Neural Networks: A Core-Set
    Approach"), algorithm 1.
    """
    nearest = torch.cdist(pool.features, pool.known).amin(dim=1)

    def take(chosen: int) -> None:
        distance = (pool.features - pool.features[chosen]).norm(dim=1)
        torch.minimum(nearest, distance, out=nearest)

    return _greedy(lambda: nearest, take, n)


def facility_location(pool: Pool, n: int) -> list[int]:
    """The most representative pictures: with them, every picture is like an example.

    Each choice raises the most the sum, over the pool, of the similarity to the most similar
    example or choice (Wei, Iyer and Bilmes 2015, "Submodularity in Data Subset Selection and Active
    Learning"). The greedy order is within 1 - 1 / e of the best sum.
    """
    similar = pool.features @ pool.features.T  # [P, P]
    highest = (pool.features @ pool.known.T).amax(dim=1)

    def take(chosen: int) -> None:
        torch.maximum(highest, similar[chosen], out=highest)

    return _greedy(lambda: (similar - highest).clamp(min=0).sum(dim=1), take, n)


def badge(pool: Pool, n: int) -> list[int]:
    """Pictures whose gradients in the last layer are long and diverse.

    Ash et al. 2020 ("Deep Batch Active Learning by Diverse, Uncertain Gradient Lower Bounds"),
    algorithm 1: the gradient of the loss if the most probable class were right (equation 1), of
    which the k-means++ rule draws some. The first is the longest one.
    """
    guess = one_hot(pool.chances.argmax(dim=1), pool.chances.shape[1])
    wrong = pool.chances - guess.to(pool.chances.dtype)
    gradients = (wrong[:, :, None] * pool.features[:, None]).flatten(1)  # [P, N*F]
    chosen = [int(gradients.norm(dim=1).argmax())]
    state, left = hashing.start(pool.seed), torch.ones(len(gradients), dtype=torch.bool)
    nearest = torch.full([len(gradients)], torch.inf)
    for place in range(1, n):
        left[chosen[-1]] = False
        nearest = nearest.minimum((gradients - gradients[chosen[-1]]).square().sum(dim=1))
        weight = nearest.double() * left
        # Of pictures that all equal chosen ones, any.
        weight = (weight if weight.sum() > 0 else left.double()).cumsum(dim=0)
        at = hashing.uniform(hashing.fold(state, torch.tensor(place))) * weight[-1]
        chosen.append(int(torch.searchsorted(weight, at, right=True)))
    return chosen


STRATEGIES: Mapping[str, Callable[[Pool, int], list[int]]] = {
    each.__name__: each for each in (facility_location, k_center, badge, margin, entropy, random)
}


def _highest(score: Tensor, n: int) -> list[int]:
    return score.argsort(descending=True, stable=True)[:n].tolist()


def _greedy(gain: Callable[[], Tensor], take: Callable[[int], None], n: int) -> list[int]:
    """The n positions that ``gain`` ``[P]`` is highest for, one after the other."""
    chosen: list[int] = []
    for _ in range(n):
        left = gain().clone()
        left[chosen] = -torch.inf
        chosen.append(int(left.argmax()))
        take(chosen[-1])
    return chosen


def weakest_class(held_out: Callable[[Tensor], Tensor], labels: Tensor, ways: int) -> int:
    """The class that another example would help most: of those with the fewest, the weakest.

    It is the one whose examples are least probable to be of it; where each class has several, they
    are held out, one of each class at a time.

    Args:
        held_out: maps the examples to learn from, ``[B]`` bool, to the probabilities of the classes
            for all examples, ``[B, N]``.
        labels: ``[B]`` int64, at least one of each class.
        ways: N.
    """
    members = one_hot(labels, ways)  # [B, N]
    count = members.sum(dim=0)
    fewest = int(count.min())
    place = (members.cumsum(dim=0) * members).sum(dim=1) - 1  # among the examples of its class
    own = torch.zeros(ways)
    for out in range(min(_ROUNDS, fewest)):
        tested = place == out
        kept = ~tested if fewest > 1 else torch.ones_like(tested)
        own[labels[tested]] += held_out(kept)[tested, labels[tested]]
    return int(own.where(count == fewest, torch.inf).argmin())
