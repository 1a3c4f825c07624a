"""The report's twelve experiments in pieces, several at once, on any machine; some of them twice.

python benchmarks/report_sweep.py SWEEP --jobs 2 --minutes 120
python benchmarks/report_sweep.py SWEEP --jobs 6 --minutes 12 trainer=gpu learner.cuda_graph=true

Runs in the folder SWEEP continue from what is committed in results/report. When the time is over,
or after Ctrl-C, results go to results/report/runs, and runs that are not finished to
results/report/unfinished, with the checkpoints from which the same command continues elsewhere. An
epoch that is not finished is lost. Processes share a GPU best under NVIDIA's MPS
(`nvidia-cuda-mps-control -d`). Then

python report.py SWEEP --rows experiment data.ways --column data.shots --to results/report
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from studies import ROOT, SETTINGS, select  # beside this file

from metadraw.command.cli import one_line_errors
from metadraw.command.names import name_of
from metadraw.results.published import EXPERIMENTS

KEPT = ROOT / "results" / "report"
FILES = ("config.yaml", ".hydra/overrides.yaml", "metrics.csv")
FINISHED = ("results.json", "tasks.csv")
UNFINISHED = ("checkpoints/last.ckpt", "checkpoints/best.ckpt")


def settings(experiment: str, ways: int, shots: int, *more: str) -> list[str]:
    """The overrides of one of the report's experiments; `name_of` them names its folder."""
    return [
        f"experiment={experiment}",
        f"data.ways={ways}",
        f"data.shots={shots}",
        "data.source=npm",
        *more,
    ]


_CELLS = [(name, *each) for name in reversed(EXPERIMENTS.values()) for each in SETTINGS]
#: From the cheapest; then those that take less than two hours of one core, with another seed.
RUNS = [settings(*cell) for cell in _CELLS]
RUNS += [settings(*cell, "seed=1") for cell in _CELLS if cell[-1] == 1]


def restore(sweep: Path, names: Iterable[str]) -> None:
    """Copy the kept runs of these names that a sweep's folder lacks, in this order.

    Their files are as old as their copy, so report.py shows them in the order of the names.
    """
    for name in names:
        for folder in KEPT.glob(f"*/{name}/"):
            if not (sweep / name).exists():
                shutil.copytree(folder, sweep / name, copy_function=shutil.copyfile)


def go_on(
    sweep: Path, runs: list[list[str]], jobs: int, over: Callable[[], bool], more: list[str]
) -> None:
    """Continue runs until they are finished or the time is over.

    Args:
        sweep: the folder of their folders.
        runs: their overrides.
        jobs: processes at once.
        over: whether the time is.
        more: overrides for all.
    """
    # A script's background job ignores it, and so would the runs, which are stopped by it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    waiting = [run for run in runs if not (sweep / name_of(run) / "results.json").is_file()]
    running: dict[Path, subprocess.Popen[bytes]] = {}
    with suppress(KeyboardInterrupt):
        while (waiting or running) and not over():
            for folder, process in running.items():
                if process.poll():
                    print(f"failed: {folder}.log says why", flush=True)
            running = {key: each for key, each in running.items() if each.returncode is None}
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                folder = sweep / name_of(run)
                running[folder] = start([*run, *more, f"hydra.run.dir={folder}"], folder, threads)
                print(" ".join(run), flush=True)
            time.sleep(1)
    for process in running.values():
        process.send_signal(signal.SIGINT)
    for process in running.values():
        process.wait()


def start(overrides: list[str], folder: Path, threads: int) -> subprocess.Popen[bytes]:
    """A run of train.py, which writes to a log beside its folder."""
    with Path(f"{folder}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, ROOT / "train.py", *overrides],
            stdout=log,
            stderr=log,
            env={"OMP_NUM_THREADS": str(threads), **os.environ},
            # Ctrl-C would reach it twice, and a run does not wait for the second.
            start_new_session=True,
        )


def keep(sweep: Path, names: Iterable[str]) -> None:
    """Copy a sweep's runs of these names that have at least one epoch into results/report."""
    for run in [sweep / name for name in names if (sweep / name / "metrics.csv").is_file()]:
        finished = (run / "results.json").is_file()
        shutil.rmtree(KEPT / "unfinished" / run.name, ignore_errors=True)
        to = KEPT / ("runs" if finished else "unfinished") / run.name
        for name in (*FILES, *(FINISHED if finished else UNFINISHED)):
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(run / name, to / name)


def main() -> None:
    """Continue the sweep, and keep its results."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", type=Path, help="the folder of the runs")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="until they stop")
    parser.add_argument("--only", default="", help="runs whose folder names contain this")
    parser.add_argument("overrides", nargs="*", help="for all runs, e.g. trainer=gpu")
    given = parser.parse_intermixed_args()
    # Only those that go on: others may be further on in another sweep, on another machine.
    runs = select(RUNS, given.only, name_of)
    sweep = given.sweep.resolve()
    sweep.mkdir(parents=True, exist_ok=True)
    names = [name_of(run) for run in runs]
    restore(sweep, names)
    end = time.monotonic() + 60 * given.minutes
    go_on(sweep, runs, given.jobs, lambda: time.monotonic() > end, given.overrides)
    keep(sweep, names)


if __name__ == "__main__":
    with one_line_errors():
        main()
