"""Sweeps: typed again they go on, one failed job is no other's problem, and their report."""

import csv
import json
import signal

import pytest
from children import Strike, run, send

import metadraw
from metadraw.errors import InputError
from metadraw.names import name_of
from metadraw.report import published, published_curves, report
from metadraw.sweep import read_sweep
from metadraw.train import train


def times_aside(curves):
    return [{key: value for key, value in row.items() if "second" not in key} for row in curves]


def test_names():
    assert name_of(["algorithm=maml,anil", "data.shots=5"]) == "algorithm-maml+anil__data.shots-5"
    assert name_of([]) == "defaults"
    long = [f"data.path=/a/{'b' * 300}/{i}" for i in range(2)]
    assert name_of(long[:1]) != name_of(long[1:])
    assert len(name_of(long)) < 140
    assert set(name_of(["~a.b", "+c='x y'", "d=[1,2]"])) <= set(
        "abcdefghijklmnopqrstuvwxyz0123456789.+-_"
    )


def test_killed_sweep_goes_on(sweep, tiny, tmp_path):
    """One job finished, one half-finished, one not begun; then the same command again."""
    typed, folder = sweep("data.shots=1,2,3")
    # Two epochs of three steps in the first job, and one in the second.
    killed = run(typed, Strike("training_step", send(signal.SIGKILL), nth=6 + 3 + 2))
    assert killed.returncode == -signal.SIGKILL, killed
    first, second, third = read_sweep(folder)
    assert first.status == "finished"
    assert len(second.curves) == 1
    assert second.results is None
    assert third.status == "not begun"
    text = report(folder, folder / "report", column="data.shots")
    assert "1 of 3 runs are finished" in text
    assert "data.shots=3: not begun" in text

    written = (first.folder / "results.json").stat().st_mtime_ns
    done = run(typed)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("already finished") == 1
    assert done.stdout.count("resumed from") == 1
    assert (first.folder / "results.json").stat().st_mtime_ns == written

    uninterrupted = [f"paths.output_dir={tmp_path / 'run'}", "data.shots=2"]
    train(metadraw.compose(*tiny, *uninterrupted))
    (reference,), second = read_sweep(tmp_path), read_sweep(folder)[1]
    for part in ("test", "val"):
        found = {k: v for k, v in second.results[part].items() if "second" not in k}
        expected = {k: v for k, v in reference.results[part].items() if "second" not in k}
        assert found == expected
    assert times_aside(second.curves) == times_aside(reference.curves)


def test_a_failed_job_does_not_take_the_others_down(sweep):
    typed, folder = sweep("data.shots=30,1")
    done = run(typed)
    assert done.returncode == 1
    assert "error: data.shots=30" in done.stdout
    failed, finished = sorted(read_sweep(folder), key=lambda job: job.status != "finished")[::-1]
    assert finished.status == "finished"
    assert failed.status.startswith("failed: data.shots=30")
    text = report(folder, folder / "report")
    assert "1 of 2 runs are finished" in text
    assert "data.shots=30: failed: data.shots=30" in text


def test_a_folder_of_another_run_is_refused(tiny):
    train(metadraw.compose(*tiny))
    with pytest.raises(InputError, match=r"run with data\.shots=1, this one has data\.shots=2"):
        train(metadraw.compose(*tiny, "data.shots=2", "data.queries=1"))
    again = train(metadraw.compose(*tiny, "trainer.devices=1"))
    assert again["test"]["tasks"] == 8


# ---- the report, of folders written here: no figure in them is measured ----------------------


