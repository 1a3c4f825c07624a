"""What the studies share: runs and tests that are done once, means with intervals, their files."""

from __future__ import annotations

import csv
import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

import metadraw
from metadraw.errors import InputError
from metadraw.results.compare import check_same_tasks, read
from metadraw.results.metrics import confidence_interval
from metadraw.training.evaluate import evaluate
from metadraw.training.train import train

Run = TypeVar("Run")
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
#: The ways and shots of the report.
SETTINGS = [(ways, shots) for ways in (5, 10) for shots in (1, 5, 10)]


# ---- runs ------------------------------------------------------------------------------------


def trained(folder: Path, settings: Sequence[str]) -> Path:
    """The best checkpoint of a run, which is trained unless that is done.

    Args:
        folder: of the run.
        settings: overrides of train.py.
    """
    cost = folder / "cost.json"  # written last
    if not cost.exists():
        shutil.rmtree(folder, ignore_errors=True)
        began = time.process_time()
        train(metadraw.compose(*settings, "trainer=cpu", f"paths.output_dir={folder}"))
        spent = (time.process_time() - began) / 60
        cost.write_text(json.dumps({"minutes": round(spent, 3)}))
        print(f"{folder.name}: {spent:.1f} minutes of one core", flush=True)
    return folder / "checkpoints" / "best.ckpt"


def select(runs: Sequence[Run], only: str, name: Callable[[Run], str]) -> list[Run]:
    """The runs whose names contain a text.

    Raises:
        InputError: there are none.
    """
    found = [run for run in runs if only in name(run)]
    if not found:
        raise InputError(f"--only {only}: must be part of a name like {name(runs[0])}")
    return found


def minutes(folder: Path) -> float:
    """Minutes of one core that a run took, with validation and test."""
    found: float = json.loads((folder / "cost.json").read_text())["minutes"]
    return found


def tested(folder: Path, checkpoint: Path, settings: Sequence[str]) -> Path:
    """The folder of a meta-test, which is done unless its results exist.

    Args:
        folder: of the test.
        checkpoint: to test.
        settings: overrides of eval.py.
    """
    if not (folder / "results.json").exists():
        where = [f"ckpt_path={checkpoint}", f"paths.output_dir={folder}"]
        evaluate(metadraw.compose(*where, *settings, "trainer=cpu", config="eval"))
        print(f"{folder.parent.name}: {folder.name}", flush=True)
    return folder


def results(folder: Path) -> dict[str, Any]:
    """What a run or test has measured, and on what."""
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def values(folder: Path, metric: str | None = None) -> Tensor:
    """A metric of each meta-test task, ``[tasks]`` float64; the monitored one if `None`."""
    found = read(folder, metric).values
    return torch.tensor([found[number] for number in sorted(found)], dtype=torch.float64)


def paired(folder: Path, base: Path) -> Tensor:
    """Differences of the monitored metric from a base's, ``[tasks]`` float64, of common tasks.

    Raises:
        InputError: the two were tested on different tasks.
    """
    run, other = read(folder), read(base)
    check_same_tasks(other, run)
    numbers = sorted(run.values.keys() & other.values.keys())
    return torch.tensor([run.values[n] - other.values[n] for n in numbers], dtype=torch.float64)


def report_test(ways: int, shots: int) -> list[str]:
    """Overrides of a test in a setting of the report: 2,500 tasks for 1 shot, 1,000 for more."""
    batches = 100 if shots == 1 else 40
    return [f"data.ways={ways}", f"data.shots={shots}", f"data.test_batches={batches}"]


# ---- words -----------------------------------------------------------------------------------


def interval(of_tasks: Tensor) -> tuple[float, float]:
    """The mean of ``[tasks]`` values, and half the width of its 95 % interval."""
    return of_tasks.mean().item(), confidence_interval(of_tasks).item()


def clear(differences: Tensor) -> bool:
    """Whether the 95 % interval of a mean leaves out 0."""
    mean, half = interval(differences)
    return abs(mean) > half


def shown(of_tasks: Tensor, digits: int = 1, sign: str = "") -> str:
    """``54.1 ± 0.9``: a mean, ± half its 95 % interval."""
    mean, half = interval(of_tasks)
    return f"{mean:{sign}.{digits}f} ± {half:.{digits}f}"


def percent(shares: Tensor, sign: str = "") -> str:
    """`shown` of shares, in per cent."""
    return shown(100 * shares, sign=sign)


def task(ways: int, shots: int) -> str:
    """``5-way 1-shot``."""
    return f"{ways}-way {shots}-shot"


def accuracy(test: Mapping[str, Any], digits: int = 1) -> str:
    """``54.1 ± 0.9`` of a test's results, in per cent."""
    return f"{100 * test['acc']:.{digits}f} ± {100 * test['acc_ci95']:.{digits}f}"


def listed(parts: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def markdown(
    head: Sequence[str], rows: Iterable[Sequence[str]], left: int | None = None
) -> list[str]:
    """The lines of a table, whose first ``left`` columns are words, and the others numbers."""
    left = len(head) if left is None else left
    rule = [*["---"] * left, *["---:"] * (len(head) - left)]
    return [f"| {' | '.join(row)} |" for row in (head, rule, *rows)]


# ---- files -----------------------------------------------------------------------------------


def save(
    out: Path, text: Sequence[str], columns: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
    """Write the text and the CSV file of a study.

    Args:
        out: their path, without ``.md`` and ``.csv``.
        text: lines.
        columns: of the CSV file.
        rows: of the CSV file.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".md").write_text("\n".join(text) + "\n", encoding="utf-8")
    with out.with_suffix(".csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])
