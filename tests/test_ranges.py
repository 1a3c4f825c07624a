"""Ways and shots that are drawn for every batch."""

from collections import Counter

import pytest
import torch
from conftest import equal, one_of, sampler_of, tiny_in

import metadraw
from metadraw import FewShot, InputError
from metadraw.data.tasks import EpisodeBatches
from metadraw.training.evaluate import evaluate
from metadraw.training.train import train

RANGES = {"ways": (3, 6), "shots": (1, 4), "queries": (1, 4), "tasks_per_batch": 5}


@pytest.fixture
def sampler(synthetic_images):
    return lambda **options: sampler_of(synthetic_images, **RANGES | options)


def sizes(batch):
    ways = batch.about["classes"].shape[1]
    return ways, batch.support.x.shape[1] // ways, batch.query.x.shape[1] // ways


def test_every_number_of_the_range_as_often(sampler):
    drawn = [sampler().sizes(torch.arange(5 * b, 5 * b + 1)) for b in range(2000)]
    for position, (least, most) in enumerate(((3, 6), (1, 4))):
        counts = Counter(each[position] for each in drawn)
        assert sorted(counts) == list(range(least, most + 1))
        assert all(abs(count - 500) < 6 * 500**0.5 for count in counts.values())
    # With the same range, shots and queries are equal; ways are drawn independently.
    assert all(shots == queries for _, shots, queries in drawn)
    assert len({(ways, shots) for ways, shots, _ in drawn}) == 16


def test_a_batch_is_a_function_of_its_number_and_its_parts_have_its_sizes(sampler):
    batch = sampler()(torch.arange(10, 15))
    assert sizes(batch) == sampler().sizes(torch.arange(10, 15))
    assert equal(batch, sampler()(torch.arange(10, 15)))
    assert equal(batch.task(3), sampler()(torch.tensor([13])).task(0))
    parts = [EpisodeBatches(sampler(), 5, rank, 2)[2] for rank in range(2)]
    assert {sizes(part) for part in parts} == {sizes(batch)}
    assert torch.cat([part.number for part in parts]).tolist() == list(range(10, 15))


def test_more_only_adds(sampler):
    """The classes and drawings of a smaller task are those of the largest."""
    batch = sampler()(torch.arange(5))
    ways, shots, _ = sizes(batch)
    largest = sampler(ways=6, shots=4, queries=4)(torch.arange(5))
    assert torch.equal(batch.about["classes"], largest.about["classes"][:, :ways])
    images = largest.support.x.unflatten(1, (6, 4))[:, :ways, :shots].flatten(1, 2)
    assert torch.equal(batch.support.x, images)


def test_episodes_of_several_batches_are_refused(sampler):
    with pytest.raises(InputError, match=r"episodes of 2 batches.*ask for the 5 of one"):
        sampler()(torch.arange(6))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["data.ways=[6,3]"], r"data.ways=\[6, 3\]: must be a whole number of at least 2, or the"),
        (["data.ways=[1,3]"], r"data.ways=\[1, 3\]: must be"),
        (["data.shots=[1,2,3]"], r"data.shots=\[1, 2, 3\]: must be"),
        (["data.shots=many"], "data.shots=many: must be"),
        (["data.ways=[2,70]"], "data.ways=70: the meta-val split has only 69 classes"),
        (["data.shots=[1,11]"], r"data.shots=11 \+ data.queries=11 = 22 drawings"),
        (["data.shots=[1,2]", "data.train_tasks=6"], "a multiple of data.tasks_per_batch=4"),
    ],
)
def test_wrong_ranges(tiny, overrides, says):
    with pytest.raises(Exception, match=says):
        metadraw.build(metadraw.compose(*tiny, *overrides))


@pytest.mark.parametrize(
    "algorithm",
    # One of each kind of head and inner loop.
    one_of("unicorn_maml", "maml", "reptile", "meta_sgd", "protonet"),
)
def test_every_kind_of_algorithm_learns_from_such_batches(algorithm, tiny_for, tmp_path):
    ranges = ["data.ways=[3,6]", "data.shots=[1,3]"]
    found = train(metadraw.compose(*tiny_for(algorithm), *ranges))
    assert 0 < found["test"]["acc"] < 1
    assert found["config"]["data"]["ways"] == [3, 6]
    # A checkpoint can be tested with, or learn, any of these numbers.
    path = tmp_path / "run" / "checkpoints" / "best.ckpt"
    classes = FewShot(path).adapt({name: torch.rand(2, 28, 28) for name in "abcd"})
    assert classes.probabilities(torch.rand(3, 28, 28)).shape == (3, 4)
    if algorithm not in ("maml", "protonet"):
        return
    again = [f"ckpt_path={path}", f"paths.output_dir={tmp_path / 'again'}", "trainer=cpu"]
    if algorithm == "protonet":
        tested = evaluate(metadraw.compose(*again, "data.ways=8", config="eval"))
        assert tested["config"]["data"]["ways"] == 8
    else:
        tested = evaluate(metadraw.compose(*again, config="eval"))
        assert tested["test"]["acc"] == found["test"]["acc"]
        with pytest.raises(InputError, match="7 classes: MAML was trained with 3 to 6"):
            FewShot(path).adapt({name: torch.rand(1, 28, 28) for name in "abcdefg"})


def test_the_head_learns_from_the_rows_that_a_task_has(tiny):
    data, learner = metadraw.build(metadraw.compose(*tiny, "data.ways=[3,6]"))
    for start in range(0, 40, 4):
        batch = data.episodes("train")(torch.arange(start, start + 4))
        ways, *_ = sizes(batch)
        gradients, _ = learner.meta_gradients(batch)
        rows = gradients["head.weight"].abs().amax(dim=1)
        assert (rows > 0).tolist() == [row < ways for row in range(6)]
        # As of a head of that size from the first.
        fixed = metadraw.build(metadraw.compose(*tiny, f"data.ways={ways}"))[1]
        state = learner.state_dict()
        for name in ("algorithm.head.weight", "algorithm.head.bias"):
            state[name] = state[name][:ways]
        fixed.load_state_dict(state)
        expected, _ = fixed.meta_gradients(batch)
        torch.testing.assert_close(gradients["head.weight"][:ways], expected["head.weight"])
        torch.testing.assert_close(gradients["network.0.0.weight"], expected["network.0.0.weight"])


def test_a_resumed_run_equals_an_uninterrupted_one(synthetic_folder, tmp_path):
    def run(name, *overrides):
        ranges = ["data.ways=[3,6]", "data.shots=[1,3]"]
        folder = tmp_path / name
        return train(metadraw.compose(*tiny_in(folder, synthetic_folder), *ranges, *overrides))

    whole = run("whole")
    run("first", "trainer.max_epochs=1", "scheduler=none")
    last = tmp_path / "first" / "checkpoints" / "last.ckpt"
    resumed = run("second", f"ckpt_path={last}")
    assert resumed["test"] | {"seconds": 0, "tasks_per_second": 0} == whole["test"] | {
        "seconds": 0,
        "tasks_per_second": 0,
    }
