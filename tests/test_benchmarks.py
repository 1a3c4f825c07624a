"""Benchmarks: what they compare is the same, and what cannot be run here says so."""

import importlib
import json
import math
import re
import statistics
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, one_of
from points import ENVIRONMENT, HANGS
from test_domains import flat, part
from test_omniglot import archives, drawings  # noqa: F401

import metadraw
from metadraw.command.names import name_of
from metadraw.data.drawings import QUICKDRAW_CLASSES, Drawings
from metadraw.training.factory import build_learner
from metadraw.use.classifier import FewShot

RESULTS = ROOT / "benchmarks" / "results"


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
@pytest.mark.parametrize("parts", one_of(["data.source=npm", "--parts", "steps"], []))
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


@pytest.mark.slow
def test_the_frontier_in_small(monkeypatch, synthetic_folder, tmp_path):
    """Its plan composes; two runs, the second on the network of the first, make its tables."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import frontier

    monkeypatch.setattr(frontier, "LOGS", tmp_path / "logs")
    monkeypatch.setattr(frontier, "OUT", tmp_path / "results" / "frontier")
    monkeypatch.setattr(frontier, "TESTED", ["data.queries=2"])
    monkeypatch.setattr(frontier, "TESTS", dict.fromkeys(frontier.NETWORKS, (1, 1)))
    runs = frontier.planned()
    assert len({run.folder for run in runs}) == len(runs) == 3 * (4 + 2 * 5) + 1 + 2 * 5
    for run in runs:
        metadraw.compose(*run.settings)
    ordinary = runs[0]
    frozen = next(run for run in runs if run.algorithm == "RFS")
    small = ["model.hidden_channels=4", "data.source=path", f"data.path={synthetic_folder}"]
    small += ["data.samples_per_class=20", "data.tasks_per_batch=4"]
    short = ["data.train_batches=2", "data.val_batches=1", "callbacks.progress_bar.refresh_rate=0"]
    monkeypatch.setattr(frontier, "SETTINGS", [(5, 1), (10, 5)])
    cheap = [o for o in ordinary.settings if "max_epochs" not in o]
    ordinary = ordinary._replace(settings=[*cheap, "trainer.max_epochs=1", *short])
    again = ordinary._replace(settings=[*ordinary.settings, "seed=1"], again=True)
    for run in (ordinary, frozen._replace(after=ordinary), again):
        line = frontier.finish(run, small)
        assert line.startswith(f"{run.folder.name}: "), line
        assert line.endswith(" %"), line
        assert frontier.finish(run, small) == line  # nothing is done again
    frontier.write(runs, "COMMAND")
    text = (tmp_path / "results" / "frontier.md").read_text()
    assert text.count("| Conv4-20 | pre-trained | SimpleShot |") == 2
    assert text.count("| Conv4-20 | pre-trained | RFS |") == 4
    assert text.count("| pre-trained | SimpleShot |") == 2 + 1
    # Half the squared difference of two values is their variance.
    pair = [frontier.found(run, 10, 5, "alone")["acc"] for run in (ordinary, again)]
    deviation = re.search(r"In 10-way 5-shot its standard deviation is ([\d.]+)", text)[1]
    assert float(deviation) == pytest.approx(100 * statistics.stdev(pair), abs=0.06)
    # The difference is that of the means, though paired.
    means = [frontier.found(run, 10, 5, "alone")["acc"] for run in (frozen, ordinary)]
    shown = frontier.difference(frozen, ordinary, 10, 5, "alone")
    assert float(shown.split(" ±")[0]) == pytest.approx(100 * (means[0] - means[1]), abs=0.06)
    assert "Not finished: Conv4-64_pre-trained_SimpleShot, " in text
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


@pytest.mark.slow
def test_the_report_in_pieces(monkeypatch, synthetic_folder, tmp_path):
    """One run is finished and one interrupted; another folder continues the second."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import report_sweep as study

    kept = tmp_path / "kept"
    monkeypatch.setattr(study, "KEPT", kept)
    tiny = ["data.source=path", f"data.path={synthetic_folder}", "model.hidden_channels=4"]
    tiny += ["data.train_batches=1", "data.val_batches=1", "data.test_batches=1"]
    tiny += ["data.samples_per_class=20"]
    done, long = (["data.shots=1", f"trainer.max_epochs={epochs}"] for epochs in (1, 10**6))
    first, second = (tmp_path / "first", tmp_path / "second")
    for folder in (first, second):
        folder.mkdir()

    def epochs(folder):
        file = folder / name_of(long) / "metrics.csv"
        return file.read_text().splitlines()[1:] if file.is_file() else []

    def over():
        return (first / name_of(done) / "results.json").is_file() and len(epochs(first)) > 1

    names = [name_of(done), name_of(long)]
    study.go_on(first, [done, long], 2, over, tiny)
    study.keep(first, names)
    assert [path.name for path in (kept / "runs").iterdir()] == [name_of(done)]
    assert [path.name for path in (kept / "unfinished").iterdir()] == [name_of(long)]
    study.restore(second, names[:1])
    assert [path.name for path in second.iterdir()] == names[:1]  # no other was asked for
    study.restore(second, names)
    before = epochs(first)
    assert epochs(second) == before
    study.go_on(second, [done, long], 2, lambda: len(epochs(second)) > len(before), tiny)
    assert epochs(second)[: len(before)] == before
    numbers = [int(float(row.split(",")[0])) for row in epochs(second)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert not (second / f"{name_of(done)}.log").exists()  # finished: not started again
    study.keep(second, names[:1])
    rows = (kept / "unfinished" / name_of(long) / "metrics.csv").read_text().splitlines()[1:]
    assert rows == before  # not asked for


SHORT = ["data.train_batches=2", "trainer.max_epochs=1", "data.val_batches=1"]
SHORT += ["data.test_batches=1", "callbacks.progress_bar.refresh_rate=0"]


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_completion_in_small(study_in, synthetic_folder, tmp_path):
    study = study_in("completion", TASKS=5, PICTURES=2, SHOTS=(20, 784))
    own = {"source": "path", "path": synthetic_folder, "samples_per_class": 20}
    errors = study.study([*SHORT, *(f"data.drawings.{k}={v}" for k, v in own.items())])
    # The nearest of all pixels is the pixel itself.
    assert errors["nearest", 784].max() == 0 < errors["nearest", 20].min()
    study.write(errors, "COMMAND")
    study.draw()
    text = (tmp_path / "results" / "completion.md").read_text()
    assert f"| MAML, adapted | {errors['after', 20].mean():.4f} ± " in text
    assert (tmp_path / "results" / "completion.png").stat().st_size > 10_000


@pytest.mark.slow
def test_black_box_learners_in_small(monkeypatch, tmp_path):
    """Its plan composes; finished runs make table, findings, CSV and figure; others are named."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import blackbox

    monkeypatch.setattr(blackbox, "LOGS", tmp_path / "logs")
    monkeypatch.setattr(blackbox, "RESULTS", tmp_path)
    plan = {(setting, name): settings for setting, name, settings in blackbox.planned()}
    assert len(plan) == 8 + 7 + 5 + 4
    for settings in plan.values():
        metadraw.compose(*settings)
    small = ["data.train_batches=3", "data.val_batches=1", "data.test_batches=2"]
    for name in ("maml", "cnp"):
        blackbox.finish("sines", name, [*plan["sines", name], *small, "trainer.max_epochs=1"])
    blackbox.write("blackbox", "TITLE", blackbox.BLACK_BOX, ["one", "sines"], "COMMAND")
    text = (tmp_path / "blackbox.md").read_text()
    maml, cnp = (blackbox.values("sines", name) for name in ("maml", "cnp"))
    assert len(maml) == 50
    assert f"| `maml` | {blackbox.interval(maml, 'sines')} |  |" in text
    apart = blackbox.interval(cnp - maml, "sines", sign=True)
    assert f"| `cnp` | {blackbox.interval(cnp, 'sines')} | {apart} |" in text
    half = 1.96 * (cnp - maml).std() / 50**0.5
    assert float(apart.split(" ± ")[1]) == pytest.approx(half.item(), abs=6e-4)
    clear, ahead = (cnp - maml).mean().abs() > half, cnp.mean() < maml.mean()
    how = "better than" if clear and ahead else "worse than" if clear else "close to"
    assert f"- Sinusoids: `cnp` is {how} `maml`." in text
    assert "- Not finished: `in_context` (sinusoids, squared error), `mann` (sin" in text
    assert "`in_context` (5-way 1-shot, %)" in text
    assert (tmp_path / "blackbox.csv").read_text().count("\n") == 1 + 2
    assert (tmp_path / "blackbox.png").stat().st_size > 1000


SMALL = ["model.hidden_channels=4", "data.samples_per_class=20", "data.tasks_per_batch=3"]


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_doodles_and_icons_in_small(monkeypatch, tmp_path):
    """All of its runs compose; one, on synthetic domains, makes its table and figure."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import domains

    monkeypatch.setattr(domains, "LOGS", tmp_path / "logs")
    monkeypatch.setattr(domains, "OUT", tmp_path / "results" / "domains")
    monkeypatch.setattr(domains, "BATCHES", 2)
    for settings in domains.TRAINED.values():
        metadraw.compose(*domains.SHARED, *settings)
    small = ["trainer.max_epochs=1", "data.tasks_per_batch=4", "model.hidden_channels=4"]
    small += [f"data.{split}_batches=1" for split in ("train", "val", "test")]
    for kind, name in enumerate(domains.DOMAINS):
        own = part(kind, 6, names=[f"c{number:02}" for number in range(25)])
        small += [f"~data.domains.{name}", f"+data.domains.{name}={flat(own)}"]
    found = domains.finish("icons", small)
    again = domains.finish("icons", small)  # nothing is done again
    assert all(torch.equal(again[test], values) for test, values in found.items())
    less = {test: values - 1 for test, values in found.items()}
    results = dict.fromkeys(domains.TRAINED, found) | {"doodles": less}
    domains.write(results, "COMMAND")
    domains.draw(results, small)
    text = (tmp_path / "results" / "domains.md").read_text(encoding="utf-8")
    folder = tmp_path / "logs" / "icons" / "doodles-icons"
    test = json.loads((folder / "results.json").read_text(encoding="utf-8"))["test"]
    assert test["tasks"] == test["groups"]["icons"]["tasks"] == 8
    assert f" {100 * test['acc']:.1f} ± {100 * test['acc_ci95']:.1f} " in text
    assert "on doodles, a network that was trained on icons instead differs by +1.0 ± " in text
    assert (tmp_path / "results" / "domains.csv").read_text().count("\n") == 1 + 6 * 4
    assert (tmp_path / "results" / "domains.png").stat().st_size > 1000


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
    found = runs[0].found(5)
    assert len(found["acc"]) == 25
    shown = f"{fairness.percent(found['acc'])}, {fairness.percent(found['parity'])} |"
    assert shown in text
    assert (tmp_path / "results" / "fairness.csv").read_text().count("\n") == 1 + 2 * 2
    assert (tmp_path / "results" / "fairness.png").stat().st_size > 1000


def test_strokes_of_another_width(study_in, tmp_path):
    """Blurred and brightened, in the middle as expected, and kept as classes of a folder."""
    study = study_in("rendering")
    images = torch.zeros(2, 3, 28, 28, dtype=torch.uint8)
    images[0, 1, 14, 14] = 100
    assert torch.equal(study.render(images, 0.0, 1.0), images)
    one = study.render(images, 0.45, 1.5)[0, 1].float()
    assert one.sum() == pytest.approx(150, abs=5)  # of rounding
    assert one[14, 13] == one[15, 14] == one[14, 15]
    assert one[14, 13] / one[14, 14] == pytest.approx(math.exp(-1 / (2 * 0.45**2)), abs=0.02)
    assert study.render(images, 0.45, 100.0).max() == 255
    study.write_drawings(Drawings(images.numpy(), ("a", "b"), {}), tmp_path / "out", 0.45, 1.5)
    assert np.load(tmp_path / "out" / "a.npy").tolist()[1] == one.flatten().tolist()


@pytest.mark.slow
def test_strokes_of_another_width_in_small(study_in, monkeypatch, synthetic_folder, tmp_path):
    files = [synthetic_folder / f"{name}.npy" for name in QUICKDRAW_CLASSES]
    images = np.stack([np.load(file).reshape(-1, 28, 28) for file in files])
    study = study_in("rendering", SETTINGS=((5, 1),))
    monkeypatch.setattr(study, "load_quickdraw", lambda *_: Drawings(images, QUICKDRAW_CLASSES, {}))
    short = ["model.hidden_channels=4", "data.samples_per_class=20", "trainer.max_epochs=1"]
    short += ["data.train_batches=2", "data.val_batches=1"]
    monkeypatch.setattr(study, "RECIPE", [*study.RECIPE, *short])
    monkeypatch.setattr(study, "report_test", lambda *_: ["data.test_batches=1"])
    found = study.study()
    assert [[len(test) for test in tests] for tests in found.values()] == [[25]] * 4
    study.write(found)
    text = (tmp_path / "results" / "rendering.md").read_text()
    accuracy = 100 * found["blurred", "thin"][0].mean().item()
    assert f"| blurred | thin | {accuracy:.1f} ± " in text


def test_published_networks_keep_their_parameters(study_in, tmp_path):
    """The same outputs as the layers that the parameters are of, in their order in the file."""
    study = study_in("published_networks")
    blocks = []
    for before in (1, 20, 20, 20):
        norm = torch.nn.BatchNorm2d(20, track_running_stats=False)
        torch.nn.init.uniform_(norm.bias)
        convolution = torch.nn.Conv2d(before, 20, 3, padding=1)
        blocks += [convolution, norm, torch.nn.ReLU(), torch.nn.MaxPool2d(2)]
    plain = torch.nn.Sequential(*blocks, torch.nn.Flatten(), torch.nn.Linear(20, 10))
    folder = tmp_path / "models" / "2020"
    folder.mkdir(parents=True)
    setting = {"num_training_samples": 20, "num_ways": 10, "num_shots": 5}
    (folder / "config.json").write_text(json.dumps(setting))
    torch.save(plain.state_dict(), folder / "model.th")
    (network,) = study.read(tmp_path)
    assert network[:3] == (20, 10, 5)
    _, learner = metadraw.load(study.convert(network, tmp_path / "converted.ckpt"))
    images = torch.rand(7, 1, 28, 28)
    algorithm = learner.algorithm
    torch.testing.assert_close(algorithm.head(algorithm.network(images)), plain(images))
    with pytest.raises(metadraw.InputError, match=r"must be a clone of the report's"):
        study.read(folder)
