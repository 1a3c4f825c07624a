"""All of Quick, Draw! on disk: how soon episodes come from it, and how much memory they take.

python benchmarks/whole.py

345 files of 39 GB in total are made in a temporary folder. They are sparse: they take no space, and
reading them needs no disk access, so only metadraw's own share is measured. The figures go to
benchmarks/results/whole.md.
"""

from __future__ import annotations

import platform
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import metadraw
from metadraw.command.cli import one_line_errors
from metadraw.data.drawings import QUICKDRAW_CLASSES

RESULT = Path(__file__).resolve().parent / "results" / "whole.md"
BYTES, PIXELS = 39 * 10**9, 784
TASKS, BATCHES = 25, 1000


def make_files(folder: Path) -> int:
    """Write the files, and return how many drawings they hold."""
    rows = BYTES // len(QUICKDRAW_CLASSES) // PIXELS
    for name in QUICKDRAW_CLASSES:
        with (folder / f"{name}.npy").open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (rows, PIXELS)}
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + rows * PIXELS)
    return rows * len(QUICKDRAW_CLASSES)


def memory() -> float:
    """The peak memory of this process in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Measure and write the figures."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        drawings = make_files(Path(name))
        given = ["data.source=path", f"data.path={name}", "data.samples_per_class=all"]
        start = time.perf_counter()
        data, _ = metadraw.build(metadraw.compose(*given))
        sampler = data.episodes("train")
        sampler(torch.arange(TASKS))
        began, at_first, times = time.perf_counter() - start, memory(), []
        for batch in range(1, BATCHES):
            start = time.perf_counter()
            sampler(torch.arange(batch * TASKS, (batch + 1) * TASKS))
            times.append(time.perf_counter() - start)
        at_last = memory()
    lines = [
        "# All of Quick, Draw!",
        "",
        f"`python benchmarks/whole.py`, one thread, {platform.machine()} CPU, torch "
        f"{torch.__version__}: `data.samples_per_class=all` on {drawings:,} drawings in "
        f"{len(QUICKDRAW_CLASSES)} sparse files of 39 GB.",
        "",
        "| from nothing to the first batch of 25 5-way 1-shot tasks, s | a batch, ms "
        f"| peak memory after the first batch, GB | after {BATCHES:,}, GB |",
        "| --- | --- | --- | --- |",
        f"| {began:.1f} | {1000 * statistics.median(times):.1f} | {at_first:.2f} | {at_last:.2f} |",
    ]
    RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(lines[-1])


if __name__ == "__main__":
    with one_line_errors():
        main()
