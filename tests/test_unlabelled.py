"""Unlabelled examples: what is drawn, what learners may see of it, and what they learn from it."""

from functools import partial

import pytest
import torch
from conftest import equal, sampler_of
from test_meta_gradients import (
    STEPS,
    make_learner,
    reference_mean,
    relative_error,
    self_training,
    soft_kmeans,
)

import metadraw
from metadraw.training.evaluate import evaluate
from metadraw.training.train import train

#: Test name: reference, config of the algorithm, overrides.
REFERENCES = {
    **{
        kind: (
            partial(soft_kmeans, distractors=kind),
            "soft_kmeans_protonet",
            # Of a size at which both clusters take some.
            [f"algorithm.distractors={kind}", "algorithm.radius=1.5"],
        )
        for kind in ("ignore", "cluster", "mask")
    },
    "self_training": (
        self_training,
        "self_training",
        [*STEPS, "algorithm.self_training_steps=2"],
    ),
}


@pytest.fixture
def sampler(synthetic_images):
    """5-way 1-shot tasks with 3 unlabelled drawings of each class and of 2 others."""
    return lambda **options: sampler_of(
        synthetic_images, **{"queries": 2, "unlabelled": 3, "distractors": 2} | options
    )


# ---- what is drawn -----------------------------------------------------------------------------


def test_drawings_are_of_their_class_and_disjoint():
    """Synthetic drawings with class and number in their pixels: no repetition in a task."""
    number = torch.arange(8 * 9, dtype=torch.uint8).view(8, 9, 1, 1)
    sampler = sampler_of(number, ways=4, shots=2, queries=3, unlabelled=4, distractors=3)
    batch = sampler(torch.arange(50))
    more = batch.sets["unlabelled"]
    assert more.x.shape[:2] == more.y.shape == (50, (4 + 3) * 4)
    assert (more.y[:, :16] == torch.arange(4).repeat_interleave(4)).all()
    assert (more.y[:, 16:] == -1).all()
    drawn = [(examples.x[:, :, 0, 0, 0] * 255).round().long() for examples in batch[:2]]
    of_more = (more.x[:, :, 0, 0, 0] * 255).round().long()
    for task in torch.cat([*drawn, of_more], dim=1):
        assert len(task.unique()) == len(task)
    classes = batch.about["classes"]
    assert classes.shape == (50, 4)
    assert torch.equal(of_more[:, :16] // 9, classes.gather(1, more.y[:, :16]))
    for task, others in zip(classes.tolist(), (of_more[:, 16:] // 9).tolist(), strict=True):
        assert len(set(others)) == 3
        assert not set(others) & set(task)


def test_they_change_nothing_else(sampler):
    with_more, without = sampler()(torch.arange(4)), sampler(unlabelled=0, distractors=0)
    assert equal(with_more._replace(sets={}), without(torch.arange(4)))
    # Nor do more of them change the first ones.
    fewer = sampler(unlabelled=1, distractors=1)(torch.arange(4)).sets["unlabelled"].x
    more = with_more.sets["unlabelled"].x.unflatten(1, (7, 3))
    assert torch.equal(fewer, more[:, :6, 0])


@pytest.mark.parametrize("name", REFERENCES)
def test_no_learner_sees_their_targets(name, sampler):
    batch = sampler()(torch.arange(2)).to(torch.float64)
    for episode in (batch, batch.task(1)):
        assert episode.visible.sets["unlabelled"].y.numel() == 0
        assert torch.equal(episode.visible.sets["unlabelled"].x, episode.sets["unlabelled"].x)
    _, config, overrides = REFERENCES[name]
    learner, task = make_learner(config, 2, overrides), batch.task(0)
    more = task.sets["unlabelled"]
    others = task._replace(sets={"unlabelled": more._replace(y=more.y.flip(0))})
    one, other, without = (learner.adapt(t) for t in (task, others, task._replace(sets={})))
    assert equal(one, other)
    assert not equal(one, without)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["data.unlabelled=-1"], "data.unlabelled=-1: must be a whole number of at least 0"),
        (["data.distractors=2"], "data.distractors=2: with data.unlabelled=0 they have no"),
        (["data.unlabelled=19"], r"data.shots=1 \+ data.queries=1 \+ data.unlabelled=19 = 21"),
        (
            ["data.unlabelled=1", "data.distractors=65"],
            r"data.ways=5 \+ data.distractors=65: the meta-val split has only 69 classes",
        ),
        (
            ["data.unlabelled=9", "data.train_samples_per_class=10"],
            r"at least data.shots \+ data.queries \+ data.unlabelled = 11",
        ),
    ],
)
def test_wrong_numbers(tiny, overrides, says):
    with pytest.raises(Exception, match=says):
        metadraw.build(metadraw.compose(*tiny, *overrides))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["soft_kmeans_protonet", "algorithm.distractors=drop"], "drop: must be ignore, cluster"),
        (["soft_kmeans_protonet", "algorithm.radius=0"], "algorithm.radius=0: must be"),
        (["self_training", "algorithm.self_training_steps=0"], "self_training_steps=0: must be"),
        (["self_training", "algorithm.unlabelled_weight=-1"], "unlabelled_weight=-1: must be"),
    ],
)
def test_wrong_settings(overrides, says):
    with pytest.raises(Exception, match=says):
        make_learner(overrides[0], 1, overrides[1:])


