"""Trackers, without any account: what was logged is read back from the run folder."""

import json
import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ENVIRONMENT, ROOT

import metadraw
from metadraw.factory import CONFIGS
from metadraw.train import train

wandb = pytest.importorskip("wandb")


def run(tiny, *overrides):
    cfg = metadraw.compose(*tiny, *overrides)
    return train(cfg), Path(cfg.paths.output_dir)


@pytest.fixture
def no_account(monkeypatch):
    """No W&B key from the environment, and none from a file."""
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("wandb.api", type("Api", (), {"api_key": None})(), raising=False)


def wandb_records(folder):
    """All records of the one offline run in a run folder.

    W&B has no reader of its own. A ``.wandb`` file is a LevelDB log: after 7 bytes of header,
    blocks of 32 KiB with parts of (checksum 4, length 2, kind 1, bytes); kinds 1 and 4 end a
    record. Its last record is of kind ``exit``, and written by another process after the run.
    """
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    for _ in range(300):
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
        if records and records[-1].WhichOneof("record_type") == "exit":
            return records
        time.sleep(0.1)
    raise TimeoutError(f"{file} has no end: {len(log)} bytes")


def values(items):
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def test_wandb_offline(tiny, no_account):
    found, folder = run(tiny, "logger=wandb")
    history, config, summary = [], {}, {}
    for record in wandb_records(folder):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            history.append(values(record.history.item))
        elif kind == "run":
            config |= values(record.run.config.update)
        elif kind == "config":
            config |= values(record.config.update)
        elif kind == "summary":
            summary |= values(record.summary.update)
    curve = [(row["epoch"], row["val/acc"]) for row in history if "val/acc" in row]
    assert [epoch for epoch, _ in curve] == [0, 1]
    assert [row["tasks_seen"] for row in history if "val/acc" in row] == [12, 24]
    assert max(accuracy for _, accuracy in curve) == pytest.approx(found["val"]["acc"], abs=1e-6)
    assert any("train/loss" in row for row in history)
    assert any("test/acc" in row for row in history)
    assert summary["best_val_acc"] == found["val"]["acc"]
    text = json.dumps(config)
    assert found["data"]["sha256"] in text
    assert '"shots": 1' in text
    assert list(folder.glob("wandb/offline-run-*/files/media/images/episode*.png"))


def test_jobs_of_one_process_have_a_run_each(tiny, no_account, tmp_path):
    for name in ("one", "two"):
        _, folder = run(tiny, "logger=wandb", f"paths.output_dir={tmp_path / name}")
        assert len(list(folder.glob("wandb/offline-run-*"))) == 1


def test_jobs_of_a_sweep_are_grouped_and_named(tiny, no_account, tmp_path):
    shared = [o for o in tiny if not o.startswith("paths.output_dir")]
    typed = ["data.shots=1,2", *shared, "logger=wandb", f"paths.log_dir={tmp_path}"]
    environment = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}
    subprocess.run(
        [sys.executable, CONFIGS.parent / "train.py", "-m", *typed],
        cwd=CONFIGS.parent,
        env=environment | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"},
        check=True,
        capture_output=True,
        timeout=300,
    )
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


def test_a_tracker_that_is_not_installed(tiny, monkeypatch):
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", False)
    with pytest.raises(metadraw.InputError, match=r"metadraw\[wandb,tensorboard\]"):
        run(tiny, "logger=wandb")


def test_what_env_holds_is_in_no_file_and_not_printed(tiny, tmp_path):
    """A project folder whose .env has keys, as a user's own."""
    project = tmp_path / "project"
    project.mkdir()
    shutil.copy(ROOT / "train.py", project)
    (project / "configs").symlink_to(ROOT / "configs")
    secrets = ["0123456789abcdef" * 2 + "01234567", "a-database-password"]
    (project / ".env").write_text(f"WANDB_API_KEY={secrets[0]}\nPASSWORD={secrets[1]}\n")
    folder = tmp_path / "of_env"
    shared = [o for o in tiny if not o.startswith("paths.")]
    command = [sys.executable, "train.py", *shared, "logger=wandb", f"hydra.run.dir={folder}"]
    environment = ENVIRONMENT | {"WANDB_MODE": "offline"}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    for secret in secrets:
        assert secret.encode() not in done.stdout + done.stderr
        assert not [path for path in files if secret.encode() in path.read_bytes()]
