"""Trackers without an account: logged values are read back from the run folder."""

import csv
import json
import os
import re
import runpy
import shutil
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ENVIRONMENT, ROOT
from points import HANGS

import metadraw
from metadraw.training.train import train

wandb = pytest.importorskip("wandb")


def run(tiny, *overrides):
    cfg = metadraw.compose(*tiny, *overrides)
    return train(cfg), Path(cfg.paths.output_dir)


@pytest.fixture
def no_account(monkeypatch, tmp_path):
    """An environment without a W&B key, and a home folder without a file that has one."""
    for name in list(os.environ):
        if name.startswith("WANDB_") or name == "NETRC":
            monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def by_command(*arguments, cwd=ROOT, program="train.py"):
    """A run started as by a user, in the environment of this process."""
    command = [sys.executable, program, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=HANGS)


def wandb_records(folder):
    """All records of the one offline run in a run folder.

    W&B has no reader. A ``.wandb`` file is a LevelDB log: after 7 bytes of header,
    blocks of 32 KiB with parts of (checksum 4, length 2, kind 1, bytes); kinds 1 and 4 end a
    record. The last ones, of kind ``exit`` and in old versions ``footer``, are written by another
    process after the run.
    """
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    for _ in range(10 * HANGS):
        log, records = file.read_bytes(), []
        place, parts = 7, b""
        while place + 7 <= len(log):
            if 32768 - place % 32768 < 7:
                place += 32768 - place % 32768
                continue
            length, kind = struct.unpack_from("<HB", log, place + 4)
            parts += log[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4) and place <= len(log):
                records.append(wandb_internal_pb2.Record())
                records[-1].ParseFromString(parts)
                parts = b""
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        time.sleep(0.1)
    raise TimeoutError(f"{file} has no end: {len(log)} bytes")


def values(items):
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def logged(folder):
    """History, config, summary, and each time's (tags, notes), of the offline run in a folder."""
    history, config, summary, called = [], {}, {}, []
    for record in wandb_records(folder):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            history.append(values(record.history.item))
        elif kind == "run":
            config |= values(record.run.config.update)
            called.append((list(record.run.tags), record.run.notes))
        elif kind == "config":
            config |= values(record.config.update)
        elif kind == "summary":
            summary |= values(record.summary.update)
    return history, config, summary, called


def test_wandb_offline(tiny, no_account):
    found, folder = run(
        tiny, "logger=wandb", "tags=[first,try]", "notes=why", "data.train_tasks_per_batch=3"
    )
    history, config, summary, called = logged(folder)
    curve = [(row["epoch"], row["val/acc"]) for row in history if "val/acc" in row]
    assert [epoch for epoch, _ in curve] == [1, 2]
    assert config["algorithm_name"] == "maml"
    assert [row["tasks_seen"] for row in history if "val/acc" in row] == [9, 18]
    assert max(accuracy for _, accuracy in curve) == pytest.approx(found["val"]["acc"], abs=1e-6)
    assert any("train/loss" in row for row in history)
    assert any("test/acc" in row for row in history)
    assert summary["best_val_acc"] == found["val"]["acc"]
    text = json.dumps(config)
    assert found["data"]["sha256"] in text
    assert '"shots": 1' in text
    assert called[0] == (["first", "try"], "why")
    for picture in ("episode", "curves"):
        assert list(folder.glob(f"wandb/offline-run-*/files/media/images/{picture}*.png"))


def test_the_dashboard_shows_what_a_run_logs(tiny, no_account):
    """The example's panels, sent nowhere: every name in them is one of a run's."""
    pytest.importorskip("wandb_workspaces")
    example = runpy.run_path(str(ROOT / "notebooks" / "wandb_dashboard.py"))
    section = example["workspace"]("me", "doodles")._to_model().model_dump()["spec"]["section"]
    panels = [
        panel for part in section["panel_bank_config"]["sections"] for panel in part["panels"]
    ]
    shown = json.dumps([[panel["config"] for panel in panels], section["run_sets"]])
    _, folder = run(tiny, "logger=wandb")
    history, config, summary, _ = logged(folder)
    measured = {name for row in history for name in row} | summary.keys()
    measured |= {name.partition(".")[0] for name in measured}  # of a picture: its parts
    lines = {panel["config"]["x_axis"] for panel in panels if "Line" in panel["view_type"]}
    for panel in panels:
        lines |= set(panel["config"].get("metrics") or [])
        lines |= set(panel["config"].get("media_keys") or [])
    assert {"epoch", "tasks_seen", "val/acc", "test/acc", "episode"} <= lines <= measured
    assert set(re.findall(r'"summary:([^"]+)"', shown)) <= measured
    settings = [name.split(".value") for name in re.findall(r'"config:([^"]+)"', shown)]
    assert {f"{name}{key}" for name, key in settings} >= {"data.shots", "algorithm_name"}
    for name, key in settings:
        assert not key or key[1:] in config[name]


def test_jobs_of_one_process_have_a_run_each(tiny, no_account, tmp_path):
    for name in ("one", "two"):
        _, folder = run(tiny, "logger=wandb", f"paths.output_dir={tmp_path / name}")
        assert len(list(folder.glob("wandb/offline-run-*"))) == 1


