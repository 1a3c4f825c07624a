"""Benchmarks: what they compare is the same, and what cannot be run here says so."""

import importlib
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from points import ENVIRONMENT, HANGS

import metadraw
from metadraw.training.factory import build_learner

RESULTS = ROOT / "benchmarks" / "results"


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
@pytest.mark.parametrize("parts", [[], ["data.source=npm", "--parts", "steps"]])
def test_no_gpu_is_one_line(parts):
    before = {file: file.read_bytes() for file in RESULTS.glob("*")}
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "gpu.py", *parts],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=HANGS,
    )
    assert done.returncode == 1
    assert done.stderr == "there is no NVIDIA GPU that PyTorch can use: nothing was measured\n"
    assert {file: file.read_bytes() for file in RESULTS.glob("*")} == before


def test_the_plain_loop_that_is_measured_computes_the_same(monkeypatch, make_sampler):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import speed

    learner = build_learner(metadraw.compose("algorithm.inner_steps=2", *speed.PLAIN)).double()
    batch = make_sampler()(torch.arange(2)).to(torch.float64)
    expected, _ = learner.meta_gradients(batch)
    network = speed.whole_network(learner.algorithm)
    parts = [speed.maml_by_loop(network, learner.algorithm, batch.task(t)) for t in range(2)]
    for gradient, mean in zip(expected.values(), zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(torch.stack(mean).mean(0), gradient, rtol=1e-9, atol=1e-12)


def test_the_frontier_in_small(monkeypatch, synthetic_folder, tmp_path):
    """Its plan composes; two runs, the second on the network of the first, make its tables."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import frontier

    monkeypatch.setattr(frontier, "LOGS", tmp_path / "logs")
    monkeypatch.setattr(frontier, "OUT", tmp_path / "results" / "frontier")
    monkeypatch.setattr(frontier, "TESTED", ["data.queries=2", "data.test_batches=1"])
    runs = frontier.planned()
    assert len({run.folder for run in runs}) == len(runs) == 3 * (3 + 2 * 5)
    for run in runs:
        metadraw.compose(*run.settings)
    ordinary, *_, frozen = (run for run in runs[:3])
    small = ["model.hidden_channels=4", "data.source=path", f"data.path={synthetic_folder}"]
    small += ["data.samples_per_class=20", "data.tasks_per_batch=4"]
    short = ["data.train_batches=2", "data.val_batches=1", "callbacks.progress_bar.refresh_rate=0"]
    monkeypatch.setattr(frontier, "SETTINGS", [(5, 1), (10, 5)])
    cheap = [o for o in ordinary.settings if "max_epochs" not in o]
    ordinary = ordinary._replace(settings=[*cheap, "trainer.max_epochs=1", *short])
    for run in (ordinary, frozen._replace(after=ordinary)):
        line = frontier.finish(run, small)
        assert line.startswith(f"{run.folder.name}: "), line
        assert line.endswith(" %"), line
        assert frontier.finish(run, small) == line  # nothing is done again
    frontier.write(runs, "COMMAND")
    text = (tmp_path / "results" / "frontier.md").read_text()
    assert text.count("| Conv4-20 | pre-trained | SimpleShot |") == 2
    assert text.count("| Conv4-20 | pre-trained | RFS |") == 4
    # The difference is that of the means, though paired.
    means = [frontier.found(run, 10, 5, "alone")["acc"] for run in (frozen, ordinary)]
    shown = frontier.difference(frozen, ordinary, 10, 5, "alone")
    assert float(shown.split(" ±")[0]) == pytest.approx(100 * (means[0] - means[1]), abs=0.06)
    assert "Not finished: Conv4-20_pre-trained_Baseline++, " in text
    assert (tmp_path / "results" / "frontier.csv").read_text().count("\n") == 1 + 2 * 2 * 2
    assert (tmp_path / "results" / "frontier.png").stat().st_size > 1000


@pytest.fixture
def study_in(monkeypatch, tmp_path):
    """Import a study of benchmarks/, with its folders elsewhere and other settings."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))

    def load(name, **settings):
        study = importlib.import_module(name)
        folders = {"LOGS": tmp_path / "logs", "OUT": tmp_path / "results" / name}
        for key, value in {**folders, **settings}.items():
            monkeypatch.setattr(study, key, value)
        return study

    return load


SHORT = ["data.train_batches=2", "trainer.max_epochs=1", "data.val_batches=1"]
SHORT += ["data.test_batches=1", "callbacks.progress_bar.refresh_rate=0"]


def test_sinusoids_in_small(study_in, tmp_path):
    study = study_in("sinusoids", TASKS=20, SHOTS=(5, 10), RATES=(0.01, 0.5))
    errors, rates = study.study(SHORT)
    assert rates == {5: 0.01, 10: 0.01}  # the other is far too large
    path = tmp_path / "logs" / "MAML" / "checkpoints" / "best.ckpt"
    data, learner = metadraw.load(path, *study.tested(5), "algorithm.eval_inner_steps=10")
    batch = data.episodes("test")(torch.arange(20))
    for step, outputs in zip((0, 10), learner.evaluate(batch), strict=True):
        expected = (outputs - batch.query.y).square().mean(dim=(1, 2))
        torch.testing.assert_close(errors["MAML", 5][:, step], expected)
    study.write(errors, rates, "COMMAND")
    study.draw(errors, rates)
    text = (tmp_path / "results" / "sinusoids.md").read_text()
    assert f"| 5 | MAML | {errors['MAML', 5][:, 0].mean():.3f} ± " in text
    assert "2 outer steps on 25 tasks each" in text
    assert (tmp_path / "results" / "sinusoids.csv").read_text().count("\n") == 1 + 2 * (2 * 11 + 1)
    assert (tmp_path / "results" / "sinusoids.png").stat().st_size > 10_000


def test_navigation_in_small(study_in, tmp_path):
    study = study_in("navigation", TASKS=8, ROLLOUTS=5, RATES=(0.1,))
    short = [*SHORT, "data.horizon=5", "data.shots=5", "data.tasks_per_batch=4"]
    returns, rates = study.study(short)
    again, _ = study.study(short)  # nothing is trained again
    assert all(torch.equal(returns[name], again[name]) for name in returns)
    study.write(returns, rates, "COMMAND")
    study.draw(returns, rates)
    text = (tmp_path / "results" / "navigation.md").read_text()
    assert f"| MAML | {returns['MAML'][:, 0].mean():.2f} ± " in text
    assert (tmp_path / "results" / "navigation.csv").read_text().count("\n") == 1 + 3 * 4 + 1
    assert (tmp_path / "results" / "navigation.png").stat().st_size > 10_000


def test_completion_in_small(study_in, synthetic_folder, tmp_path):
    study = study_in("completion", TASKS=5, PICTURES=2, SHOTS=(20, 784))
    drawings = {"source": "path", "path": synthetic_folder, "samples_per_class": 20}
    errors = study.study([*SHORT, *(f"data.drawings.{k}={v}" for k, v in drawings.items())])
    # The nearest of all pixels is the pixel itself.
    assert errors["nearest", 784].max() == 0 < errors["nearest", 20].min()
    study.write(errors, "COMMAND")
    study.draw()
    text = (tmp_path / "results" / "completion.md").read_text()
    assert f"| MAML, adapted | {errors['after', 20].mean():.4f} ± " in text
    assert (tmp_path / "results" / "completion.png").stat().st_size > 10_000
