"""Whole runs: what they leave behind, resuming, re-running, re-testing."""

import csv
import json
from pathlib import Path

import pytest
import torch
from conftest import each_algorithm

import metadraw
from metadraw import InputError
from metadraw.results.compare import read
from metadraw.training.evaluate import evaluate
from metadraw.training.learner import MetaLearner
from metadraw.training.train import train


def run(tiny, *overrides):
    cfg = metadraw.compose(*tiny, *overrides)
    return train(cfg), Path(cfg.paths.output_dir)


def state(checkpoint):
    return torch.load(checkpoint, weights_only=True)


@pytest.fixture
def other_folder(tmp_path):
    return lambda name: f"paths.output_dir={tmp_path / name}"


def rows(folder):
    """The rows of metrics.csv, without the seconds, which two runs never share."""
    with open(folder / "metrics.csv") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def test_a_run_leaves_everything_behind(tiny):
    found, folder = run(tiny)
    assert {path.name for path in folder.iterdir()} == {
        "checkpoints",
        "config.yaml",
        "curves.png",
        "episode.png",
        "metrics.csv",
        "results.json",
        "tasks.csv",
    }
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    written = json.loads((folder / "results.json").read_text())
    assert written == found
    assert written["test"]["tasks"] == 8
    assert written["test"]["query_statistics"] == "query"
    assert written["data"]["source"] == "path"
    assert len(written["data"]["sha256"]) == 64
    assert written["config"]["data"]["shots"] == 1
    curves = rows(folder)
    assert [row["epoch"] for row in curves] == ["1", "2"]
    for split in ("train", "val"):
        for name in ("loss", "acc", "precision"):
            assert float(curves[0][f"{split}/{name}"]) >= 0
            assert float(curves[0][f"{split}/{name}_before"]) >= 0


def test_the_best_checkpoint_is_not_simply_the_last(tiny):
    """An outer learning rate that spoils the network after the first epoch."""
    found, folder = run(
        tiny,
        "trainer.max_epochs=4",
        "data.val_batches=20",
        "data.train_batches=12",
        "optimizer.lr=0.01",
        "scheduler=cosine",
        "scheduler._target_=torch.optim.lr_scheduler.StepLR",
        "~scheduler.T_max",
        "~scheduler.eta_min",
        "+scheduler.step_size=2",
        "+scheduler.gamma=1000",
    )
    accuracies = [float(row["val/acc"]) for row in rows(folder)]
    best = accuracies.index(max(accuracies))
    assert best < 3
    assert found["val"]["acc"] == pytest.approx(max(accuracies))
    assert state(folder / "checkpoints" / "best.ckpt")["epoch"] == best
    assert state(folder / "checkpoints" / "last.ckpt")["epoch"] == 3


def test_same_config_same_numbers_and_another_seed_others(tiny, other_folder):
    one, _ = run(tiny)
    again, _ = run(tiny, other_folder("again"))
    other, _ = run(tiny, other_folder("other"), "seed=7")

    def figures(found):
        return {k: v for k, v in found["test"].items() if "second" not in k}

    assert figures(one) == figures(again)
    assert figures(one) != figures(other)


@pytest.mark.parametrize("algorithm", each_algorithm("scratch"))
def test_a_resumed_run_equals_an_uninterrupted_one(tiny_for, other_folder, algorithm, monkeypatch):
    small = ["data.train_batches=2", "data.val_batches=1", "data.test_batches=1"]
    tiny = [*tiny_for(algorithm), *small, "scheduler=cosine", "trainer.max_epochs=3"]
    _, whole = run(tiny)
    first = metadraw.compose(*tiny, other_folder("first"))

    class KilledError(Exception):
        pass

    begin_epoch = MetaLearner.on_train_epoch_start

    def killed(self):
        if self.current_epoch == 2:
            raise KilledError
        begin_epoch(self)

    with monkeypatch.context() as patch:
        patch.setattr(MetaLearner, "on_train_epoch_start", killed)
        with pytest.raises(KilledError):
            train(first)
    last = Path(first.paths.output_dir) / "checkpoints" / "last.ckpt"
    assert state(last)["epoch"] == 1
    _, resumed = run(tiny, other_folder("resumed"), f"ckpt_path={last}")

    one, other = (state(folder / "checkpoints" / "last.ckpt") for folder in (whole, resumed))
    assert one["epoch"] == other["epoch"] == 2
    assert one["global_step"] == other["global_step"]
    for name, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name])
    assert rows(whole) == rows(resumed)
    one, other = (state(folder / "checkpoints" / "best.ckpt") for folder in (whole, resumed))
    assert one["epoch"] == other["epoch"]


