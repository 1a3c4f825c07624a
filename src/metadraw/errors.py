"""Errors that are reported in one line."""


class InputError(ValueError):
    """Something the user gave is wrong, or something needed is missing.

    ``str(error)`` is one line: what is wrong, what was given, what was expected.
    The command line prints that line alone and exits with status 1.
    """


class DivergedError(RuntimeError):
    """Meta-training reached a non-finite loss; one line says where, and what was saved."""
