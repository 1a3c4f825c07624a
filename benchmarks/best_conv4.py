"""The best recipe for the report's network against the report's own, on the same tasks.

python train.py experiment=best_conv4 data.source=npm trainer=cpu trainer.precision=bf16-mixed
python benchmarks/best_conv4.py RUN/checkpoints/best.ckpt

RUN is the first command's. The report's recipe is that of the runs in results/report, with 100
drawings a class. Tests are in logs/best_conv4, the table in benchmarks/results/best_conv4.md.
"""

from __future__ import annotations

import argparse
from hashlib import sha256
from pathlib import Path

import torch
from report_sweep import KEPT, settings  # beside this file
from studies import (
    RESULTS,
    ROOT,
    SETTINGS,
    markdown,
    paired,
    percent,
    report_test,
    task,
    tested,
    values,
)

from metadraw.command.cli import one_line_errors
from metadraw.command.names import name_of
from metadraw.training.factory import read_checkpoint

LOGS, OUT = ROOT / "logs" / "best_conv4", RESULTS / "best_conv4.md"


def logs(checkpoint: Path) -> Path:
    """Where its tests are: a run that goes on has another checkpoint, which is tested anew."""
    return LOGS / sha256(checkpoint.read_bytes()).hexdigest()[:8]


def row(checkpoint: Path, ways: int, shots: int) -> list[str]:
    """One setting: accuracies, and the difference by task with a query set at once."""
    own = [*report_test(ways, shots), "data.source=npm"]
    alone, query = (
        tested(
            logs(checkpoint) / f"{statistics}_{ways}_{shots}",
            checkpoint,
            [*own, f"learner.query_statistics={statistics}"],
        )
        for statistics in ("running", "query")
    )
    theirs = KEPT / "runs" / name_of(settings("report_100", ways, shots))
    accuracies = [percent(values(test)) for test in (alone, query, theirs)]
    return [task(ways, shots), *accuracies, percent(paired(query, theirs), "+")]


def main() -> None:
    """Test, and write the table."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="of a run of experiment=best_conv4")
    checkpoint = parser.parse_args().checkpoint
    read_checkpoint(checkpoint)
    ours = ["one picture at a time", "a query set at once"]
    head = ["task", *ours, "the report's recipe, likewise", "difference"]
    rows = [row(checkpoint, *setting) for setting in SETTINGS]
    text = [
        "# The best recipe for the report's network",
        "",
        "`python train.py experiment=best_conv4 data.source=npm trainer=cpu "
        "trainer.precision=bf16-mixed`, then `python benchmarks/best_conv4.py "
        "RUN/checkpoints/best.ckpt`; one CPU core, torch "
        f"{torch.__version__}. Accuracy in per cent, ± half its 95 % interval over 2,500 meta-test "
        "tasks for 1 shot and 1,000 for more, as many queries as shots. The report's recipe is "
        "MAML, trained for each setting ([results/report](../../results/report/report.md)) and "
        "tested on 2,500 tasks. Differences with a query set at once are in points, paired by the "
        "tasks that both have. One seed.",
        "",
        *markdown(head, rows, left=1),
    ]
    OUT.write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with one_line_errors():
        main()
