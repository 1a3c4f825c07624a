"""Which classes are for meta-training, meta-validation and meta-test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def split_classes(classes: Sequence[str], seed: int) -> dict[str, list[str]]:
    """Split classes 60 / 20 / 20 %: all 345 of Quick, Draw! into 207 / 69 / 69.

    Seed 123 gives the split of Cloudera's report FF15 (its code shuffles the class names in the
    order of their file names with NumPy's legacy generator, which is frozen for good).

    Args:
        classes: class names, sorted by file name.
        seed: another seed, another split.

    Returns:
        ``{"train": [...], "val": [...], "test": [...]}``, disjoint and together all classes.
    """
    shuffled = list(classes)
    np.random.RandomState(seed).shuffle(shuffled)
    first, second = round(0.6 * len(shuffled)), round(0.8 * len(shuffled))
    return {"train": shuffled[:first], "val": shuffled[first:second], "test": shuffled[second:]}
