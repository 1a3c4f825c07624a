"""Sweeps: repeated commands resume them, a failed job affects no other, and their report."""

import csv
import json
import os
import signal
from itertools import product

import points
import pytest
from conftest import run
from omegaconf import OmegaConf

import metadraw
from metadraw.command.names import name_of
from metadraw.errors import InputError
from metadraw.results.published import published, published_curves, setting_of
from metadraw.results.report import report
from metadraw.results.sweep import read_sweep
from metadraw.training.evaluate import evaluate
from metadraw.training.train import save_config, train


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
    within = "run 2, epoch 2: on_train_batch_start (1)"
    assert points.end_at([within], points.kill, typed, folder).returncode == -signal.SIGKILL
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

    train(metadraw.compose(*tiny, "data.shots=2"))
    (reference,), second = read_sweep(tmp_path), read_sweep(folder)[1]
    for part in ("test", "val"):
        found = {k: v for k, v in second.results[part].items() if "second" not in k}
        expected = {k: v for k, v in reference.results[part].items() if "second" not in k}
        assert found == expected

    def curves(job):
        return [{k: v for k, v in row.items() if k != "seconds"} for row in job.curves]

    assert curves(second) == curves(reference)


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


# ---- the report, on folders written here: no figure in them is measured ----------------------


def write_job(folder, overrides, *, epochs, acc=None, error=None):
    run = folder / name_of(overrides)
    (run / ".hydra").mkdir(parents=True)
    (run / ".hydra" / "overrides.yaml").write_text("".join(f"- {o}\n" for o in overrides))
    save_config(metadraw.compose(*overrides, f"paths.output_dir={run}"), run)
    with (run / "metrics.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["epoch", "val/acc", "val/loss", "inner_lr/all", "seconds"])
        for epoch in range(epochs):
            rows.writerow([epoch + 1.0, 0.5 + epoch / 1000, 1.0, "", 2.0])
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
    assert first["train_seconds"] == "100.0"
    with (tmp_path / "out" / "curves.csv").open() as file:
        assert sum(1 for _ in csv.DictReader(file)) == 115
    report(tmp_path, tmp_path / "again")
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


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


def test_seeds_alone_are_one_column(tmp_path):
    """As from ``train.py -m seed=1,2,3``: their mean and standard deviation, and one curve."""
    for seed, acc in ((1, 0.5), (2, 0.6), (3, 0.7)):
        write_job(tmp_path, [f"seed={seed}", "data.shots=2"], epochs=2, acc=acc)
    text = report(tmp_path, tmp_path / "out")
    assert "| accuracy |\n| --- |\n| 60.0, sd 10.0 of 3 seeds |" in text
    assert "Several seeds: their mean and standard deviation." in text
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"curves.png"}
    text = report(tmp_path, tmp_path / "out", column="seed")
    assert "| seed=1 | seed=2 | seed=3 |" in text


def test_a_single_run_is_one_column(tmp_path):
    write_job(tmp_path, ["data.shots=2"], epochs=2, acc=0.5)
    assert "| accuracy |\n| --- |\n| 50.0 ± 1.0 |" in report(tmp_path, tmp_path / "out")


def test_what_was_not_typed_is_what_the_config_has(tmp_path):
    write_job(tmp_path, ["learner.query_statistics=support"], epochs=2, acc=0.5)
    write_job(tmp_path, ["optimizer.lr=0.001"], epochs=2, acc=0.6)
    text = report(tmp_path, tmp_path / "out", column="learner.query_statistics")
    assert "| learner.query_statistics=support | learner.query_statistics=query |" in text.replace(
        "optimizer.lr | ", ""
    )