# ---- what is learned ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", REFERENCES)
def test_equals_per_task_autograd(name, sampler):
    reference, config, overrides = REFERENCES[name]
    batch = sampler()(torch.arange(3)).to(torch.float64)
    learner = make_learner(config, 2, overrides)
    if config == "soft_kmeans_protonet":
        # Nearer to each other, so that none belongs to one class alone.
        learner.algorithm.network[3][1].weight.data *= 0.3
    expected, losses = reference_mean(reference, learner.algorithm, batch, 2)
    plain, _ = learner.meta_gradients(batch._replace(sets={}))
    for how, recompute in (("vmap", False), ("loop", False), ("vmap", True)):
        learner.task_map.how, learner.algorithm.recompute_steps = how, recompute
        found, values = learner.meta_gradients(batch)
        assert relative_error(found, expected) < 1e-9
        torch.testing.assert_close(values["loss"], losses, rtol=1e-9, atol=0)
    assert relative_error(plain, expected) > 0.01
    assert all(g.abs().max() > 0 for key, g in expected.items() if not key.startswith("network"))


@pytest.mark.parametrize("name", ["mask", "self_training"])
def test_normalised_like_the_query_set(name, sampler):
    """With the statistics of the support set, no unlabelled example changes another's part."""
    _, config, overrides = REFERENCES[name]
    learner = make_learner(config, 2, overrides)
    task = sampler()(torch.arange(1)).to(torch.float64).task(0)
    function = learner.algorithm.like_query(
        learner.algorithm.features, task, more := task.sets["unlabelled"]
    )
    own = function(more.x)
    assert not torch.allclose(function(more.x[:4]), own[:4])
    learner.algorithm.support_statistics = True
    function = learner.algorithm.like_query(learner.algorithm.features, task, more)
    torch.testing.assert_close(function(more.x[:4]), function(more.x)[:4])
    batch = sampler()(torch.arange(2)).to(torch.float64)
    assert learner.evaluate(batch).after.isfinite().all()


def test_a_run_learns_from_them_and_is_tested_with_and_without(tiny_for, tmp_path):
    more = ["data.unlabelled=2", "data.distractors=1", "trainer.max_epochs=1"]
    found = train(metadraw.compose(*tiny_for("self_training"), *more))
    assert found["config"]["data"]["unlabelled"] == 2
    assert (tmp_path / "run" / "episode.png").stat().st_size > 1000
    checkpoint = f"ckpt_path={tmp_path / 'run' / 'checkpoints' / 'best.ckpt'}"
    common = [checkpoint, "trainer=cpu", f"paths.output_dir={tmp_path / 'again'}"]
    again = evaluate(metadraw.compose(*common, config="eval"))
    without = ["data.unlabelled=0", "data.distractors=0"]
    other = evaluate(metadraw.compose(*common, *without, config="eval"))
    assert again["test"]["loss"] == found["test"]["loss"] != other["test"]["loss"]
