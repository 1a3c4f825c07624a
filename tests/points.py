"""Commands that end at a chosen point of their run: exactly there, on a machine of any speed.

A point is a hook that Lightning calls, or a change of a file in the run folder: a run passes its
points in the same order everywhere. The program runs unchanged in its own process, which is killed,
stopped or out of disk space at the point; metadraw knows nothing of this.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import runpy
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HANGS = 3600  # seconds: nothing takes that long on any machine, unless it hangs
ROOT = Path(__file__).resolve().parents[1]
#: For every command: a user's setting would show tracebacks instead of one line.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}
ENVIRONMENT["OMP_NUM_THREADS"] = "1"
#: Each process is forked from one that has imported these; it imports metadraw itself.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["lightning.pytorch", "hydra", "matplotlib.figure", "torchmetrics", "aiohttp", "filelock"]
)
#: Where a file may be written before it is moved to the run folder: on another disk if there is
#: one, as /tmp often is.
TEMPORARY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        returncode: as of `subprocess.run`.
        output: what it printed.
        points: those that it passed, in order; none if it did not succeed.
    """

    returncode: int
    output: str
    points: tuple[str, ...]


# What may happen at a point.


def kill(point: str) -> None:
    """End immediately, as by SIGKILL; during a write, with only part of the file written."""
    if " is half written" in point:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _no_more_than(100)
    else:
        os.kill(os.getpid(), signal.SIGKILL)


def ctrl_c(point: str) -> None:
    """As if a user had pressed it."""
    signal.raise_signal(signal.SIGINT)


def terminate(point: str) -> None:
    """As Slurm sends it at a preemption."""
    signal.raise_signal(signal.SIGTERM)


def fill_the_disk(point: str) -> None:
    """A limit on file sizes, which fails in the same place as a full disk."""
    _no_more_than(1000)


def _no_more_than(size: int) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))


def end_at(
    points: Collection[str],
    happens: Callable[[str], None],
    command: list[str],
    folder: Path,
) -> Ended:
    """Run a command, in which something happens at each of the given points.

    Args:
        points: by name, see `Ended.points`; with none, the command runs to its end.
        happens: one of the functions above.
        command: Python, a program of the repository and its arguments.
        folder: of its run, or of its sweep.
    """
    with tempfile.TemporaryDirectory() as aside:
        printed, passed = Path(aside, "printed"), Path(aside, "passed")
        watched = (frozenset(points), happens, folder)
        process = CONTEXT.Process(target=_work, args=(watched, command, printed, passed))
        process.start()
        process.join(HANGS)
        if process.exitcode is None:
            process.kill()
            raise AssertionError(f"hangs: {command}\n{printed.read_text(encoding='utf-8')}")
        return Ended(
            process.exitcode,
            printed.read_text(encoding="utf-8", errors="replace"),
            tuple(json.loads(passed.read_text(encoding="utf-8"))) if passed.exists() else (),
        )


def _work(
    watched: tuple[frozenset[str], Callable[[str], None], Path],
    command: list[str],
    printed: Path,
    passed: Path,
) -> None:
    """Run the command as if Python had been started with it."""
    output = os.open(printed, os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.clear()
    os.environ.update(ENVIRONMENT)
    tempfile.tempdir = TEMPORARY
    # Even if the tests themselves run in the background, which ignores Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(ROOT)
    _, program, *arguments = command
    sys.argv, sys.path[:0] = [program, *arguments], [str(ROOT)]
    points, happens, folder = watched
    found: list[str] = []

    def passes(point: str) -> None:
        found.append(point)
        if point in points:
            happens(point)

    _watch(passes, folder)
    runpy.run_path(program, run_name="__main__")
    passed.write_text(json.dumps(found), encoding="utf-8")


def _watch(passes: Callable[[str], None], folder: Path) -> None:
    """Call ``passes`` at every point of this process, in all runs of a sweep."""
    import lightning as L
    import torch

    from metadraw.training.learner import MetaLearner

    torch.set_num_threads(1)
    run, where, seen = 0, "", Counter[str]()

    def passing(what: str) -> None:
        point = f"run {run}{where}: {what}"
        seen[point] += 1
        passes(f"{point} ({seen[point]})")

    def hook(name: str) -> Callable[..., None]:
        def called(_: Any, trainer: L.Trainer, *__: Any) -> None:
            nonlocal run, where
            if name == "on_fit_start":
                run, where = run + 1, ""
            elif name == "on_train_epoch_start":
                where = f", epoch {trainer.current_epoch + 1}"
            elif name == "on_test_start":
                where = ", test"
            passing(name)

        return called

    hooks = {name: hook(name) for name in dir(L.Callback) if name.startswith("on_")}
    watcher = type("Watcher", (L.Callback,), hooks)()
    MetaLearner.configure_callbacks = lambda _: [watcher]  # type: ignore[method-assign]

    def changed(path: Any, *what: str) -> None:
        path = Path(os.fsdecode(path))
        if path.is_relative_to(folder):
            name = str(path.relative_to(folder))
        elif path.parent == Path(TEMPORARY):
            name = "a temporary file"
        else:
            return
        for each in what:
            passing(f"{name} {each}")

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, int) and flags & (os.O_WRONLY | os.O_RDWR):
                changed(path, "is opened", "is half written")
        elif event == "os.rename":
            changed(arguments[1], "is put in place")

    sys.addaudithook(audit)
