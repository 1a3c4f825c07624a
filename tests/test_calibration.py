"""Probabilities that mean something, and pictures that are of no class."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import metadraw
from metadraw import Classifier, FewShot, InputError
from metadraw.training.train import train
from metadraw.use.calibrate import calibrate
from metadraw.use.calibration import Answers, Calibration, answers, fit, measure


def random_answers(temperature, ways, seed, inverse_shots=1.0):
    """Labels that are as likely as logits divided by this temperature say."""
    generator = torch.Generator().manual_seed(seed)
    logits = 6 * torch.randn(4000, ways, generator=generator)
    chances = (logits / temperature).softmax(dim=1)
    labels = torch.multinomial(chances, 1, generator=generator)[:, 0]
    return Answers(inverse_shots, logits, labels, logits[:200] - 4)


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_the_temperature_that_made_the_labels_is_found(temperature):
    found = [random_answers(temperature, ways, ways) for ways in (2, 5, 10, 5, 7, 3)]
    calibration = fit(found, refused=0.1)
    assert calibration.at(1.0)[0] == pytest.approx(temperature, rel=0.03)
    assert calibration.temperature_slope == calibration.threshold_slope == 0
    measured = measure(found, calibration)
    assert measured["error"] < 0.02 < 0.05 < measured["error_before"]
    assert measured["refused"] == pytest.approx(0.1, abs=0.001)


def test_both_follow_the_number_of_examples():
    inverses = (1.0, 0.5, 0.2, 0.1)
    found = [
        random_answers(0.7 + 2.3 * inverse_shots, 5, seed, inverse_shots)
        for seed, inverse_shots in enumerate(inverses)
    ]
    shifted = [each._replace(logits=each.logits - 7 * each.inverse_shots) for each in found]
    calibration = fit(shifted, refused=0.2)
    for inverse_shots, each in zip(inverses, shifted, strict=True):
        temperature, threshold = calibration.at(inverse_shots)
        assert temperature == pytest.approx(0.7 + 2.3 * inverse_shots, rel=0.06)
        refused = (each.logits.amax(dim=1) < threshold).double().mean()
        assert refused == pytest.approx(0.2, abs=0.02)
    assert measure(shifted, calibration)["error"] < 0.02


def test_measures_by_hand():
    found = [random_answers(2.0, 4, seed=1), random_answers(2.0, 3, seed=2)]
    calibration = Calibration(2.0, threshold=5.0)
    measured = measure(found, calibration)
    confidence, right, given, others = [], [], [], []
    for _, logits, labels, strangers in found:
        chances = np.exp(logits / 2) / np.exp(logits / 2).sum(1, keepdims=True)
        confidence += chances.max(1).values.tolist()
        right += (logits.argmax(1) == labels).tolist()
        given += logits.max(1).values.tolist()
        others += strangers.max(1).values.tolist()
    bins = [min(int(c * 15), 14) for c in confidence]
    error = sum(
        abs(sum(confidence[i] - right[i] for i in range(len(bins)) if bins[i] == number))
        for number in range(15)
    ) / len(bins)
    assert measured["error"] == pytest.approx(error, abs=1e-6)
    assert measured["accuracy"] == pytest.approx(np.mean(right))
    assert measured["refused"] == np.mean(np.array(given) < 5)
    assert measured["accepted"] == np.mean(np.array(others) >= 5)
    pairs = np.array(given)[:, None] - np.array(others)
    area = ((pairs > 0) + (pairs == 0) / 2).mean()
    assert measured["auroc"] == pytest.approx(area, abs=1e-3)


def test_the_last_class_is_left_out(checkpoint_of):
    few_shot = FewShot(checkpoint_of("protonet"))
    data, _ = metadraw.load(few_shot.checkpoint, "data.ways=6", "data.shots=2", "data.queries=3")
    sampler = data.episodes("val")
    [_, found] = answers(few_shot.learner, sampler, 2)
    assert (found.logits.shape, found.others.shape) == ((15, 5), (3, 5))
    assert found.inverse_shots == 1 / 2
    task = sampler(torch.tensor([1])).task(0)
    examples = {str(i): (255 * task.support.x[task.support.y == i]).byte() for i in range(5)}
    classifier = few_shot.adapt({name: list(pictures) for name, pictures in examples.items()})
    chances = classifier.probabilities(list((255 * task.query.x).byte()))
    both = torch.cat([found.logits, found.others]).softmax(dim=1)
    torch.testing.assert_close(both, chances, rtol=1e-3, atol=1e-4)
    assert torch.equal(found.labels, task.query.y[:15])


def test_a_checkpoint_is_calibrated(tiny_for, tmp_path):
    train(metadraw.compose(*tiny_for("protonet")))
    path = tmp_path / "run" / "checkpoints" / "best.ckpt"
    before, learner_before = FewShot(path), metadraw.load(path)[1]
    cfg = metadraw.compose(
        *(f"ckpt_path={path}", "tasks=40", "refused=0.2", "data.ways=[3,6]", "data.shots=[1,3]"),
        f"paths.output_dir={tmp_path / 'calibrated'}",
        config="calibrate",
    )
    results = calibrate(cfg)
    written = json.loads((tmp_path / "calibrated" / "calibration.json").read_text())
    assert written == results
    assert set(written) == {"val", "test", "calibration"}
    assert written["val"]["refused"] == pytest.approx(0.2, abs=0.05)
    # The checkpoint is the same otherwise.
    after, learner = FewShot(path), metadraw.load(path)[1]
    for name, value in learner.state_dict().items():
        assert torch.equal(value, learner_before.state_dict()[name])
    assert before.calibration == Calibration()
    assert after.calibration == Calibration(**written["calibration"])
    assert after.calibration.temperature_slope != 0
    # In use: the same order, other probabilities, and pictures that are of no class.
    pictures = torch.rand(12, 1, 28, 28)
    examples = {"a": list(pictures[:2]), "b": list(pictures[2:4])}
    plain, calibrated = (few_shot.adapt(examples) for few_shot in (before, after))
    assert plain.predict(pictures) == calibrated.predict(pictures)
    assert plain.none_of_these(pictures) == [False] * 12
    logits = plain.probabilities(pictures).log()
    temperature, _ = after.calibration.at(0.5)  # two examples a class
    expected = (logits / temperature).softmax(dim=1)
    torch.testing.assert_close(calibrated.probabilities(pictures), expected)
    assert calibrated.answer([]).none.shape == (0,)
    calibrated.save(tmp_path / "classifier.pt")
    loaded = Classifier.load(tmp_path / "classifier.pt")
    assert loaded.meta_learner.calibration == after.calibration
    torch.testing.assert_close(loaded.answer(pictures), calibrated.answer(pictures))
    # Calibrating again gives the same.
    again = calibrate(cfg)
    for part, values in results.items():
        assert again[part] == pytest.approx(values, rel=1e-5)


def test_what_is_like_no_class(checkpoint_of):
    """By the highest logit, which for this algorithm is minus the distance to the nearest mean."""
    few_shot = FewShot(checkpoint_of("simple_shot"))
    few_shot.learner.algorithm.temperature = 1.0
    pictures = torch.rand(9, 1, 28, 28)
    classifier = few_shot.adapt({"a": list(pictures[:1]), "b": list(pictures[1:2])})
    few_shot.calibration = Calibration(threshold=1 - 1e-4)  # 1 is the highest: no distance at all
    assert classifier.none_of_these(pictures) == [False, False] + [True] * 7


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["tasks=0"], "tasks=0: must be a whole number of at least 1"),
        (["refused=half"], "refused=half: must be at least 0, below 1"),
        (["ckpt_path=null"], "ckpt_path=null: expected ckpt_path=PATH of a checkpoint"),
        (["refused=1"], "refused=1: must be at least 0, below 1"),
        (["data.ways=1"], "data.ways=1: must be a whole number of at least 2"),
        (["data.ways=69"], "data.ways=69: calibration needs one class more in each split"),
        (["data.shots=100"], r"data.shots=100 \+ data.queries=\d+ = "),
    ],
)
def test_wrong_input(checkpoint_of, tmp_path, overrides, says):
    given = [f"ckpt_path={checkpoint_of('protonet')}", f"paths.output_dir={tmp_path}"]
    with pytest.raises(Exception, match=says):
        calibrate(metadraw.compose(*given, *overrides, config="calibrate"))


def test_a_checkpoint_that_learns_no_other_ways(checkpoint_of, tmp_path):
    given = [f"ckpt_path={checkpoint_of('maml')}", f"paths.output_dir={tmp_path}", "data.ways=7"]
    with pytest.raises(InputError, match="7 classes: MAML was trained with 5 and can learn no"):
        calibrate(metadraw.compose(*given, config="calibrate"))
    with pytest.raises(InputError, match="ckpt_path is missing"):
        calibrate(metadraw.compose(config="calibrate"))


def test_cross_entropy_falls():
    """The fitted temperature is better than its neighbours."""
    found = [random_answers(1.7, 5, seed=3)]
    best, _ = fit(found, refused=0).at(1.0)
    near = (0.98 * best, best, 1.02 * best)
    loss = [F.cross_entropy(found[0].logits / t, found[0].labels) for t in near]
    assert loss[1] < min(loss[0], loss[2])
