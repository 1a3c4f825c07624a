"""Runs that are killed, stopped or out of room: the same command goes on, and nothing is lost."""

import csv
import os
import random
import resource
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from conftest import ENVIRONMENT, ROOT, run

from metadraw.sweep import read_sweep


@pytest.fixture
def command(tiny, tmp_path):
    """The command of a run that takes a while, and its folder."""

    def make(*overrides, name="run"):
        keys = [override.partition("=")[0] for override in (*overrides, "paths.output_dir=")]
        shared = [override for override in tiny if override.partition("=")[0] not in keys]
        folder = tmp_path / name
        program = [sys.executable, str(ROOT / "train.py")]
        return [*program, *overrides, *shared, f"hydra.run.dir={folder}"], folder

    return make


def start(command):
    """Begin a command that hears Ctrl-C, also where the tests themselves run in the background."""
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    hears = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, preexec_fn=hears, **output)


def wait_for(path, process):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def final_state(folder):
    """Everything that the last checkpoint has, but for paths and times."""
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


# Learned rates, annealing, per-step norm, augmentation, a schedule: all that could be forgotten.
MUCH = ["algorithm=maml_pp", "algorithm.multi_step_epochs=9", "data.shift=2", "data.mirror=true"]


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments(command, kills):
    """SIGKILL, the same command, and again: bit-identical to the run that nobody killed."""
    length = [*MUCH, f"trainer.max_epochs={8 * kills}", "data.train_batches=2"]
    typed, folder = command(*length)
    moments = random.Random(kills)
    progress = []
    for _ in range(kills):
        process = start(typed)
        # From the start of training on, in the middle of whatever it does then.
        wait_for(folder / "config.yaml", process)
        time.sleep(moments.uniform(0.0, 4.0))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        last = folder / "checkpoints" / "last.ckpt"
        progress.append(final_state(folder)["epoch"] if last.exists() else -1)
        assert not (folder / "results.json").exists(), "too fast: nothing was left to kill"
    assert progress == sorted(progress)
    done = run(typed)
    assert done.returncode == 0, done.stderr
    whole, reference = command(*length, name="reference")
    assert run(whole).returncode == 0
    assert_equal(final_state(folder), final_state(reference))
    assert curves(folder) == curves(reference)
    assert (folder / "tasks.csv").read_text() == (reference / "tasks.csv").read_text()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped(command, number, code):
    typed, folder = command("trainer.max_epochs=200")
    process = start(typed)
    wait_for(folder / "checkpoints" / "last.ckpt", process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert "stopped in epoch" in output
    assert f"hydra.run.dir={folder}" in output
    assert "Traceback" not in output
    assert not (folder / "results.json").exists()
    assert final_state(folder)["epoch"] >= 0


def test_interrupted_sweep_stops_once(sweep):
    typed, folder = sweep("data.shots=1,2", "trainer.max_epochs=200")
    process = start(typed)
    while not list(folder.glob("*/checkpoints/last.ckpt")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert output.count("stopped in epoch") == 1
    first, second = read_sweep(folder)
    assert first.curves
    assert second.status == "not begun"


def test_no_room_for_a_checkpoint(command):
    """A limit on file sizes, which fails in the same place as a full disk does."""
    typed, folder = command("trainer.max_epochs=500")
    last = folder / "checkpoints" / "last.ckpt"
    process = start(typed)
    wait_for(last, process)
    room = os.path.getsize(last) // 2
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (room, room))
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    assert "error: there is no room to write" in output
    assert "Traceback" not in output
    assert final_state(folder)["epoch"] >= 0
    assert "no room" in (folder / "error.txt").read_text()
