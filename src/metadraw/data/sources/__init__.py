"""Where Quick, Draw! drawings come from: one module a source, each with one function `load`.

Each ``load`` gives ``uint8 [C, S, 28, 28]`` in the order of the classes asked for, 0 background to
255 ink, and raises `InputError` where it cannot.
"""

from __future__ import annotations

import numpy as np

SIDE = 28
PIXELS = SIDE * SIDE


def choose_rows(rows: int, samples: int, seed: int, class_index: int) -> np.ndarray:
    """Which of a class's drawings are taken.

    Fewer samples are a prefix of more, so runs with 20 and with 100 a class share their drawings.

    Args:
        rows: how many drawings the source has of the class.
        samples: how many to take, at most ``rows``.
        seed: from 0 to 2**32 - 1.
        class_index: position of the class among all classes.

    Returns:
        ``int64 [samples]``, row numbers without repeats.
    """
    return np.random.RandomState([seed, class_index]).permutation(rows)[:samples]
