"""The checkpoint that comes with metadraw, in use, on real drawings of classes new to it."""

import math
import re
from functools import cache

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image, ImageOps

import metadraw
from metadraw import FewShot
from metadraw.training.factory import portable, read_checkpoint

SHIPPED = ROOT / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="module")
def evaluated(from_npm):
    """The shipped checkpoint's first meta-test tasks, and which queries evaluation has right."""
    data, learner = metadraw.load(SHIPPED, f"data.cache_dir={from_npm[1]}")

    @cache
    def of(count):
        batches = [data.episodes("test")(part) for part in torch.arange(count).split(25)]
        answers = [learner.evaluate(batch).after.argmax(-1) for batch in batches]
        right = [found == batch.query.y for found, batch in zip(answers, batches, strict=True)]
        return [batch.task(i) for batch in batches for i in range(25)], torch.cat(right)

    return of


def in_use(tasks, rendered):
    """Which queries are right in Python, after each drawing is rendered."""
    meta_learner, right = FewShot(SHIPPED), []
    for task in tasks:
        support, query = (
            [rendered(np.uint8(np.rint(255 * x[0].numpy()))) for x in images]
            for images in (task.support.x, task.query.x)
        )
        labels = task.support.y.tolist()
        examples = {
            str(label): [x for x, y in zip(support, labels, strict=True) if y == label]
            for label in range(5)
        }
        predicted = meta_learner.adapt(examples).predict(query)
        right.append([int(found) == y for found, y in zip(predicted, task.query.y, strict=True)])
    return torch.tensor(right)


@pytest.mark.parametrize("count", [25, pytest.param(2500, marks=pytest.mark.slow)])
def test_in_python_it_is_as_good_as_in_evaluation(evaluated, count):
    tasks, right = evaluated(count)
    found = in_use(tasks, lambda pixels: pixels)
    print(f"{100 * found.double().mean():.2f} % of {count} tasks")
    assert torch.equal(found, right)


def enlarged(pixels, side=200):
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)


def on_paper(pixels):
    """Dark on light, smaller than the sheet and off-centre."""
    sheet = Image.new("L", (600, 400), 255)
    sheet.paste(ImageOps.invert(enlarged(pixels)), (50, 100))
    return sheet


def transparent(pixels):
    image = Image.new("RGBA", (200, 200), (20, 30, 120, 0))
    image.putalpha(enlarged(pixels))
    return image


def photo(pixels):
    """Paper in uneven light, with noise."""
    grey = np.asarray(on_paper(pixels), float) / 255
    light = np.linspace(0.5, 0.9, 600)[None] * np.linspace(1, 0.8, 400)[:, None]
    noise = 4 * np.random.RandomState(0).randn(400, 600)
    return Image.fromarray(np.uint8((255 * light * (0.35 + 0.65 * grey) + noise).clip(0, 255)))


@pytest.mark.parametrize("rendered", [on_paper, transparent, photo])
def test_drawings_rendered_in_other_ways(evaluated, rendered):
    tasks, right = evaluated(25)
    accuracy, other = right.float().mean(), in_use(tasks, rendered).float().mean()
    assert accuracy > 0.5  # chance is 0.2
    assert abs(other - accuracy) < 0.08


def test_readme_example_runs(own_pictures):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(from metadraw import Classifier.*?)```", readme, re.DOTALL)
    names: dict = {}
    exec(code, names)
    again = names["Classifier"].load("classifier.pt")
    assert again.about["examples"] == {"cat": 2, "dog": 1}
    assert again.predict(["new.png"]) == names["classifier"].predict(["new.png"])


def test_it_is_what_its_card_says():
    """Small, from the named command, and without any trace of the machine that made it."""
    assert SHIPPED.stat().st_size < 5_000_000
    saved = read_checkpoint(SHIPPED)
    assert saved.keys() == {"state_dict", "metadraw_config", "metadraw_calibration"}
    assert math.isfinite(saved["metadraw_calibration"]["threshold"])
    mirrored = "algorithm.mirror_images=true"
    named = portable(
        metadraw.compose("experiment=best", "data.source=npm", "trainer=cpu", mirrored)
    )
    for part, values in saved["metadraw_config"].items():
        if isinstance(values, dict):
            assert values.items() <= named[part].items()
        else:
            assert values == named[part]
