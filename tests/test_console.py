"""What a run prints to a terminal and a file, and its name."""

import csv
import fcntl
import json
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import torch
from conftest import ENVIRONMENT, ROOT

import metadraw
from metadraw.command.names import name_of_sweep
from metadraw.results import record
from metadraw.training.evaluate import evaluate
from metadraw.training.train import make_trainer, train

LINE = re.compile(
    r"epoch +(?P<epoch>\d+)/(?P<epochs>\d+)  train +(?P<train>[\d.]+)"
    r"(  val +(?P<val>[\d.]+)( ± (?P<half>[\d.]+))?  (?P<best>best|    ))?  (?P<seconds>[\d.]+) s"
)


def run(tiny, *overrides):
    cfg = metadraw.compose(*tiny, *overrides)
    return train(cfg), Path(cfg.paths.output_dir)


def rows(folder):
    with open(folder / "metrics.csv") as file:
        return list(csv.DictReader(file))


def epoch_lines(text):
    return [match.groupdict() for match in map(LINE.fullmatch, text.splitlines()) if match]


def test_one_line_an_epoch_says_what_the_curves_say(tiny, caplog):
    caplog.set_level(logging.INFO)
    _, folder = run(tiny, "trainer.max_epochs=4", "optimizer.lr=0.03", "scheduler=cosine")
    lines, curves = epoch_lines("\n".join(caplog.messages)), rows(folder)
    assert [line["epoch"] for line in lines] == [row["epoch"] for row in curves] == list("1234")
    best = 0.0
    for line, row in zip(lines, curves, strict=True):
        assert line["epochs"] == "4"
        assert float(line["train"]) == pytest.approx(100 * float(row["train/acc"]), abs=0.051)
        assert float(line["val"]) == pytest.approx(100 * float(row["val/acc"]), abs=0.051)
        assert float(line["half"]) == pytest.approx(100 * float(row["val/acc_ci95"]), abs=0.051)
        assert (line["best"] == "best") == (float(row["val/acc"]) > best)
        best = max(best, float(row["val/acc"]))
        assert float(line["seconds"]) == pytest.approx(float(row["seconds"]), abs=0.51)
    cosine = [0.03 * (1 + torch.tensor(torch.pi * e / 4).cos().item()) / 2 for e in range(4)]
    assert [float(row["lr"]) for row in curves] == pytest.approx(cosine, rel=1e-5)


def test_an_epoch_without_validation_has_no_val(tiny, caplog):
    caplog.set_level(logging.INFO)
    run(tiny, "+trainer.check_val_every_n_epoch=2")
    first, second = epoch_lines("\n".join(caplog.messages))
    assert first["val"] is None
    assert second["best"] == "best"


def test_a_resumed_run_knows_what_was_best(tiny, tmp_path, caplog):
    _, folder = run(tiny, "trainer.max_epochs=1")
    caplog.set_level(logging.INFO)
    last = folder / "checkpoints" / "last.ckpt"
    again = [f"ckpt_path={last}", f"paths.output_dir={tmp_path / 'on'}", "optimizer.lr=0"]
    run(tiny, *again)  # nothing changes, so nothing improves
    (line,) = epoch_lines("\n".join(caplog.messages))
    assert (line["epoch"], line["best"]) == ("2", "    ")


@pytest.mark.parametrize(
    "off",
    [
        ["callbacks.progress_bar=null"],
        ["+trainer.enable_progress_bar=false"],
        ["~callbacks.progress_bar"],
        ["~callbacks"],
    ],
)
def test_the_bar_is_simply_off(tiny, off):
    tiny = [o for o in tiny if "progress_bar" not in o]
    for overrides, shown in ((tiny, True), ([*tiny, *off], False)):
        cfg = metadraw.compose(*overrides)
        trainer = make_trainer(cfg, metadraw.build(cfg)[1])
        assert (trainer.progress_bar_callback is not None) == shown


def test_no_path_that_is_not_there(tiny, caplog):
    caplog.set_level(logging.INFO)
    run(tiny, "~callbacks.curves")
    named = re.findall(r"^\w+: (/.*)$", "\n".join(caplog.messages), re.MULTILINE)
    assert named
    assert all(Path(path).exists() for path in named)


def on_a_terminal(command):
    """What a command writes to a terminal of 100 columns, and its exit status."""
    process, terminal = pty.fork()
    if process == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        os.chdir(ROOT)
        os.execve(command[0], command, ENVIRONMENT)
    written = b""
    try:
        while part := os.read(terminal, 65536):
            written += part
    except OSError:  # Linux's sign that the other end is closed
        pass
    return written.decode(), os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def seen(written):
    """The lines that stay on a terminal: a carriage return restarts a line, ESC [A goes up."""
    screen, row, column = [[]], 0, 0
    for part in re.findall(r"\x1b\[A|\r|\n|[^\x1b\r\n]+", written):
        if part == "\r":
            column = 0
        elif part == "\n":
            row += 1
            screen += [[] for _ in range(row + 1 - len(screen))]
        elif part == "\x1b[A":
            row -= 1
        else:
            line = screen[row] + [" "] * (column - len(screen[row]))
            screen[row] = [*line[:column], *part, *line[column + len(part) :]]
            column += len(part)
    return [text for line in screen if (text := "".join(line).strip())]


NOISE = ("INFO", "available", "Tip", "warn", "Restoring", "Loaded", "stopped:", "it/s", "|")


