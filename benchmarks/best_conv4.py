"""The best recipe for the report's network against the report's own, on the same tasks.

python train.py experiment=best_conv4 data.source=npm trainer=cpu
python benchmarks/best_conv4.py RUN/checkpoints/best.ckpt

RUN is the first command's. The report's recipe is that of the runs in results/report, with 100
drawings a class; of one that is not finished, the best checkpoint so far is tested. Tests are in
logs/best_conv4, the table in benchmarks/results/best_conv4.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from report_sweep import KEPT, RUNS  # beside this file
from studies import RESULTS, ROOT, markdown, percent, tested, values

from metadraw.command.names import name_of
from metadraw.results.compare import read

LOGS, OUT = ROOT / "logs" / "best_conv4", RESULTS / "best_conv4.md"
SETTINGS = [(ways, shots) for ways in (5, 10) for shots in (1, 5, 10)]


def of_report(ways: int, shots: int, settings: list[str]) -> tuple[Path, int]:
    """The test of the report's recipe in one setting, and how many epochs it was trained."""
    settings_of_run = (f"data.ways={ways}", f"data.shots={shots}", "experiment=report_100")
    name = next(name_of(run) for run in RUNS if {*settings_of_run} <= {*run})
    (run,) = KEPT.glob(f"*/{name}")
    epochs = len((run / "metrics.csv").read_text().splitlines()) - 1
    if (run / "results.json").exists():
        return run, epochs
    folder = LOGS / f"report_{ways}_{shots}"
    return tested(folder, run / "checkpoints" / "best.ckpt", settings), epochs


def row(checkpoint: Path, ways: int, shots: int) -> list[str]:
    """One setting: accuracies, and the difference by task with a query set at once."""
    of_task = [f"data.ways={ways}", f"data.shots={shots}", "data.source=npm"]
    settings = [*of_task, f"data.test_batches={100 if shots == 1 else 40}"]
    own = [
        tested(
            LOGS / f"{statistics}_{ways}_{shots}",
            checkpoint,
            [*settings, f"learner.query_statistics={statistics}"],
        )
        for statistics in ("running", "query")
    ]
    base, epochs = of_report(ways, shots, settings)
    conditions = [read(folder).conditions for folder in (own[1], base)]
    assert conditions[0] == conditions[1], f"other tasks: {conditions}"
    alone, query, theirs = map(values, (*own, base))
    task = f"{ways}-way {shots}-shot"
    return [task, *map(percent, (alone, query, theirs)), str(epochs), percent(query - theirs, "+")]


def main() -> None:
    """Test, and write the table."""
    [checkpoint] = sys.argv[1:]
    head = ["task", "one picture at a time", "a query set at once", "the report's recipe, likewise"]
    head += ["epochs of 50", "difference"]
    rows = [row(Path(checkpoint), *setting) for setting in SETTINGS]
    text = [
        "# The best recipe for the report's network",
        "",
        "`python train.py experiment=best_conv4 data.source=npm trainer=cpu`, then `python "
        "benchmarks/best_conv4.py RUN/checkpoints/best.ckpt`; one CPU core, torch "
        f"{torch.__version__}. Accuracy in per cent, ± half its 95 % interval over 2,500 meta-test "
        "tasks for 1 shot and 1,000 for more, as many queries as shots. The report's recipe is "
        "MAML, trained for each setting ([results/report](../../results/report/report.md)), some "
        "runs of which are not finished. Differences with a query set at once are in points, "
        "paired by task. One seed.",
        "",
        *markdown(head, rows, left=1),
    ]
    OUT.write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
