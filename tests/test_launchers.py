"""Sweeps beyond one process, one for each launcher."""

import os

import pytest
from conftest import run

import metadraw
from metadraw.results.sweep import read_sweep
from metadraw.training.train import train


def losses(folder):
    jobs = read_sweep(folder)
    assert [job.status for job in jobs] == ["finished"] * len(jobs)
    return {job.overrides["data.shots"]: job.results["test"]["loss"] for job in jobs}


@pytest.fixture
def alone(tiny, tmp_path):
    """The losses of the same jobs, one after the other in this process."""
    found = {}
    for shots in ("1", "2"):
        output = f"paths.output_dir={tmp_path / shots}"
        found[shots] = train(metadraw.compose(*tiny, f"data.shots={shots}", output))["test"]["loss"]
    return found


@pytest.mark.slow
def test_joblib_divides_the_cores(sweep, alone):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    typed, folder = sweep("data.shots=1,2", "sweep=joblib")
    done = run(typed)
    assert done.returncode == 0, done.stderr
    # With more threads, sums have another order.
    assert losses(folder) == pytest.approx(alone, rel=1e-3)
    threads = {job.results["machine"]["threads"] for job in read_sweep(folder)}
    assert threads == {max(1, (os.cpu_count() or 1) // 2)}


@pytest.mark.slow
def test_submitit_leaves_the_same(sweep, alone):
    """With its local executor, which is like Slurm's."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    typed, folder = sweep("data.shots=1,2", "hydra/launcher=submitit_local")
    done = run(typed)
    assert done.returncode == 0, done.stderr
    assert losses(folder) == alone


def test_slurm_settings_are_known(sweep):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    typed, _ = sweep("sweep=slurm")
    done = run([*typed[:2], *typed[3:], "--cfg", "hydra"])
    assert done.returncode == 0, done.stderr
    assert "submitit_launcher.SlurmLauncher" in done.stdout


@pytest.mark.slow
def test_ray(sweep, alone):
    pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    typed, folder = sweep("data.shots=1,2", "sweep=ray")
    done = run(typed)
    assert done.returncode == 0, done.stderr
    assert losses(folder) == alone


@pytest.mark.slow
def test_optuna_goes_on_with_its_study(sweep):
    optuna = pytest.importorskip("optuna")
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    typed, folder = sweep("sweep=optuna", "hydra.sweeper.n_trials=1")
    for trials in (1, 2):
        done = run(typed)
        assert done.returncode == 0, done.stderr
        storage = f"sqlite:///{folder}/study.db"
        (study,) = optuna.get_all_study_summaries(storage)
        assert study.n_trials == trials
        jobs = [job for job in read_sweep(folder) if job.results]
        assert len(jobs) == trials
        best = max(job.results["val"]["acc"] for job in jobs)
        assert study.best_trial.value == pytest.approx(best)
        assert set(study.best_trial.params) == {"algorithm.inner_lr", "optimizer.lr"}
