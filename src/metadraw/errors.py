"""What goes wrong because of what was given, told in one line."""


class InputError(ValueError):
    """Something the user gave is wrong, or something needed is missing.

    ``str(error)`` is one line: what is wrong, what was given, what would be right.
    The command line prints that line alone and exits with status 1.
    """


class DivergedError(RuntimeError):
    """Meta-training met a loss that is not finite; one line says where and what is kept."""