def test_what_stays_on_a_terminal_is_what_stands_in_the_log(tiny, tmp_path):
    """Training and a repeated test show a bar while they run, and leave nothing of it."""
    shared = [o for o in tiny if not o.startswith("paths.") and "progress_bar" not in o]
    folder, again = tmp_path / "terminal", tmp_path / "again"
    typed = [sys.executable, "train.py", *shared, f"hydra.run.dir={folder}"]
    written, status = on_a_terminal(typed)
    assert status == 0, written
    assert "epoch 2/2: " in written  # the bar
    lines = seen(written)
    log = (folder / "train.log").read_text().splitlines()
    shown = [line for line in lines if line in log or line[:99] in "".join(log)]
    assert shown == lines
    assert len(epoch_lines("\n".join(lines))) == 2
    test = [sys.executable, "eval.py", f"ckpt_path={folder}/checkpoints/best.ckpt", "trainer=cpu"]
    written, status = on_a_terminal([*test, f"hydra.run.dir={again}"])
    assert status == 0, written
    assert "Testing" in written
    assert seen(written)[-1] == f"results: {again}/results.json"
    for text in ["\n".join(lines), "\n".join(seen(written))]:
        assert not [word for word in NOISE if word in text], text


# ---- what a run is called, and what it was made of --------------------------------------------


def test_results_name_the_algorithm_as_it_was_chosen(tiny, tmp_path):
    """maml and fomaml are one class."""
    called = ["tags=[first,try]", "notes=a longer text"]
    found, folder = run(tiny, "algorithm=fomaml", *called, "trainer.max_epochs=1")
    assert found["algorithm"] == found["config"]["algorithm_name"] == "fomaml"
    assert (found["tags"], found["notes"]) == (["first", "try"], "a longer text")
    network = metadraw.build(metadraw.compose(*tiny))[1].algorithm.network
    head = 4 * 5 + 5
    count = head + sum(parameter.numel() for parameter in network.parameters())
    assert found["parameters"] == {"total": count, "meta_trained": count}
    again = metadraw.compose(
        f"ckpt_path={folder}/checkpoints/best.ckpt",
        "trainer=cpu",
        f"paths.output_dir={tmp_path / 'again'}",
        config="eval",
    )
    assert evaluate(again)["algorithm"] == "fomaml"
    # Neither makes it another run: this one is finished.
    found, _ = run(tiny, "algorithm=fomaml", "notes=another", "trainer.max_epochs=1")
    assert found["notes"] == "a longer text"


def test_the_name_of_an_algorithm_in_an_experiment():
    assert metadraw.compose("experiment=best").algorithm_name == "simple_shot"
    assert metadraw.compose("algorithm_name=mine").algorithm_name == "mine"


def test_the_commit_is_that_of_the_source(tmp_path, monkeypatch):
    def git(*command):
        return subprocess.run(["git", "-C", ROOT, *command], capture_output=True, text=True)

    head = git("rev-parse", "HEAD")
    if head.returncode:
        assert record.git() is None
        return
    changes = git("status", "--porcelain").stdout
    assert record.git() == {"commit": head.stdout.strip(), "dirty": bool(changes.strip())}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert record.git() is None


def test_metric_based_algorithms_have_no_inner_loop(tiny_for, caplog):
    caplog.set_level(logging.INFO)
    found, _ = run(tiny_for("protonet"), "trainer.max_epochs=1")
    assert found["test"]["inner_steps"] == 0
    assert "8 tasks, no inner loop, " in caplog.text


def test_a_search_has_a_folder_of_its_own():
    typed = ["data.shots=5", "sweep=optuna"]
    search = name_of_sweep(typed, {"hydra/sweeper": "optuna"})
    plain = name_of_sweep(typed[:1], {"hydra/sweeper": "basic"})
    assert search != plain
    # The launcher is not part of a sweep's identity.
    assert name_of_sweep(["data.shots=5", "sweep=joblib"], {"hydra/sweeper": "basic"}) == plain


# ---- two experiments for finding faults -------------------------------------------------------


def test_debug_leaves_everything_behind(tiny):
    kept = [o for o in tiny if o.startswith(("data.source", "data.path", "data.samples", "paths."))]
    found, folder = run([], "experiment=debug", *kept)
    assert found["train"] == found["train"] | {"epochs": 1, "outer_steps": 2}
    for name in ("results.json", "tasks.csv", "curves.png", "episode.png", "checkpoints/last.ckpt"):
        assert (folder / name).exists()
    assert not torch.is_anomaly_enabled()


def test_overfit_sees_the_same_tasks_and_learns_them(tiny):
    kept = [o for o in tiny if o.startswith(("data.source", "data.path", "data.samples", "paths."))]
    small = ["trainer=cpu", "model.hidden_channels=8", "algorithm.inner_steps=2"]
    small += ["trainer.max_epochs=4", "data.train_batches=6"]
    cfg = metadraw.compose("experiment=overfit", *kept, *small)
    data, _ = metadraw.build(cfg)
    batches = [batch.number.tolist() for batch in data.train_dataloader()]
    assert batches == [list(range(8))] * cfg.data.train_batches
    train(cfg)
    losses = [float(row["train/loss"]) for row in rows(Path(cfg.paths.output_dir))]
    assert losses[-1] < 0.7 * losses[0], losses
    assert json.loads((Path(cfg.paths.output_dir) / "results.json").read_text())["test"]["tasks"]


def test_a_number_of_tasks_that_no_batch_divides(tiny_learner):
    data, _ = tiny_learner("data.train_tasks=3", "data.tasks_per_batch=2")
    assert [batch.number.tolist() for batch in data.train_dataloader()] == [[0, 1], [2, 0], [1, 2]]
    assert next(iter(data.val_dataloader())).number.tolist() == [0, 1]