@pytest.mark.parametrize(
    ("overrides", "setting"),
    [
        (["experiment=report_100"], (100, 5, 1)),
        (["experiment=report_20", "data.ways=10", "data.shots=10"], (20, 10, 10)),
        # The defaults are its settings; device, source of drawings and seed may differ.
        (["seed=7", "data.source=npm", "data.drawings_seed=3", "data.eval_seed=1"], (100, 5, 1)),
        (["trainer=ddp", "learner.recompute_steps=true", "model.fused=false"], (100, 5, 1)),
        (["callbacks.progress_bar.refresh_rate=0", "learner.tasks_per_chunk=5"], (100, 5, 1)),
        (["+callbacks.best.save_on_train_epoch_end=true"], (100, 5, 1)),  # runs of older versions
        *(
            ([override], None)
            for override in (
                "data.shots=2",
                "data.queries=5",
                "data.samples_per_class=50",
                "data.train_samples_per_class=20",  # with the rates of 100
                "data.split_seed=1",
                "data.classes=[cat,dog,bird]",
                "data.tasks_per_batch=10",
                "data.train_batches=3",
                "data.val_batches=3",
                "data.test_batches=3",
                "data.mirror=true",
                "data.shift=1",
                "data.new_classes=rotations",
                "data=image_folder",
                "model.hidden_channels=64",
                "model.norm=layer",
                "algorithm=fomaml",
                "algorithm.first_order=true",
                "algorithm.inner_lr=0.1",
                "algorithm.inner_steps=1",
                "algorithm.eval_inner_steps=10",
                "optimizer=sgd",
                "optimizer.lr=0.003",
                "+optimizer.weight_decay=0.1",
                "scheduler=cosine",
                "learner.query_statistics=support",
                "learner.gradient_clip_norm=1",
                "trainer.max_epochs=5",
                "trainer.precision=64-true",
                "+trainer.limit_train_batches=3",
                "callbacks=early_stopping",
                "callbacks.best.monitor=val/loss",
                "experiment=best_conv4",
                "experiment=quickstart",
                "data.train_tasks=8",
                "data.exclude_classes=[cat]",
            )
        ),
    ],
)
def test_published_figures_stand_beside_the_reports_settings_alone(tmp_path, overrides, setting):
    needed = ["data.path=x"] if "data=image_folder" in overrides else []
    cfg = metadraw.compose(*overrides, *needed, f"paths.output_dir={tmp_path}")
    save_config(cfg, tmp_path)
    config = OmegaConf.to_container(OmegaConf.load(tmp_path / "config.yaml"))
    assert setting_of(config) == setting


def test_a_cell_of_other_settings_has_no_published_figure(tmp_path):
    write_job(tmp_path, ["seed=1"], epochs=2, acc=0.5)
    write_job(tmp_path, ["seed=2"], epochs=2, acc=0.5)
    assert "sd 0.0 of 2 seeds (68.3) |" in report(tmp_path, tmp_path / "out")
    write_job(tmp_path, ["seed=3", "data.train_batches=3"], epochs=2, acc=0.5)
    text = report(tmp_path, tmp_path / "out")
    assert "| 50.0 ± 1.0 | 50.0, sd 0.0 of 2 seeds (68.3) |" in text


def test_numbers_stand_in_their_order_and_words_as_the_runs_came(tmp_path):
    for ways, shots, algorithm in product(("10", "5"), ("10", "5", "1"), ("maml", "anil")):
        overrides = [f"algorithm={algorithm}", f"data.ways={ways}", f"data.shots={shots}"]
        write_job(tmp_path, overrides, epochs=0)
    for place, path in enumerate(sorted(tmp_path.glob("*/config.yaml"), reverse=True)):
        os.utime(path, (place, place))  # the order in which they began
    lines = report(tmp_path, tmp_path / "out", column="data.shots").splitlines()
    shots = [f"data.shots={shots}" for shots in (1, 5, 10)]
    assert lines[0] == f"| algorithm | data.ways | {' | '.join(shots)} |"
    rows = [tuple(line.split(" | ")[:2]) for line in lines[2:6]]
    assert rows == [("| maml", "5"), ("| maml", "10"), ("| anil", "5"), ("| anil", "10")]


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


def test_tests_of_a_checkpoint_over_a_grid(checkpoint_of, tmp_path):
    """A sweep of eval.py: a table and a heat map of the accuracies."""
    found = {}
    for ways, shots in product((3, 5), (1, 2)):
        own = [f"data.ways={ways}", f"data.shots={shots}"]
        folder = tmp_path / "sweep" / f"{ways}-{shots}"
        common = [f"ckpt_path={checkpoint_of('protonet')}", "data.test_batches=1", "trainer=cpu"]
        cfg = metadraw.compose(*common, *own, f"paths.output_dir={folder}", config="eval")
        found[ways, shots] = evaluate(cfg)["test"]["acc"]
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {o}\n" for o in own))
    text = report(tmp_path / "sweep", tmp_path / "report")
    assert "| data.ways | data.shots=1 | data.shots=2 |" in text
    assert "4 of 4 runs are finished" in text
    row = next(line for line in text.splitlines() if line.startswith("| 5 | "))
    assert [cell.split(" ±")[0] for cell in row.strip("| ").split(" | ")[1:]] == [
        f"{100 * found[5, shots]:.1f}" for shots in (1, 2)
    ]
    assert "![Meta-test results over the grid of settings](grid.png)" in text
    assert (tmp_path / "report" / "grid.png").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp"])
def test_jobs_of_several_processes(sweep, strategy):
    """Each job has its own folder and is tested, and the next one starts from scratch."""
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
        for name in ("epochs", "outer_steps"):
            assert job.results["train"][name] == reference.results["train"][name]
        assert job.results["train"]["seconds_with_validation"] > 0
