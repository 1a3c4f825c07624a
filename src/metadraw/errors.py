"""Errors that are reported in one line, and the checks of a value that all of them share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path


class InputError(ValueError):
    """Something the user gave is wrong, or something needed is missing.

    ``str(error)`` is one line: what is wrong, what was given, what was expected.
    The command line prints that line alone and exits with status 1.
    """


class DivergedError(RuntimeError):
    """Meta-training reached a non-finite loss; one line says where, and what was saved."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, NumPy or PyTorch, on any device, could not allocate memory."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"  # of PyTorch, whose import takes seconds
        or "can't allocate memory" in str(error)  # a mere RuntimeError on the CPU
    )


def is_number(value: object) -> bool:
    """Whether a config's value is a finite number, which ``true`` and ``half`` are not."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value)


def is_whole(value: object, least: int) -> bool:
    """Whether a config's value is a whole number, which ``true`` is not, that is not below this."""
    return type(value) is int and value >= least  # bool is an int, too


def check_whole(key: str, value: int, least: int = 1) -> int:
    """Return a config's value, if it is a whole number that is not below the least.

    Raises:
        InputError: it is not.
    """
    if not is_whole(value, least):
        raise InputError(f"{key}={value}: must be a whole number of at least {least}")
    return value


def to_path(key: str, value: object) -> Path:
    """Return a config's value as a path, with ``~`` expanded.

    Raises:
        InputError: it is `None`, a list or a mapping.
    """
    if type(value) is int or isinstance(value, (str, Path)):  # a folder may be called 2024
        return Path(str(value)).expanduser()
    raise InputError(f"{key}={value}: must be a path")


def check_url(key: str, value: str) -> str:
    """Return a config's value, if it begins with ``http://`` or ``https://``.

    Raises:
        InputError: it does not.
    """
    if not str(value).startswith(("http://", "https://")):
        raise InputError(f"{key}={value}: expected http://... or https://...")
    return value


def check_seed(key: str, value: int) -> int:
    """Return a config's value, if it is a whole number that NumPy and PyTorch take as a seed.

    Raises:
        InputError: it is not.
    """
    if type(value) is not int or not 0 <= value < 2**32:
        raise InputError(f"{key}={value}: must be a whole number from 0 to {2**32 - 1}")
    return value


def check_wholes(key: str, values: Sequence[int]) -> Sequence[int]:
    """Return a config's value, if it is a list of at least one whole number of at least 1.

    Raises:
        InputError: it is not.
    """
    listed = isinstance(values, Sequence) and not isinstance(values, str) and len(values) > 0
    if not listed or not all(is_whole(each, 1) for each in values):
        raise InputError(f"{key}={values}: must be a list of whole numbers of at least 1")
    return values


def check_positive(key: str, value: float) -> float:
    """Return a config's value, if it is a number above 0.

    Raises:
        InputError: it is not.
    """
    if not is_number(value) or not value > 0:
        raise InputError(f"{key}={value}: must be a number above 0")
    return value


def check_share(key: str, value: float) -> float:
    """Return a config's value, if it is a number in 0..1.

    Raises:
        InputError: it is not.
    """
    if not is_number(value) or not 0 <= value <= 1:
        raise InputError(f"{key}={value}: must be a number in 0..1")
    return value


def check_part(key: str, value: float) -> float:
    """Return a config's value, if it is a number of at least 0 and below 1.

    Raises:
        InputError: it is not.
    """
    if not is_number(value) or not 0 <= value < 1:
        raise InputError(f"{key}={value}: must be at least 0, below 1")
    return value


def check_switch(key: str, value: bool) -> bool:
    """Return a config's value, if it is true or false.

    Raises:
        InputError: it is neither.
    """
    if not isinstance(value, bool):
        raise InputError(f"{key}={value}: must be true or false")
    return value
