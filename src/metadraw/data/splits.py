"""Which classes are for meta-training, meta-validation and meta-test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from itertools import combinations
from pathlib import Path

import numpy as np

from metadraw.errors import InputError

#: Class names in a config: a list, or the path of a text file with one name per line.
Names = Sequence[str] | str | Path


def split_classes(classes: Sequence[str], seed: int) -> dict[str, list[str]]:
    """Split classes 60 / 20 / 20 %: all 345 of Quick, Draw! into 207 / 69 / 69.

    Seed 123 gives the split of Cloudera's report FF15 (its code shuffles the class names in the
    order of their file names with NumPy's legacy generator, which is frozen for good).

    Args:
        classes: class names, sorted by file name.
        seed: another seed gives another split.

    Returns:
        ``{"train": [...], "val": [...], "test": [...]}``, disjoint and together all classes.
    """
    shuffled = list(classes)
    np.random.RandomState(seed).shuffle(shuffled)
    first, second = round(0.6 * len(shuffled)), round(0.8 * len(shuffled))
    return {"train": shuffled[:first], "val": shuffled[first:second], "test": shuffled[second:]}


def group_of(name: str) -> str:
    """The group of a class: what precedes the last ``/`` of its name, empty if nothing does."""
    return name.rpartition("/")[0]


def split_groups(classes: Sequence[str], seed: int) -> dict[str, list[str]]:
    """Split whole groups of classes 60 / 20 / 20 %, by their number.

    Args:
        classes: class names, such as ``Greek/character01``.
        seed: another seed gives another split.

    Returns:
        The classes of each split in the order of ``classes``.
    """
    groups = split_classes(list(dict.fromkeys(map(group_of, classes))), seed)
    return {
        split: [name for name in classes if group_of(name) in set(chosen)]
        for split, chosen in groups.items()
    }


def named_splits(splits: Mapping[str, Names], known: Sequence[str]) -> dict[str, list[str]]:
    """The splits that a user names; classes in none of them are left out.

    Args:
        splits: the names of each split.
        known: all class names of the data.

    Returns:
        The names of each split in the order of ``known``.

    Raises:
        InputError: wrong names, see `chosen_classes`, or names in two splits.
    """
    chosen = {split: chosen_classes(f"{split}_classes", splits[split], known) for split in splits}
    for one, other in combinations(chosen, 2):
        shared = [name for name in chosen[one] if name in set(chosen[other])]
        if shared:
            raise InputError(
                f"data.{one}_classes and data.{other}_classes share {_first(shared)}: a class may "
                "be in one split only"
            )
    return chosen


def chosen_classes(key: str, names: Names, known: Sequence[str]) -> list[str]:
    """The classes that a user names.

    Args:
        key: the key of ``data``, for errors.
        names: which classes, in any order.
        known: all class names of the data.

    Returns:
        The names in the order of ``known``: neither their order nor the choice of list or file
        changes an episode.

    Raises:
        InputError: a file that cannot be read, no names, or names that are unknown or repeated.
    """
    setting = f"data.{key}"
    if isinstance(names, (str, Path)):
        setting += f"={names}"
        try:
            lines = Path(names).expanduser().read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            raise InputError(
                f"{setting}: not a readable text file; expected [NAME,NAME,...] or the path "
                "of a file with one name per line"
            ) from error
        names = [line.strip() for line in lines if line.strip()]
    elif not isinstance(names, Sequence):
        raise InputError(f"{setting}={names}: expected [NAME,NAME,...] or the path of a file")
    names = [str(name) for name in names]  # a class called 7 is a number in a config
    if not names:
        raise InputError(f"{setting}: it names no class; expected at least one, or null")
    there = set(known)
    unknown = [name for name in names if name not in there]
    if unknown:
        close = get_close_matches(unknown[0], known, n=1, cutoff=0)
        hint = f"; the closest name to {unknown[0]} is {close[0]}" if close else ""
        raise InputError(f"{setting}: the data have no {_first(unknown)}{hint}")
    repeated = [name for place, name in enumerate(names) if name in names[:place]]
    if repeated:
        raise InputError(f"{setting}: {_first(repeated)} repeated; expected each name once")
    given = set(names)
    return [name for name in known if name in given]


def _first(names: Sequence[str]) -> str:
    """The first three of some names."""
    names = list(dict.fromkeys(names))
    return f"{', '.join(names[:3])}{' ...' * (len(names) > 3)}"
