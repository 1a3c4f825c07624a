"""Runs that are killed, stopped or out of room: the same command goes on, and nothing is lost."""

import csv
import random
import signal
from functools import partial

import pytest
import torch
from children import Strike, cut_off, no_room, run, send

from metadraw.sweep import read_sweep

KILLED = send(signal.SIGKILL)


def final_state(folder):
    """Everything that the last checkpoint has, but for paths and times."""
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    kept = ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers")
    return {key: state[key] for key in kept}


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


def curves(folder):
    """The rows of ``metrics.csv``, but for times."""
    with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        return [{key: row[key] for key in row if "second" not in key} for row in rows]


# Learned rates, annealing, per-step norm, augmentation, a schedule: all that could be forgotten.
MUCH = ["algorithm=maml_pp", "algorithm.multi_step_epochs=9", "data.shift=2", "data.mirror=true"]

# Where a run is killed, and which time that it comes there: each is reached within two epochs.
AT_FIRST = [  # only a first epoch is the best so far for sure
    Strike("write config.yaml", cut_off),
    Strike("write best.ckpt", cut_off),
    Strike("replace best.ckpt", KILLED),
    Strike("write last.ckpt", KILLED),  # between the best one and the last one
]
IN_AN_EPOCH = [
    *(Strike("training_step", KILLED, nth) for nth in (1, 2, 3)),
    *(Strike("validation_step", KILLED, nth) for nth in (1, 2)),
    *(Strike("on_train_epoch_end", KILLED, nth) for nth in (1, 2)),
    Strike("write metrics.csv", cut_off),
    Strike("replace metrics.csv", KILLED, 2),
    *(Strike("write last.ckpt", cut_off, nth) for nth in (1, 2)),
    Strike("replace last.ckpt", KILLED),
]
AT_LAST = [
    Strike("write curves.png", cut_off),
    Strike("test_step", KILLED, 2),
    Strike("write tasks.csv", cut_off),
    Strike("write episode.png", cut_off),
    Strike("write results.json", cut_off),
    Strike("replace results.json", KILLED),
]


def drawn(seed):
    """A strike or two of each part of a run."""
    draw = random.Random(seed).sample
    return draw(AT_FIRST, 1) + draw(IN_AN_EPOCH, 2) + draw(AT_LAST, 2)


@pytest.mark.parametrize(
    "strikes",
    [
        pytest.param(drawn(0), id="5"),
        pytest.param(AT_FIRST + IN_AN_EPOCH + AT_LAST, id="all", marks=pytest.mark.slow),
    ],
)
def test_killed_at_random_moments(command, strikes):
    """Killed, the same command, and again: bit-identical to the run that nobody killed."""
    length = [*MUCH, f"trainer.max_epochs={len(strikes)}", "data.train_batches=2"]
    typed, folder = command(*length)
    progress = []
    for strike in strikes:
        killed = run(typed, strike)
        ended_by = signal.SIGXFSZ if strike.do is cut_off else signal.SIGKILL
        assert killed.returncode == -ended_by, (strike, killed)
        last = folder / "checkpoints" / "last.ckpt"
        progress.append(final_state(folder)["epoch"] if last.exists() else -1)
        assert not (folder / "results.json").exists()
    assert progress == sorted(progress)
    done = run(typed)
    assert done.returncode == 0, done.stderr
    whole, reference = command(*length, name="reference")
    assert run(whole).returncode == 0
    assert_equal(final_state(folder), final_state(reference))
    assert curves(folder) == curves(reference)
    for name in ("tasks.csv", "curves.png", "learned.png", "episode.png"):
        assert (folder / name).read_bytes() == (reference / name).read_bytes(), name


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped(command, number, code):
    typed, folder = command("data.train_batches=2")
    done = run(typed, Strike("training_step", send(number), nth=3))
    assert done.returncode == code, done
    assert "stopped in epoch 2" in done.stdout
    assert f"hydra.run.dir={folder}" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert not (folder / "results.json").exists()
    assert final_state(folder)["epoch"] == 0


def test_interrupted_sweep_stops_once(sweep):
    typed, folder = sweep("data.shots=1,2", "data.train_batches=2")
    done = run(typed, Strike("training_step", send(signal.SIGINT), nth=3))
    assert done.returncode == 130, done
    assert done.stdout.count("stopped in epoch") == 1
    first, second = read_sweep(folder)
    assert len(first.curves) == 1
    assert second.status == "not begun"


def test_no_room_for_a_checkpoint(command):
    """The first one is whole; the second one does not fit."""
    typed, folder = command("trainer.max_epochs=1")
    assert run(typed).returncode == 0
    room = (folder / "checkpoints" / "last.ckpt").stat().st_size // 2
    typed, folder = command(name="full")
    done = run(typed, Strike("write last.ckpt", partial(no_room, room), nth=2))
    assert done.returncode == 1, done
    assert "error: there is no room to write" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert final_state(folder)["epoch"] == 0
    assert "no room" in (folder / "error.txt").read_text(encoding="utf-8")
