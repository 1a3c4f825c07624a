"""Runs that are killed, stopped or out of disk space: the same command resumes them."""

import csv
import random
import signal
import sys

import points
import pytest
import torch
from conftest import ROOT

from metadraw.results.sweep import read_sweep


@pytest.fixture
def command(tiny, tmp_path):
    """The command of a run, and its folder."""

    def make(*overrides, name="run"):
        keys = [override.partition("=")[0] for override in (*overrides, "paths.output_dir=")]
        shared = [override for override in tiny if override.partition("=")[0] not in keys]
        folder = tmp_path / name
        program = [sys.executable, str(ROOT / "train.py")]
        return [*program, *overrides, *shared, f"hydra.run.dir={folder}"], folder

    return make


def final_state(folder):
    """Everything in the last checkpoint, except paths and times."""
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    kept = ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers")
    return {key: state[key] for key in kept}


def curves(folder):
    """The rows of metrics.csv, without the seconds that each epoch took."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def assert_equal(one, other):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


# Learned rates, annealing, per-step norm, augmentation, a schedule: all that might be lost.
MUCH = ["algorithm=maml_pp", "algorithm.multi_step_epochs=9", "data.shift=2", "data.mirror=true"]


FILES = ("last.ckpt", "best.ckpt", "metrics.csv", "tasks.csv", "results.json", ".png", "temporary")


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_points(command, kills):
    """SIGKILL, the same command, and so on: bit-identical to the uninterrupted run."""
    length = [*MUCH, "trainer.max_epochs=4", "data.tasks_per_batch=2", "data.test_batches=1"]
    whole, reference = command(*length, name="reference")
    done = points.end_at((), points.kill, whole, reference)
    assert done.returncode == 0, done.output

    # Until results.json exists: half of the kills during a write, half anywhere.
    passed = done.points[: done.points.index("run 1, test: results.json is put in place (1)") + 1]
    draw = random.Random(kills)
    written = [i for i, point in enumerate(passed) if any(file in point for file in FILES)]
    chosen = {*draw.sample(written, kills // 2)}
    chosen |= {*draw.sample([i for i in range(len(passed)) if i not in chosen], kills - kills // 2)}

    typed, folder = command(*length)
    progress = []
    for index in sorted(chosen):
        # Or the next one: a run resumes after its last whole epoch, and may not pass it again.
        killed = points.end_at(passed[index:], points.kill, typed, folder)
        assert killed.returncode in (-signal.SIGKILL, -signal.SIGXFSZ), killed.output
        last = folder / "checkpoints" / "last.ckpt"
        progress.append(final_state(folder)["epoch"] if last.exists() else -1)
        assert not (folder / "results.json").exists()
    assert progress == sorted(progress)
    done = points.end_at((), points.kill, typed, folder)
    assert done.returncode == 0, done.output
    assert_equal(final_state(folder), final_state(reference))
    assert curves(folder) == curves(reference)
    for name in ("tasks.csv", "curves.png", "learned.png", "episode.png"):
        # Pictures show no times, so only a truncated or missing one differs.
        assert (folder / name).read_bytes() == (reference / name).read_bytes(), name


@pytest.mark.parametrize(("happens", "code"), [(points.terminate, 143), (points.ctrl_c, 130)])
def test_stopped(command, happens, code):
    typed, folder = command("trainer.max_epochs=3")
    within = "run 1, epoch 2: on_train_batch_start (2)"
    stopped = points.end_at([within], happens, typed, folder)
    assert stopped.returncode == code, stopped.output
    assert "stopped in epoch 2" in stopped.output
    assert f"hydra.run.dir={folder}" in stopped.output
    assert "Traceback" not in stopped.output
    assert not (folder / "results.json").exists()
    assert final_state(folder)["epoch"] == 0


def test_interrupted_sweep_stops_once(sweep):
    typed, folder = sweep("data.shots=1,2")
    within = "run 1, epoch 2: on_train_batch_start (1)"
    stopped = points.end_at([within], points.ctrl_c, typed, folder)
    assert stopped.returncode == 130, stopped.output
    assert stopped.output.count("stopped in epoch 2") == 1
    first, second = read_sweep(folder)
    assert len(first.curves) == 1
    assert second.status == "not begun"


@pytest.mark.parametrize("at", ["on_save_checkpoint", "checkpoints/last.ckpt.part is put in place"])
def test_no_room_for_a_checkpoint(command, at):
    """While it is written, or moved from another disk: the previous one stays intact."""
    typed, folder = command()
    within = f"run 1, epoch 2: {at} (1)"
    full = points.end_at([within], points.fill_the_disk, typed, folder)
    assert full.returncode == 1, full.output
    assert "error: there is no room to write" in full.output
    assert "Traceback" not in full.output
    assert "no room" in (folder / "error.txt").read_text(encoding="utf-8")
    assert final_state(folder)["epoch"] >= 0
    assert not list((folder / "checkpoints").glob("*.part"))
    assert points.end_at((), points.kill, typed, folder).returncode == 0
