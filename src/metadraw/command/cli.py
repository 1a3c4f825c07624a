"""How the command line reports errors."""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from metadraw.command.keys import unknown
from metadraw.errors import DivergedError, InputError, is_out_of_memory

log = logging.getLogger(__name__)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNUSABLE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
    *(errno.ENAMETOOLONG, errno.ELOOP),
)
#: A class gives its base class an argument that the config also has.
_TWICE = re.compile(r"__init__\(\) got multiple values for keyword argument '(\w+)'")
#: What NumPy and PyTorch say of memory that they could not allocate.
_AMOUNT = re.compile(r"allocate ([\d.]+ \w+)")
_SHOW_ALL = os.environ.get("HYDRA_FULL_ERROR") == "1"


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Report errors that the user can fix in one line, with exit status 1.

    This wraps Hydra itself, which would print several lines, and, through `job_errors`, each job,
    where Hydra would add a line. With ``HYDRA_FULL_ERROR=1`` everything is shown.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # e.g. ± if the terminal's encoding lacks it
    if _SHOW_ALL:
        yield
        return
    # Makes Hydra raise instead of printing and exiting.
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


@contextmanager
def job_errors() -> Iterator[None]:
    """Like `one_line_errors`, but in a sweep the other jobs still run.

    The error is also written to ``error.txt`` in the run folder.
    """
    hydra = HydraConfig.get()
    path = Path(hydra.runtime.output_dir) / "error.txt"
    path.unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        line = explain(error) or f"{type(error).__name__}: {error}"
        path.write_text(f"{line}\n", encoding="utf-8")
        if hydra.mode is RunMode.MULTIRUN:
            # Hydra continues, and raises the first error when all jobs are done.
            log.error("error: %s", line)
            raise
        with one_line_errors():
            raise


def explain(error: BaseException) -> str | None:
    """One line for an error that the user can fix; `None` for a bug."""
    known: BaseException | None = None
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (InputError, DivergedError)):
            return str(cause)
        if isinstance(cause, OSError) and cause.errno in _NO_ROOM:
            return (
                f"there is no room to write ({cause.strerror}): earlier files are intact: free "
                "some space, and the same command in the same folder resumes the run"
            )
        if is_out_of_memory(cause):
            found = _AMOUNT.search(str(cause))
            more = f" for {found[1]} more" if found else ""
            return (
                f"there is not enough memory{more}: fewer or smaller tasks (data.tasks_per_batch, "
                "data.shots, data.queries) or a smaller network need less, as do "
                "learner.tasks_per_chunk=1 and learner.recompute_steps=true"
            )
        if isinstance(cause, OSError) and cause.filename and _is_unusable(cause):
            return (
                f"{cause.filename}: cannot be used ({cause.strerror}): choose another path "
                "(folders come from hydra.run.dir, hydra.sweep.dir, METADRAW_LOGS, METADRAW_CACHE)"
            )
        if isinstance(cause, TypeError) and (twice := _TWICE.search(str(cause))):
            return f"{twice[1]}: this choice has a value of its own for it: leave it out"
        if isinstance(cause, MissingMandatoryValue):
            return f"{cause.full_key} is missing: {cause.full_key}=... is needed"
        if isinstance(cause, (ConfigKeyError, ConfigAttributeError)) and cause.full_key:
            # Hydra would suggest adding it anyway.
            assert cause.parent_node is not None
            return str(unknown(cause.full_key, cause.parent_node._get_root()))
        if isinstance(cause, (HydraException, OmegaConfBaseException)) or (
            # Hydra's error for algorithm=3
            isinstance(cause, ValueError) and str(cause).startswith("Config group override")
        ):
            known = known if known and str(known) else cause
        cause = cause.__cause__ or cause.__context__
    if known is None:
        return None
    # Hydra ends with a list of the folders that it searched, which does not help here.
    text = str(known).split("Config search path:")[0]
    return " ".join(text.split()) or type(known).__name__


def _is_unusable(error: OSError) -> bool:
    """Whether the user must choose another path; a missing file may be a bug."""
    if error.errno == errno.ENOENT:  # as for a folder below /proc
        *_, last = traceback.extract_tb(error.__traceback__)
        return last.name in ("mkdir", "makedirs")
    return error.errno in _UNUSABLE