def write_job(folder, overrides, *, epochs, acc=None, error=None, samples=100):
    typed = dict(o.split("=") for o in overrides)
    ways, shots = int(typed.get("data.ways", 5)), int(typed.get("data.shots", 1))
    run = folder / name_of(overrides)
    (run / ".hydra").mkdir(parents=True)
    (run / ".hydra" / "overrides.yaml").write_text("".join(f"- {o}\n" for o in overrides))
    (run / "config.yaml").write_text(
        "data:\n  _target_: metadraw.data.quickdraw.QuickDraw\n"
        f"  ways: {ways}\n  shots: {shots}\n  queries: {shots}\n  samples_per_class: 100\n"
        f"  train_samples_per_class: {samples if samples != 100 else 'null'}\n"
        "trainer:\n  max_epochs: 50\n"
    )
    with (run / "metrics.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["epoch", "val/acc", "val/loss", "inner_lr/all"])
        for epoch in range(epochs):
            rows.writerow([epoch + 1.0, 0.5 + epoch / 1000, 1.0, ""])
    if error:
        (run / "error.txt").write_text(error)
    if acc is not None:
        test = {"acc": acc, "acc_ci95": 0.01, "precision": 0.5, "loss": 1.0, "acc_before": 0.2}
        results = {
            "test": test | {"tasks": 2500},
            "val": {"acc": acc},
            "train": {"seconds_with_validation": 1.0},
            "data": {"source": "synthetic", "sha256": "0" * 64},
        }
        (run / "results.json").write_text(json.dumps(results))


def test_table_with_published_figures(tmp_path):
    write_job(tmp_path, ["data.ways=5", "data.shots=1"], epochs=50, acc=0.7)
    write_job(tmp_path, ["data.ways=5", "data.shots=5"], epochs=12)
    write_job(tmp_path, ["data.ways=10", "data.shots=1"], epochs=50, acc=0.45)
    write_job(tmp_path, ["data.ways=10", "data.shots=5"], epochs=3, error="not finite")
    text = report(tmp_path, tmp_path / "out")
    assert "| data.ways | data.shots=1 | data.shots=5 |" in text
    assert "| 5 | 70.0 ± 1.0 (68.3) | 12 of 50 epochs (82.6) |" in text
    assert "| 10 | 45.0 ± 1.0 (50.7) | failed (70.5) |" in text
    assert "2 of 4 runs are finished" in text
    assert "failed: not finite" in text
    names = {path.name for path in (tmp_path / "out").iterdir()}
    figures = {f"curves__{ways}.{kind}" for ways in (5, 10) for kind in ("png", "svg")}
    assert names == figures | {"report.md", "runs.csv", "curves.csv"}
    with (tmp_path / "out" / "runs.csv").open() as file:
        first = next(csv.DictReader(file))
    assert (first["data.ways"], first["test/acc"], first["published/accuracy"]) == (
        "5",
        "0.7",
        "0.6832",
    )
    with (tmp_path / "out" / "curves.csv").open() as file:
        assert sum(1 for _ in csv.DictReader(file)) == 115


def test_columns_rows_and_seeds_are_chosen(tmp_path):
    for seed, accs in {1: (0.5, 0.6), 2: (0.7, 0.6)}.items():
        for algorithm, acc in zip(("maml", "anil"), accs, strict=True):
            overrides = [f"algorithm={algorithm}", "data.shots=2", f"seed={seed}"]
            write_job(tmp_path, overrides, epochs=2, acc=acc)
    text = report(tmp_path, tmp_path / "out")
    assert "| algorithm=maml | algorithm=anil |" in text
    assert "| 60.0, sd 14.1 of 2 seeds | 60.0, sd 0.0 of 2 seeds |" in text
    text = report(tmp_path, tmp_path / "out", rows=["algorithm"], column="seed")
    assert "| algorithm | seed=1 | seed=2 |" in text
    assert "| maml | 50.0 ± 1.0 | 70.0 ± 1.0 |" in text
    with pytest.raises(InputError, match=r"data\.ways: was not overridden .* algorithm"):
        report(tmp_path, tmp_path / "out", rows=["data.ways"])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda run: (run / "results.json").write_text("{"), "results.json: damaged"),
        (lambda run: (run / "metrics.csv").write_text("epoch\nx"), "metrics.csv: damaged"),
        (lambda run: (run / "config.yaml").write_text("a: ["), "config.yaml: damaged"),
    ],
)
def test_damaged_files_are_named(tmp_path, damage, says):
    write_job(tmp_path, ["data.shots=1"], epochs=1, acc=0.5)
    damage(tmp_path / "data.shots-1")
    with pytest.raises(InputError, match=says):
        report(tmp_path, tmp_path / "out")


def test_no_sweep(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        report(tmp_path / "none", tmp_path / "out")
    with pytest.raises(InputError, match="no run folders"):
        report(tmp_path, tmp_path / "out")


def test_what_was_published():
    assert published(20, 10, 10)["accuracy"] == 0.606
    assert published(100, 5, 2) is None
    assert [row["epoch"] for row in published_curves(100, 5, 1)] == list(range(1, 51))


def test_experiments_are_the_reports_settings():
    for name, samples, lr, inner, tasks in (
        ("report_100", None, 0.001, 0.01, 25),
        ("report_20", 20, 0.0005, 0.005, 10),
    ):
        cfg = metadraw.compose(f"experiment={name}", "data.shots=5")
        assert (cfg.data.train_samples_per_class, cfg.data.samples_per_class) == (samples, 100)
        assert (cfg.data.shots, cfg.data.queries, cfg.data.tasks_per_batch) == (5, 5, tasks)
        assert (cfg.optimizer.lr, cfg.algorithm.inner_lr, cfg.algorithm.inner_steps) == (
            lr,
            inner,
            5,
        )
        assert (cfg.algorithm.first_order, cfg.trainer.max_epochs) == (False, 50)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp"])
def test_jobs_of_several_processes(sweep, strategy):
    """Each job has one folder and is tested, and the next one starts afresh."""
    typed, folder = sweep("data.shots=1,2", "trainer=ddp_cpu", f"trainer.strategy={strategy}")
    done = run(typed)
    assert done.returncode == 0, done.stderr
    jobs = read_sweep(folder)
    assert [job.status for job in jobs] == ["finished", "finished"]
    assert len([path for path in folder.iterdir() if path.is_dir()]) == 2
    typed, alone = sweep("data.shots=1,2", name="alone")
    assert run(typed).returncode == 0
    for job, reference in zip(jobs, read_sweep(alone), strict=True):
        assert job.results["test"]["tasks"] == 8
        assert job.results["test"]["acc"] == pytest.approx(reference.results["test"]["acc"])