def test_evaluation_repeats_the_test_figure_exactly(tiny, other_folder):
    found, folder = run(tiny)
    checkpoint = f"ckpt_path={folder / 'checkpoints' / 'best.ckpt'}"

    def test_again(name, *overrides):
        return evaluate(
            metadraw.compose(
                checkpoint,
                "trainer=cpu",
                other_folder(name),
                *overrides,
                config="eval",
            )
        )["test"]

    again = test_again("again")
    for name in ("acc", "acc_ci95", "loss", "precision", "acc_before", "tasks"):
        assert again[name] == found["test"][name]
    steps = test_again("steps", "algorithm.eval_inner_steps=9")
    assert steps["inner_steps"] == 9
    assert steps["loss"] != again["loss"]
    shots = test_again("shots", "data.shots=3", "data.test_batches=5")
    assert shots["tasks"] == 20
    assert shots["loss"] != again["loss"]
    validation = test_again("val", "split=val")
    assert validation["acc"] == pytest.approx(found["val"]["acc"])
    support = test_again("support", "learner.query_statistics=support")
    assert support["query_statistics"] == "support"
    assert support["loss"] != again["loss"]
    with pytest.raises(InputError, match="MAML was trained with 5 ways"):
        test_again("ways", "data.ways=3")


def test_loading_a_checkpoint_in_one_line(tiny):
    _, folder = run(tiny)
    data, learner = metadraw.load(folder / "checkpoints" / "best.ckpt")
    task = data.episodes("test")(torch.arange(1)).task(0)
    assert learner.predict(learner.adapt(task), task.query.x).shape == (
        5,
        5,
    )


def test_a_checkpoint_of_another_network(tiny, other_folder):
    _, folder = run(tiny)
    last = folder / "checkpoints" / "last.ckpt"
    with pytest.raises(InputError, match="of another network or algorithm: algorithm"):
        run(tiny, other_folder("x"), f"ckpt_path={last}", "model.hidden_channels=8")


@pytest.mark.parametrize("content", [None, b"", b"not a checkpoint", b"PK\x03\x04 cut off"])
def test_no_checkpoint(tmp_path, content):
    path = tmp_path / "some.ckpt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="no such file" if content is None else "not a readable"):
        metadraw.load(path)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    path = tmp_path / "evil.ckpt"
    torch.save({"metadraw_config": Evil()}, path)
    with pytest.raises(InputError, match="not a readable checkpoint"):
        metadraw.load(path)


def test_early_stopping(tiny):
    found, _ = run(
        tiny,
        "callbacks=early_stopping",
        "callbacks.early_stopping.patience=1",
        "callbacks.early_stopping.min_delta=2",
        "trainer.max_epochs=9",
    )
    assert found["train"]["epochs"] == 2


def test_two_processes_end_where_one_does(tiny, other_folder):
    """Five tasks: the ranks have two and three, and the mean is still over tasks.

    With SGD: Adam would scale up the rounding errors in the biases whose gradient is zero.
    """
    tiny = [*tiny, "data.tasks_per_batch=5", "optimizer=sgd", "trainer.precision=64-true"]
    one, alone = run(tiny)
    two, folder = run(tiny, other_folder("two"), "trainer=ddp_cpu", "trainer.max_epochs=2")
    expected, found = (
        state(each / "checkpoints" / "last.ckpt")["state_dict"] for each in (alone, folder)
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    for split in ("val", "test"):
        for name in ("acc", "acc_ci95", "loss", "precision", "tasks"):
            assert two[split][name] == pytest.approx(one[split][name], rel=1e-5)
    assert (folder / "curves.png").exists()
    assert len(rows(folder)) == 2
    numbers, theirs = (read(each).values for each in (alone, folder))
    assert theirs == pytest.approx(numbers, rel=1e-5)  # of each task


def test_queries_follow_shots_in_a_loaded_checkpoint_too(tiny):
    _, folder = run(tiny)
    data, _ = metadraw.load(folder / "checkpoints" / "best.ckpt", "data.shots=3")
    assert (data.shots, data.queries) == (3, 3)
    data, _ = metadraw.load(folder / "checkpoints" / "best.ckpt", "data.queries=2")
    assert (data.shots, data.queries) == (1, 2)


def test_only_meta_training_can_have_fewer_drawings(tiny_learner):
    data, _ = tiny_learner("data.train_samples_per_class=2", "data.ways=2")
    batch = torch.arange(200)
    seen = {}
    for split in ("train", "val"):
        episodes = data.episodes(split)(batch)
        drawings = torch.cat([episodes.support.x, episodes.query.x], dim=1).flatten(2)
        classes = episodes.about["classes"]
        first = classes == classes[0, 0]
        labels = torch.cat([episodes.support.y, episodes.query.y], dim=1)
        mine = (first.long().argmax(dim=1)[:, None] == labels) & first.any(dim=1)[:, None]
        seen[split] = len(drawings[mine].unique(dim=0))
    assert seen["train"] == 2
    assert seen["val"] > 2
