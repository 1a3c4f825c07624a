"""The repository's commands in child processes, which may strike themselves at a chosen point.

No clock is involved: a child is hit at the n-th step or the n-th write of a file, on any machine.
What it runs knows nothing of that. Children are forked from a server that has imported PyTorch
once, so that a command costs what it does and not seconds of imports.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

#: Of the commands that tests start.
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
ENVIRONMENT["OMP_NUM_THREADS"] = "1"
#: Seconds after which whatever a test waits for hangs: no machine is that slow.
HANGS = 3600
#: Children start from here. Nothing of metadraw: it looks at the environment when it is imported.
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(
    [*(__name__, "pytest", "torch._dynamo", "lightning", "torchmetrics", "hydra", "dotenv")]
    + ["matplotlib.pyplot", "tqdm", "fsspec.implementations.http", "filelock", "PIL.Image"]
)


@dataclass(frozen=True)
class Strike:
    """What hits a run, and where.

    Attributes:
        at: a method of the learner, just before it is called, ``write FILE``, just before the
            file's first byte is written, or ``replace FILE``, just before it takes the place of
            the one before.
        do: what happens there.
        nth: the how many-th time, from 1.
    """

    at: str
    do: Callable[[], None]
    nth: int = 1

    def arm(self) -> None:
        """Lie in wait, in this process."""
        left = self.nth

        def reached() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                self.do()

        verb, _, file = self.at.partition(" ")
        if file:
            sys.addaudithook(partial(_watch, verb, file, reached))
        else:
            from metadraw.learner import MetaLearner

            method = getattr(MetaLearner, self.at)

            def struck(*args: object, **kwargs: object) -> object:
                reached()
                return method(*args, **kwargs)

            setattr(MetaLearner, self.at, struck)


def _watch(
    verb: str, file: str, reached: Callable[[], None], event: str, args: tuple[object, ...]
) -> None:
    """Python tells its audit hooks of each file that it opens or renames, before it does."""
    if event == "open" and verb == "write" and "w" in str(args[1]):
        path = args[0]
    elif event == "os.rename" and verb == "replace":
        path = args[1]
    else:
        return
    if Path(str(path)).name.removesuffix(".part") == file:
        reached()


def send(number: int) -> Callable[[], None]:
    """Send this signal: SIGKILL, Ctrl-C, or a scheduler's SIGTERM."""
    return partial(_send, number)


def _send(number: int) -> None:
    os.kill(os.getpid(), number)


def cut_off() -> None:
    """Let the kernel end the process in the middle of the file: after its first 100 bytes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    no_room()


def no_room(size: int = 100) -> None:
    """A limit on file sizes in bytes, which fails in the same place as a full disk does."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def run(command: Sequence[str], strike: Strike | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``[python, program, *arguments]`` as `subprocess.run` does.

    Returns:
        The finished process; a negative code is the signal that ended it.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = (list(map(str, command[1:])), strike, folder)
        process = FORKSERVER.Process(target=_child, args=work)
        process.start()
        process.join(HANGS)
        code = process.exitcode
        if code is None:
            process.kill()
            raise TimeoutError(f"hangs: {command}")
        out, err = ((Path(folder) / name).read_text(encoding="utf-8") for name in _STREAMS)
    return subprocess.CompletedProcess(command, code, out, err)


_STREAMS = ("stdout", "stderr")


def _child(command: list[str], strike: Strike | None, folder: str) -> None:
    for number, name in enumerate(_STREAMS, 1):
        stream = os.open(Path(folder) / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(stream, number)
    os.environ.clear()
    os.environ.update(ENVIRONMENT)
    torch.set_num_threads(1)
    # As in a terminal's foreground, also where the tests run in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    program = Path(command[0])
    os.chdir(program.parent)
    sys.argv[:] = command
    sys.path.insert(0, str(program.parent))
    if strike:
        strike.arm()
    runpy.run_path(str(program), run_name="__main__")
