"""Regression on images: drawings that are completed from a few of their pixels."""

import numpy as np
import pytest
import torch
from conftest import equal
from PIL import Image

import metadraw
from metadraw import InputError
from metadraw.command.cli import one_line_errors
from metadraw.models.fourier import Fourier
from metadraw.training.evaluate import evaluate
from metadraw.training.train import train


@pytest.fixture
def tiny(synthetic_folder, tmp_path):
    """A config of seconds on synthetic drawings, with further overrides."""

    def make(*overrides):
        drawings = ["source=path", f"path={synthetic_folder}", "samples_per_class=20"]
        drawings = [] if "data@data.drawings=sinusoids" in overrides else drawings
        batches = ["data.train_batches=4", "data.val_batches=1", "data.test_batches=2"]
        return metadraw.compose(
            "experiment=completion",
            *(f"data.drawings.{each}" for each in drawings),
            *("data.tasks_per_batch=4", *batches, "trainer=cpu", "trainer.max_epochs=1"),
            *("model.hidden=[16]", "algorithm.inner_steps=2", "data.shots=30"),
            f"paths.output_dir={tmp_path / 'run'}",
            *overrides,
        )

    return make


def test_a_task_is_a_drawing_of_a_class_of_its_split(tiny):
    data, _ = metadraw.build(tiny("data.queries=784"))
    batch = data.episodes("test")(torch.arange(6))
    assert batch.support.x.shape == (6, 30, 2)
    assert batch.support.y.shape == (6, 30, 1)
    test_classes = [data.drawings.drawings.classes.index(c) for c in data.drawings.splits["test"]]
    known = np.concatenate([data.drawings.drawings.images[c] for c in test_classes]) / 255
    for t in range(6):
        x, y = batch.query.x[t], batch.query.y[t]
        column, row = ((x + 1) * 14 - 0.5).round().long().unbind(-1)
        assert len({*zip(column.tolist(), row.tolist(), strict=True)}) == 784
        drawing = np.zeros((28, 28), np.float32)
        drawing[row, column] = y[:, 0]
        assert np.abs(known - drawing).max(axis=(1, 2)).min() < 1e-6
        # Known pixels are pixels of it.
        column, row = ((batch.support.x[t] + 1) * 14 - 0.5).round().long().unbind(-1)
        assert torch.equal(torch.from_numpy(drawing[row, column]), batch.support.y[t, :, 0])
    assert len({tuple(sorted(y.flatten().tolist())) for y in batch.query.y}) == 6


def test_a_task_depends_on_nothing_but_seed_split_and_index(tiny):
    data, _ = metadraw.build(tiny("data.queries=754"))
    sampler = data.episodes("train")
    together = sampler(torch.arange(10))
    assert equal(together.task(7), sampler(torch.tensor([7])).task(0))
    assert not torch.equal(together.support.x[0], together.support.x[1])
    assert not equal(together, data.episodes("val")(torch.arange(10)))
    assert not equal(
        together, metadraw.build(tiny("seed=1"))[0].episodes("train")(torch.arange(10))
    )
    more = metadraw.build(tiny("data.shots=50", "data.train_queries=20"))[0]
    found = more.episodes("train")(torch.arange(10))
    assert torch.equal(found.support.x[:, :30], together.support.x)
    assert torch.equal(found.query.y, together.query.y[:, :20])
    # Queries are new pixels as long as there are any.
    rest = data.episodes("test")(torch.arange(1)).task(0)
    places = torch.cat([rest.support.x, rest.query.x])
    assert len(places.unique(dim=0)) == 784


