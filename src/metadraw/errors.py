"""Errors that are reported in one line, and the check of a number that they share."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave is wrong, or something needed is missing.

    ``str(error)`` is one line: what is wrong, what was given, what was expected.
    The command line prints that line alone and exits with status 1.
    """


class DivergedError(RuntimeError):
    """Meta-training reached a non-finite loss; one line says where, and what was saved."""


def is_number(value: object) -> bool:
    """Whether a config's value is a number, which ``true`` and ``half`` are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
