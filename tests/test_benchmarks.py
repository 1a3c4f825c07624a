"""Benchmarks: what they compare is the same, and what cannot be run here says so."""

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


SMALL = ["model.hidden_channels=4", "data.samples_per_class=20", "data.tasks_per_batch=3"]


def test_unlabelled_examples_in_small(monkeypatch, synthetic_folder, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import unlabelled

    monkeypatch.setattr(unlabelled, "LOGS", tmp_path / "logs")
    monkeypatch.setattr(unlabelled, "OUT", tmp_path / "results" / "unlabelled")
    monkeypatch.setattr(unlabelled, "NUMBERS", (0, 2))
    monkeypatch.setattr(unlabelled, "TRAINED", [*unlabelled.TRAINED, "data.train_batches=1"])
    monkeypatch.setattr(unlabelled, "TESTED", ["trainer=cpu", "data.test_batches=2"])
    for settings, _ in unlabelled.LEARNERS.values():
        metadraw.compose(*settings, *unlabelled.TRAINED)
    names = "prototypical network", "soft k-means, masks"
    monkeypatch.setattr(unlabelled, "LEARNERS", {name: unlabelled.LEARNERS[name] for name in names})
    small = [*SMALL, "data.source=path", f"data.path={synthetic_folder}"]
    found = unlabelled.measure(small)
    again = unlabelled.measure(small)  # from files
    assert all(torch.equal(values, again[key]) for key, values in found.items())
    unlabelled.write(found, "COMMAND")
    text = (tmp_path / "results" / "unlabelled.md").read_text()
    plain, refined = found[names[0], 0, 0].mean(), found[names[1], 2, 0].mean()
    row = next(line for line in text.splitlines() if line.startswith("| soft k-means, masks | 0 |"))
    assert float(row.split(" | ")[3].split(" ±")[0]) == pytest.approx(
        100 * float(refined - plain), abs=0.06
    )
    assert (tmp_path / "results" / "unlabelled.png").stat().st_size > 1000


def test_varying_ways_and_shots_in_small(monkeypatch, synthetic_folder, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import ways

    monkeypatch.setattr(ways, "LOGS", tmp_path / "logs")
    monkeypatch.setattr(ways, "OUT", tmp_path / "results" / "ways")
    monkeypatch.setattr(ways, "TESTED", ["trainer=cpu", "data.test_batches=1", "data.queries=2"])
    for settings, _ in ways.LEARNERS.values():
        for sizes in ways.EPISODES.values():
            metadraw.compose(*settings, *sizes, *ways.TRAINED)
    monkeypatch.setattr(ways, "GRID", [(5, 1), (10, 5)])
    monkeypatch.setattr(ways, "SHOTS", (1,))
    monkeypatch.setattr(ways, "WAYS", (5, 10))
    monkeypatch.setattr(ways, "LEARNERS", {"prototypical network": (["algorithm=protonet"], 1)})
    small = [*SMALL, "data.source=path", f"data.path={synthetic_folder}"]
    found = ways.measure(small)
    ways.write(found, "COMMAND")
    text = (tmp_path / "results" / "ways.md").read_text()
    assert text.count("| prototypical network, ") == 4 + 3
    expected = 100 * ways.difference(found, "prototypical network", "5-way 1-shot").mean(dim=1)
    (row,) = (line for line in text.splitlines() if "against 5-way 1-shot |" in line)
    shown = [float(cell.split(" ±")[0]) for cell in row.strip(" |").split(" | ")[1:]]
    assert shown == pytest.approx(expected.tolist(), abs=0.06)
    assert (tmp_path / "results" / "ways.png").stat().st_size > 1000