def test_a_run_and_its_checkpoint_with_more_known_pixels(tiny, tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO")
    found = train(tiny())
    assert "meta-test mean squared error " in caplog.text
    assert (tmp_path / "run" / "episode.png").stat().st_size > 5_000
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    common = [f"ckpt_path={checkpoint}", "trainer=cpu"]

    def again(*overrides):
        where = f"paths.output_dir={tmp_path / 'again'}"
        return evaluate(metadraw.compose(*common, *overrides, where, config="eval"))

    assert again()["test"]["loss"] == found["test"]["loss"]
    assert again("data.shots=60")["config"]["data"]["shots"] == 60
    # Checkpoints know the cache of the machine that reads them.
    monkeypatch.setenv("METADRAW_CACHE", str(tmp_path / "cache"))
    data, learner = metadraw.load(checkpoint)
    assert data.drawings.options["cache_dir"] == str(tmp_path / "cache")
    task = data.episodes("test")(torch.arange(1)).task(0)
    assert learner.predict(learner.adapt(task), task.query.x).shape == (784, 1)
    others, _ = metadraw.load(checkpoint, "data.eval_seed=1")
    other = others.episodes("test")(torch.arange(1)).task(0)
    assert not torch.equal(other.query.y.sort(dim=0).values, task.query.y.sort(dim=0).values)
    with pytest.raises(InputError, match=r"tasks without classes \(Completion\)"):
        metadraw.FewShot(checkpoint)


def test_any_data_set_with_classes_and_colours(tmp_path):
    random = np.random.RandomState(0)
    for name in range(9):
        (tmp_path / "images" / str(name)).mkdir(parents=True)
        for number in range(2):
            picture = Image.fromarray(random.randint(0, 255, (16, 16, 3), dtype=np.uint8))
            picture.save(tmp_path / "images" / str(name) / f"{number}.png")
    data, learner = metadraw.build(
        metadraw.compose(
            *("experiment=completion", "data@data.drawings=image_folder"),
            *(f"data.drawings.path={tmp_path / 'images'}", "data.drawings.image_channels=3"),
            *("data.drawings.image_size=16", "data.queries=256", "data.train_queries=100"),
            f"data.drawings.cache_dir={tmp_path / 'cache'}",
        )
    )
    batch = data.episodes("test")(torch.arange(2))
    outcome = learner.evaluate(batch)
    assert outcome.after.shape == batch.query.y.shape == (2, 256, 3)
    data.picture(batch.task(0), tmp_path / "picture.png", outcome.before[0], outcome.after[0])
    assert (tmp_path / "picture.png").stat().st_size > 5_000


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["data.shots=785"], "data.shots=785: a drawing has 784 pixels"),
        (["data.train_queries=800"], "data.train_queries=800: a drawing has 784 pixels"),
        (["data.shots=[1,5]"], r"data.shots=\[1, 5\]: must be one whole number"),
        (["data.drawings.ways=1"], "ways=1"),
        (["data.drawings._target_=torch.nn.ReLU"], "there is no such key"),
        (
            ["data@data.drawings=sinusoids", "~data.drawings.ways"],
            "data.drawings: must be a data set with classes",
        ),
        (["model.frequencies=0"], "model.frequencies=0: must be a whole number of at least 1"),
        (["model.scale=-1"], "model.scale=-1: must be a number above 0"),
        (["model.coordinates=3"], r"model: layer 0 \(Waves\) fails in a trial step"),
        (["objective.size=2"], r"outputs of shape \[30, 2\] for targets of shape \[30, 1\]"),
    ],
)
def test_wrong_input_is_one_line(overrides, says, tiny):
    with pytest.raises(SystemExit, match=says) as stopped, one_line_errors():
        metadraw.build(tiny(*overrides))
    assert "\n" not in str(stopped.value)


def test_coordinates_become_waves():
    torch.manual_seed(0)
    network = Fourier(coordinates=2, frequencies=5, scale=2.0, hidden=[7])
    x = torch.randn(3, 2)
    waves = network[0](x)
    for i, frequency in enumerate(network[0].frequencies.T):
        angle = 2 * torch.pi * (x * frequency).sum(dim=1)
        torch.testing.assert_close(waves[:, i], angle.cos())
        torch.testing.assert_close(waves[:, 5 + i], angle.sin())
    assert network(x).shape == (3, 7)
    assert not list(network[0].parameters())
