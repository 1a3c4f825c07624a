"""Benchmarks: what they compare is the same, and what cannot be run here says so."""

import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from points import ENVIRONMENT, HANGS

import metadraw
from metadraw.training.factory import build_learner
from metadraw.use.classifier import FewShot

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


def test_the_study_of_labels_in_small(monkeypatch, tmp_path):
    """On synthetic features, whose classes are apart: it writes what it measured."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import labels

    random = torch.Generator().manual_seed(0)
    features = [
        torch.randn(256, generator=random) + torch.randn(100, 256, generator=random) * 2
        for _ in range(8)
    ]
    monkeypatch.setattr(labels, "OUT", tmp_path / "labels")
    monkeypatch.setattr(labels, "MOST", 15)
    monkeypatch.setattr(labels, "SHOWN", (10, 15))
    frozen = labels.Frozen(FewShot(labels.SHIPPED))
    made = [labels.make(features, i, labels.POOLS["balanced"]) for i in range(3)]
    # A larger pool of the same task has the same first examples and queries.
    other = labels.make(features, 0, labels.POOLS["unbalanced"])
    assert torch.equal(other.first, made[0].first)
    assert torch.equal(other.query.x, made[0].query.x)
    seen = {tuple(x.tolist()) for x in torch.cat([other.first, other.pool.x])}
    assert not seen & {tuple(x.tolist()) for x in other.query.x}
    found = labels.study(labels.by_strategy, frozen, ["k_center", "random"], made)
    assert found["random"].shape == (3, 3)
    assert torch.equal(found["random"][:, 0], found["k_center"][:, 0])  # the same start
    assert (found["random"][:, -1] > 0.5).all()
    classes = labels.study(labels.by_class, frozen, labels.BY_CLASS, made[:2])
    labels.write("COMMAND", 3, {"balanced": found}, classes)
    text = (tmp_path / "labels.md").read_text()
    shown = 100 * found["k_center"][:, 1].mean()
    assert f"| `k_center` | {shown:.1f} ± " in text
    rows = (tmp_path / "labels.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 3 + 3 * len(range(5, labels.MOST_BY_CLASS + 1))
    assert (tmp_path / "labels.png").stat().st_size > 1000


def test_the_study_of_fairness_in_small(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import fairness

    monkeypatch.setattr(fairness, "LOGS", tmp_path / "logs")
    monkeypatch.setattr(fairness, "OUT", tmp_path / "results" / "fairness")
    monkeypatch.setattr(fairness, "GAMMAS", (0.0, 1.0))
    monkeypatch.setattr(fairness, "SHOTS", (5,))
    monkeypatch.setattr(fairness, "TESTED", ["trainer=cpu", "data.test_batches=1"])
    small = ["data.train_batches=2", "data.val_batches=1", "trainer.max_epochs=1"]
    runs = fairness.planned()
    assert len({run.folder for run in runs}) == len(runs) == 3
    for run in runs:
        fairness.finish(run, small)
    fairness.write("COMMAND", 1.0, 0.5)
    text = (tmp_path / "results" / "fairness.md").read_text()
    found = runs[0].tested(5)
    assert len(found["acc"]) == 25
    shown = f"{fairness.cell(found['acc'])}, {fairness.cell(found['parity'])} |"
    assert shown in text
    assert (tmp_path / "results" / "fairness.csv").read_text().count("\n") == 1 + 2 * 2
    assert (tmp_path / "results" / "fairness.png").stat().st_size > 1000
