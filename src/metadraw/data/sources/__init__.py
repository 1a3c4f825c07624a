"""Sources of pictures: one module each, with one function `load`.

Those of Quick, Draw! return ``uint8 [C, S, 28, 28]`` in the order of the requested classes, 0
background to 255 ink; `iconify` returns SVG. Each raises `InputError` if it cannot.
"""

from __future__ import annotations

import numpy as np

SIDE = 28
PIXELS = SIDE * SIDE


def choose_rows(rows: int, samples: int, seed: int, class_index: int) -> np.ndarray:
    """Choose drawings of a class.

    Fewer samples are a prefix of more, so runs with 20 and 100 per class share drawings.

    Args:
        rows: how many drawings the source has of the class.
        samples: how many to take, at most ``rows``.
        seed: from 0 to 2**32 - 1.
        class_index: position of the class among all classes.

    Returns:
        ``int64 [samples]``, row numbers without repeats.
    """
    return np.random.RandomState([seed, class_index]).permutation(rows)[:samples]