def test_jobs_of_a_sweep_are_grouped_and_named(tiny, no_account, tmp_path):
    """Without an account, everything is kept offline."""
    shared = [o for o in tiny if not o.startswith("paths.output_dir")]
    done = by_command("-m", "data.shots=1,2", *shared, "logger=wandb", f"paths.log_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("W&B: no WANDB_API_KEY in the environment or .env") == 2
    (sweep,) = (tmp_path / "train" / "multiruns").iterdir()
    runs = []
    for folder in sorted(path for path in sweep.iterdir() if path.is_dir()):
        runs += [
            record.run
            for record in wandb_records(folder)
            if record.WhichOneof("record_type") == "run"
        ][:1]
        assert runs[-1].run_id == (folder / "wandb_id.txt").read_text()
    assert [run.run_group for run in runs] == [sweep.name] * 2
    assert [run.display_name.split()[0] for run in runs] == ["data.shots=1", "data.shots=2"]
    assert len({run.run_id for run in runs}) == 2


def test_the_key_is_in_no_file(tiny, monkeypatch):
    secret = "0123456789abcdef" * 2 + "01234567"
    monkeypatch.setenv("WANDB_API_KEY", secret)
    monkeypatch.setenv("WANDB_MODE", "offline")
    _, folder = run(tiny, "logger=wandb")
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if secret.encode() in path.read_bytes()]


def test_tensorboard(tiny):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found, folder = run(tiny, "logger=tensorboard")
    events = accumulator.EventAccumulator(str(folder / "tensorboard")).Reload()
    accuracies = [event.value for event in events.Scalars("val/acc")]
    assert len(accuracies) == 2
    assert max(accuracies) == pytest.approx(found["val"]["acc"], abs=1e-6)
    assert events.Images("episode")


def test_the_hyperparameters_stand_beside_the_result(tiny):
    """One event file, and no metric of -1 that was not measured."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found, folder = run(tiny, "logger=tensorboard", "algorithm=lslr")
    (file,) = (folder / "tensorboard").glob("events*")
    events = accumulator.EventAccumulator(str(file)).Reload()
    assert "hp_metric" not in events.Tags()["scalars"]
    (best,) = events.Scalars("best_val_acc")
    assert best.value == pytest.approx(found["val"]["acc"], abs=1e-6)
    assert set(events.Tags()["images"]) == {"episode", "curves", "learned"}
    assert [event.value for event in events.Scalars("lr")] == pytest.approx([0.001, 0.001])


@pytest.mark.parametrize("several", ["logger=many", "logger=[wandb,tensorboard,csv]"])
def test_several_at_once(tiny, no_account, several):
    _, folder = run(tiny, several, "trainer.max_epochs=1")
    assert list(folder.glob("wandb/offline-run-*/files/media/images/curves*.png"))
    assert list(folder.glob("tensorboard/events*"))
    with next(folder.glob("csv/*/metrics.csv")).open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file) if row["val/acc"]] == ["1.0"]


def test_what_is_no_logger(tiny):
    with pytest.raises(metadraw.InputError, match=r"logger\.mine: there is no such key"):
        run(tiny, "+logger.mine.project=x")


def test_a_tracker_that_is_not_installed(tiny, tmp_path):
    """Every installed package except W&B."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for path in Path(wandb.__file__).parents[1].iterdir():
        if not path.name.startswith("wandb"):
            (packages / path.name).symlink_to(path)
    shared = [o for o in tiny if not o.startswith("paths.")]
    done = subprocess.run(
        [sys.executable, "-S", "train.py", *shared, "logger=wandb", f"hydra.run.dir={tmp_path}/r"],
        cwd=ROOT,
        env=ENVIRONMENT | {"PYTHONPATH": f"{packages}:{ROOT / 'src'}"},
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    assert done.returncode == 1
    assert re.fullmatch(
        r"error: logger=wandb: .* package is missing .*metadraw\[wandb,tensorboard\]'\n",
        done.stderr,
    )


def test_a_run_that_wandb_refuses_is_told_before_training(tiny, no_account, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "too-short")
    folder = tiny[-1].partition("=")[2]
    done = by_command(*tiny[:-1], "logger=wandb", f"hydra.run.dir={folder}")
    assert done.returncode == 1
    assert re.search(r"^error: logger=wandb: .*WANDB_MODE=offline$", done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stderr
    assert not (Path(folder) / "metrics.csv").exists()


def test_what_env_holds_is_in_no_file_and_not_printed(tiny, no_account, monkeypatch, tmp_path):
    """A project folder whose .env has keys, like a user's; W&B's server cannot be reached."""
    project = tmp_path / "project"
    project.mkdir()
    shutil.copy(ROOT / "train.py", project)
    (project / "configs").symlink_to(ROOT / "configs")
    secrets = ["0123456789abcdef" * 2 + "01234567", "a-database-password"]
    (project / ".env").write_text(f"WANDB_API_KEY={secrets[0]}\nPASSWORD={secrets[1]}\n")
    with socket.socket() as free:  # nothing listens there once it is closed
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
    folder = tmp_path / "of_env"
    shared = [o for o in tiny if not o.startswith("paths.")]
    done = by_command(*shared, "logger=wandb", f"hydra.run.dir={folder}", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "does not answer" in done.stdout
    assert "the run is kept offline" in done.stdout
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    for secret in secrets:
        assert secret not in done.stdout + done.stderr
        assert not [path for path in files if secret.encode() in path.read_bytes()]
