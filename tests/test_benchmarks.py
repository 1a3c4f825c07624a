"""Benchmarks: what they compare is the same, and what cannot be run here says so."""

import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from points import ENVIRONMENT, HANGS
from test_omniglot import archives, drawings  # noqa: F401

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


def test_characters_and_doodles_in_small(monkeypatch, archives, synthetic_folder, tmp_path):  # noqa: F811
    """Its plan composes; a run on each data set and five tests make its tables."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import omniglot

    data = {
        "characters": ["data=omniglot", "data.source=path", f"data.path={archives}"],
        "doodles": ["data.source=path", f"data.path={synthetic_folder}"],
    }
    data["characters"] += ["data.split=alphabets", f"data.cache_dir={tmp_path / 'cache'}"]
    data["doodles"] += ["data=quickdraw", "data.samples_per_class=20"]
    within, across = omniglot.planned()
    assert (len(within), len(across)) == (2 + 3 + 5 + 5, 2 * 4)
    for run in {test.run for test in (*within, *across)}:
        metadraw.compose(*omniglot.settings_of(run, data))
    monkeypatch.setattr(omniglot, "LOGS", tmp_path / "logs")
    monkeypatch.setattr(omniglot, "OUT", tmp_path / "results" / "omniglot")
    own = [*omniglot.METHODS["pre-training"], "model.hidden_channels=4", "data.train_ways=4"]
    monkeypatch.setattr(omniglot, "METHODS", {"pre-training": own})
    monkeypatch.setattr(omniglot, "ACROSS", ("pre-training",))
    for overrides in data.values():
        overrides.append("data.train_batches=2")
    quick = ["trainer.max_epochs=1", "data.val_batches=1", "data.ways=2"]
    monkeypatch.setattr(omniglot, "COMMON", [*omniglot.COMMON, *quick])
    monkeypatch.setattr(omniglot, "TESTED", ["data.queries=2", "data.tasks_per_batch=2"])
    monkeypatch.setattr(omniglot, "SETTINGS", [(2, 1, False), (2, 1, True)])
    monkeypatch.setattr(omniglot, "BATCHES", {2: 1})
    within, across = omniglot.planned()
    for test in (*within, *across):
        omniglot.finish(test, data)
    checkpoint = within[0].run.folder / "checkpoints" / "best.ckpt"
    monkeypatch.setattr(omniglot, "SHIPPED", checkpoint)
    for prepare in omniglot.PREPARE:
        omniglot.shipped(prepare, data)
    found = {path: path.stat().st_mtime_ns for path in omniglot.LOGS.rglob("results.json")}
    assert len(found) == 2 + (2 + 4 - 1) + 3  # of runs and of their tests, of which one is in both
    for test in (*within, *across):
        omniglot.finish(test, data)
    assert {path: path.stat().st_mtime_ns for path in found} == found  # nothing is done again
    omniglot.write(within, across, "COMMAND")
    text = (tmp_path / "results" / "omniglot.md").read_text()
    assert text.count("| pre-training | ") == 3
    assert "Trained on doodles instead of characters" in text
    assert (tmp_path / "results" / "omniglot.csv").read_text().count("\n") == 1 + 5 + 3
    assert (tmp_path / "results" / "omniglot.png").stat().st_size > 1000
