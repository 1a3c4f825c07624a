"""How the command line reports what went wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from metadraw.errors import DivergedError, InputError

_SHOW_ALL = os.environ.get("HYDRA_FULL_ERROR") == "1"


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What the user can mend is told in one line, with exit status 1.

    It goes around a job, where Hydra would add a line of its own, and around Hydra itself, which
    would print several lines. With ``HYDRA_FULL_ERROR=1`` everything is shown.
    """
    if _SHOW_ALL:
        yield
        return
    # Makes Hydra raise instead of printing and exiting itself.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        sys.exit(f"error: {line}")
    except KeyboardInterrupt:
        sys.exit("interrupted")


def explain(error: BaseException) -> str | None:
    """One line for an error that the user can mend; none for a fault of the program."""
    known: BaseException | None = None
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (InputError, DivergedError)):
            return str(cause)
        if isinstance(cause, (HydraException, OmegaConfBaseException)):
            known = known if known and str(known) else cause
        cause = cause.__cause__ or cause.__context__
    if known is None:
        return None
    # Hydra ends with a list of the folders that it searched, which is no help here.
    text = str(known).split("Config search path:")[0]
    return " ".join(text.split()) or type(known).__name__
