"""Sweeps beyond one process, each on an engine of its own."""

import os

import pytest
from conftest import run

from metadraw.sweep import read_sweep


def losses(folder):
    jobs = read_sweep(folder)
    assert [job.status for job in jobs] == ["finished"] * len(jobs)
    return {job.overrides["data.shots"]: job.results["test"]["loss"] for job in jobs}


def test_the_same_by_any_launcher(sweep):
    """One after the other, by joblib, and by submitit with its local executor: Slurm's is alike."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    found = {}
    for how in ("hydra/launcher=basic", "sweep=joblib", "hydra/launcher=submitit_local"):
        typed, folder = sweep("data.shots=1,2", how, name=how.rpartition("=")[2])
        done = run(typed)
        assert done.returncode == 0, done.stderr
        found[how] = losses(folder)
        if how == "sweep=joblib":  # divides the cores
            threads = {job.results["machine"]["threads"] for job in read_sweep(folder)}
            assert threads == {max(1, (os.cpu_count() or 1) // 2)}
    first, *others = found.values()
    assert others == [first, first]


def test_slurm_settings_are_known(sweep):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    typed, _ = sweep("sweep=slurm")
    done = run([*typed[:2], *typed[3:], "--cfg", "hydra"])
    assert done.returncode == 0, done.stderr
    assert "submitit_launcher.SlurmLauncher" in done.stdout


@pytest.mark.slow
def test_ray(sweep):
    pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    typed, folder = sweep("data.shots=1,2", "sweep=ray")
    done = run(typed)
    assert done.returncode == 0, done.stderr
    typed, alone = sweep("data.shots=1,2", name="alone")
    assert run(typed).returncode == 0
    assert losses(folder) == losses(alone)


def test_optuna_goes_on_with_its_study(sweep):
    optuna = pytest.importorskip("optuna")
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    typed, folder = sweep("sweep=optuna", "hydra.sweeper.n_trials=2")
    for trials in (2, 4):
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
