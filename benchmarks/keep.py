"""Keeps the results so far of a sweep of the report's experiments in results/report.

python benchmarks/keep.py SWEEP

A finished run's results go to results/report/runs; an unfinished run goes to
results/report/unfinished, with the checkpoints from which it resumes. On another machine

cp -r results/report/runs/. results/report/unfinished/. SWEEP

and the sweep's own command, with hydra.sweep.dir=SWEEP, resume the sweep: finished runs are not
repeated.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

KEPT = Path(__file__).resolve().parents[1] / "results" / "report"
FILES = ("config.yaml", ".hydra/overrides.yaml", "metrics.csv")
FINISHED = ("results.json", "tasks.csv")
UNFINISHED = ("checkpoints/last.ckpt", "checkpoints/best.ckpt")


def keep(sweep: Path) -> None:
    """Copy the runs of a sweep that have finished at least one epoch.

    Args:
        sweep: its folder.
    """
    for run in sorted(path.parent for path in sweep.glob("*/metrics.csv")):
        finished = (run / "results.json").is_file()
        shutil.rmtree(KEPT / "unfinished" / run.name, ignore_errors=True)
        to = KEPT / ("runs" if finished else "unfinished") / run.name
        for name in (*FILES, *(FINISHED if finished else UNFINISHED)):
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(run / name, to / name)


if __name__ == "__main__":
    keep(Path(sys.argv[1]))
