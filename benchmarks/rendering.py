"""Strokes of another width: whether drawings with thicker strokes are easier.

python benchmarks/rendering.py

The strokes of the npm package are thinner than those of the data set's own bitmaps. Here they are
also blurred and brightened. The report's network is trained as an ordinary classifier on either
rendering, for three minutes of one core, and tested on both, with the same drawings in the same
tasks. Runs are in logs/rendering; finished ones are kept. The table goes to
benchmarks/results/rendering.{md,csv}.
"""

from __future__ import annotations

import argparse
import platform
from itertools import product
from pathlib import Path

import numpy as np
import torch
from studies import (  # beside this file
    RESULTS,
    ROOT,
    interval,
    listed,
    markdown,
    percent,
    report_test,
    save,
    task,
    tested,
    trained,
    values,
)
from torch import Tensor

from metadraw.command.cli import one_line_errors
from metadraw.data.drawings import Drawings, load_quickdraw

LOGS, OUT = ROOT / "logs" / "rendering", RESULTS / "rendering"
#: Standard deviation in pixels of a Gaussian blur, and the factor of brightness after it.
RENDERINGS = {"thin": (0.0, 1.0), "blurred": (0.45, 1.5)}
SETTINGS = ((5, 1), (5, 5))
RECIPE = [
    *("experiment=pretrain", "model=conv4", "trainer.max_epochs=20", "data.val_batches=8"),
    *("algorithm.label_smoothing=0", "optimizer.weight_decay=0.0001", "data.test_batches=1"),
]


def render(images: Tensor, deviation: float, gain: float) -> Tensor:
    """``uint8 [..., H, W]`` images, blurred by a Gaussian, then brightened."""
    if deviation == 0:
        return images
    kernel = torch.exp(-(torch.arange(-2.0, 3.0) ** 2) / (2 * deviation**2))
    kernel = (kernel[:, None] * kernel) / kernel.sum() ** 2
    flat = images.reshape(-1, 1, *images.shape[-2:]).float()
    blurred = torch.nn.functional.conv2d(flat, kernel[None, None], padding=2)
    return (gain * blurred).clamp(max=255).round().to(torch.uint8).reshape(images.shape)


def write_drawings(drawings: Drawings, folder: Path, deviation: float, gain: float) -> None:
    """A rendering of drawings as a folder for ``data.source=path``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, images in zip(drawings.classes, drawings.images, strict=True):
        rendered = render(torch.from_numpy(np.array(images)), deviation, gain)
        np.save(folder / f"{name}.npy", rendered.flatten(1).numpy())


def study() -> dict[tuple[str, str], list[Tensor]]:
    """Accuracies of each task, ``[tasks]`` for each of SETTINGS, by training and test."""
    drawings = load_quickdraw("npm", 100)
    for name, how in RENDERINGS.items():
        write_drawings(drawings, LOGS / "drawings" / name, *how)
    found = {}
    for training, test in product(RENDERINGS, repeat=2):
        learned_on, tested_on = (
            ["data.source=path", f"data.path={LOGS / 'drawings' / name}"]
            for name in (training, test)
        )
        checkpoint = trained(LOGS / training, [*RECIPE, *learned_on])
        tests = []
        for ways, shots in SETTINGS:
            folder = LOGS / training / f"{test} {task(ways, shots)}".replace(" ", "_")
            settings = [*report_test(ways, shots), "data.eval_seed=0", *tested_on]
            tests.append(values(tested(folder, checkpoint, settings)))
        found[training, test] = tests
    return found


def write(found: dict[tuple[str, str], list[Tensor]]) -> None:
    """Table and CSV."""
    thin = found["thin", "thin"]
    rows = []
    for key, tests in found.items():
        ahead = [percent(test - base, sign="+") for test, base in zip(tests, thin, strict=True)]
        rows.append([*key, *map(percent, tests), *(ahead if tests is not thin else ["", ""])])
    names = [task(*setting) for setting in SETTINGS]
    head = ["trained on", "tested on", *names, *(f"{name}: difference" for name in names)]
    deviation, gain = RENDERINGS["blurred"]
    both = zip(found["blurred", "blurred"], thin, strict=True)
    gained = [percent(blurred - base) for blurred, base in both]
    text = [
        "# Strokes of another width",
        "",
        *markdown(head, rows, left=2),
        "",
        "Meta-test accuracy in per cent, and its difference from the first row in points, paired "
        "by task, each ± half its 95 % interval. *thin*: the drawings of the npm package. "
        f"*blurred*: the same after a Gaussian of {deviation} pixels and a gain of {gain}. Learned "
        f"and asked with those, tasks are {listed(gained)} points easier.",
        "",
        f"`python benchmarks/rendering.py`, {platform.machine()} CPU, torch {torch.__version__}; "
        "one seed.",
    ]
    lines = [
        [*key, *setting, *interval(test), len(test)]
        for key, tests in found.items()
        for setting, test in zip(SETTINGS, tests, strict=True)
    ]
    save(OUT, text, ["trained", "tested", "ways", "shots", "acc", "acc_ci95", "tasks"], lines)


def main() -> None:
    """Train, test and write what is found."""
    assert __doc__
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    write(study())


if __name__ == "__main__":
    with one_line_errors():
        main()
