"""The checkpoint that comes with metadraw, made from a finished run, and its meta-test.

python train.py experiment=best data.source=npm trainer=cpu trainer.precision=bf16-mixed
python benchmarks/shipped.py RUN/checkpoints/best.ckpt

It keeps what is needed for use, parameters and config, in half precision, and averages features
over mirror images. It is calibrated, then tested with all of the report's ways and shots, each
picture by itself, as in use.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from studies import ROOT, SETTINGS, accuracy, markdown, report_test, task  # beside this file

import metadraw
from metadraw.command.cli import one_line_errors
from metadraw.files import WholeCheckpoints
from metadraw.results.published import published
from metadraw.training.evaluate import evaluate
from metadraw.training.factory import read_checkpoint
from metadraw.use.calibrate import calibrate, with_one_more_class
from metadraw.use.calibration import answers, measure
from metadraw.use.classifier import FewShot

OUT, CARD = ROOT / "checkpoints" / "best.ckpt", ROOT / "checkpoints" / "results.md"
TASKS = 400  # for the calibration


def ship(trained: Path) -> None:
    """Write what is needed for use; the same file for the same parameters and config."""
    saved = read_checkpoint(trained)
    config = saved["metadraw_config"]
    config["algorithm"]["mirror_images"] = True
    config["trainer"]["precision"] = "32-true"  # in use, halves are read as float32
    state = {name: value.half() for name, value in saved["state_dict"].items()}
    OUT.parent.mkdir(exist_ok=True)
    checkpoint = {"state_dict": state, "metadraw_config": config}
    WholeCheckpoints().save_checkpoint(checkpoint, OUT)


def fit() -> None:
    """Write temperature and threshold into the checkpoint, for the tasks of all settings."""
    with tempfile.TemporaryDirectory() as folder:
        common = [f"ckpt_path={OUT}", f"tasks={TASKS}", "data.queries=5"]
        ranges = ["data.ways=[5,10]", "data.shots=[1,10]", f"paths.output_dir={folder}"]
        calibrate(metadraw.compose(*common, *ranges, config="calibrate"))


def calibration(ways: int, shots: int) -> dict[str, str]:
    """How well the calibration holds on meta-test tasks, in per cent."""
    few_shot = FewShot(OUT)
    data = with_one_more_class(few_shot, {"ways": ways, "shots": shots, "queries": 5})
    found = measure(answers(few_shot.learner, data.episodes("test"), TASKS), few_shot.calibration)
    return {name: f"{100 * value:.1f}" for name, value in found.items()}


def tested(ways: int, shots: int) -> str:
    """Meta-test accuracy in per cent, with half its 95 % interval."""
    with tempfile.TemporaryDirectory() as folder:
        cfg = metadraw.compose(
            f"ckpt_path={OUT}",
            *report_test(ways, shots),
            "trainer=cpu",
            f"paths.output_dir={folder}",
            config="eval",
        )
        test = evaluate(cfg)["test"]
    return accuracy(test, digits=2)


def main() -> None:
    """Ship, calibrate, test, write the tables."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="of a run of experiment=best")
    ship(parser.parse_args().checkpoint)
    fit()
    accuracies, calibrations = [], []
    for ways, shots in SETTINGS:
        name, known = task(ways, shots), published(100, ways, shots)
        assert known is not None
        accuracies.append([name, tested(ways, shots), f"{100 * known['accuracy']:.1f}"])
        found = calibration(ways, shots)
        kinds = ("error_before", "error", "refused", "accepted", "auroc")
        calibrations.append([name, *(found[kind] for kind in kinds)])
        print(accuracies[-1], calibrations[-1], flush=True)
    compared = ["task", "accuracy", "the report, a query set at once, trained for each"]
    measures = [
        *("task", "calibration error, uncalibrated", "calibrated"),
        *(
            "given classes taken for none",
            "other classes not taken for none",
            "area under the curve",
        ),
    ]
    text = [
        "# Meta-test",
        "",
        "`python benchmarks/shipped.py RUN/checkpoints/best.ckpt`, RUN being that of the card, on "
        f"one CPU core with torch {torch.__version__}. Accuracy in per cent, ± half its 95 % "
        "interval over tasks (2,500 for 1 shot, else 1,000), as many queries as shots, one picture "
        "at a time.",
        "",
        *markdown(compared, accuracies, left=1),
        "",
        f"Calibration, in per cent, on {TASKS} meta-test tasks of 5 queries a class, one picture "
        'at a time. The temperature and the threshold for "none of these" are the same for all, '
        "and were fitted on meta-validation tasks of 5 to 10 ways and 1 to 10 shots. The expected "
        "calibration error has 15 bins. Pictures of other classes are of one class that was not "
        "given; the area is that under the curve of both shares for all thresholds.",
        "",
        *markdown(measures, calibrations, left=1),
        "",
    ]
    CARD.write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    with one_line_errors():
        main()
