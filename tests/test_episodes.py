"""Episodes: their shape and content; each is a function of (seed, split, index) alone."""

import hashlib
from itertools import chain

import pytest
import torch
from conftest import equal, sampler_of
from lightning import Trainer
from torch.utils.data import DataLoader

from metadraw import InputError
from metadraw.command.cli import explain
from metadraw.data.drawings import QUICKDRAW_CLASSES
from metadraw.data.hashing import draw
from metadraw.data.sampling import EpisodeSampler
from metadraw.data.splits import split_classes
from metadraw.data.tasks import EpisodeBatches


@pytest.mark.parametrize(
    ("ways", "shots", "queries"), [(5, 1, 1), (3, 5, 2), (12, 10, 10), (2, 1, 7)]
)
def test_shapes_and_labels(make_sampler, ways, shots, queries):
    batch = make_sampler(ways, shots, queries)(torch.arange(7))
    assert batch.support.x.shape == (7, ways * shots, 1, 28, 28)
    assert batch.query.x.shape == (7, ways * queries, 1, 28, 28)
    assert batch.support.x.dtype == batch.query.x.dtype == torch.float32
    assert batch.support.y.dtype == batch.query.y.dtype == torch.int64
    assert batch.support.x.min() == 0
    assert batch.support.x.max() == 1
    for labels, each in ((batch.support.y, shots), (batch.query.y, queries)):
        for row in labels:
            assert torch.equal(row.bincount(), torch.full((ways,), each))


def test_drawings_are_of_their_class_and_disjoint():
    """Synthetic drawings with class and number in their pixels: no repetition in a task."""
    number = torch.arange(6 * 9, dtype=torch.uint8).view(6, 9, 1, 1)
    sampler = sampler_of(number, ways=4, shots=4, queries=5, seed=1)
    batch = sampler(torch.arange(50))
    for x, y in ((batch.support.x, batch.support.y), (batch.query.x, batch.query.y)):
        drawn = (x[:, :, 0, 0, 0] * 255).round().long()
        assert torch.equal(drawn // 9, batch.about["classes"].gather(1, y))
    drawn = torch.cat([batch.support.x, batch.query.x], dim=1)[:, :, 0, 0, 0] * 255
    for task in drawn:
        assert len(task.unique()) == len(task)
    for classes in batch.about["classes"]:
        assert len(classes.unique()) == 4


def test_draws_are_uniform(make_sampler):
    """Every class at every label, and every drawing, equally often (6 standard deviations)."""
    tasks = 4000
    batch = make_sampler(ways=3)(torch.arange(tasks))
    for label in range(3):
        counts = batch.about["classes"][:, label].bincount(minlength=12).double()
        expected = tasks / 12
        assert (counts - expected).abs().max() < 6 * (expected * 11 / 12) ** 0.5


def test_every_order_is_equally_likely():
    """The 24 ways to draw 3 of 4 numbers, within 6 standard deviations."""
    times = 24_000
    drawn = draw(torch.arange(times) << 20, torch.full((times,), 4), 3)
    counts = (drawn * torch.tensor([16, 4, 1])).sum(dim=1).bincount()
    assert (counts > 0).sum() == 24
    assert (counts[counts > 0] - times / 24).abs().max() < 6 * (times / 24 * 23 / 24) ** 0.5


def test_classes_and_drawings_without_number(synthetic_images):
    """A million classes of a million drawings: time does not grow with either."""
    million = 1_000_000
    sampler = EpisodeSampler(
        synthetic_images[0, :1, None].expand(million**2, -1, -1, -1),  # one drawing for all
        torch.full((million,), million),
        torch.arange(million),
        split="train",
        ways=20,
        shots=5,
        queries=15,
        seed=0,
    )
    batch = sampler(torch.arange(2))
    assert batch.query.x.shape == (2, 300, 1, 28, 28)
    assert all(len(classes.unique()) == 20 for classes in batch.about["classes"])
    drawn = draw(torch.arange(50), torch.full((50,), million), 100)
    assert all(len(numbers.unique()) == 100 for numbers in drawn)
    assert (drawn > 0.99 * million).any()
    assert (drawn < 0.01 * million).any()


def test_an_episode_depends_on_nothing_but_seed_split_and_index(make_sampler):
    sampler = make_sampler()
    together = sampler(torch.arange(10))
    assert equal(together.task(7), sampler(torch.tensor([7])).task(0))
    assert equal(together, make_sampler()(torch.arange(10)))
    assert not equal(together, make_sampler(seed=1)(torch.arange(10)))
    assert not equal(together, make_sampler(split="val")(torch.arange(10)))
    assert not equal(together.task(7), sampler(torch.tensor([8])).task(0))


def test_known_episodes(make_sampler):
    """The hash must not change: every version on every machine draws these classes."""
    classes = make_sampler(seed=42)(torch.tensor([0, 1, 10**12])).about["classes"]
    assert classes.tolist() == [[11, 10, 7, 0, 6], [9, 8, 11, 1, 0], [7, 3, 2, 6, 1]]


def test_more_ways_or_shots_extend_an_episode(make_sampler):
    small, large = (
        make_sampler(ways, shots, 2)(torch.arange(4)) for ways, shots in ((3, 1), (5, 3))
    )
    assert torch.equal(small.about["classes"], large.about["classes"][:, :3])
    assert torch.equal(small.support.x, large.support.x[:, [0, 3, 6]])


@pytest.mark.parametrize("workers", [0, 2])
def test_any_number_of_workers(make_sampler, workers):
    sampler = make_sampler()
    loader = DataLoader(
        EpisodeBatches(sampler, 3), batch_size=None, sampler=range(4), num_workers=workers
    )
    for number, batch in enumerate(loader):
        assert equal(batch, sampler(torch.arange(3 * number, 3 * number + 3)))


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_ranks_divide_a_batch(make_sampler, ranks):
    parts = [EpisodeBatches(make_sampler(), 5, rank, ranks)[2].number for rank in range(ranks)]
    assert torch.cat(parts).tolist() == list(range(10, 15))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_same_episodes_on_a_gpu(synthetic_images):
    def draw(device):
        sampler = sampler_of(synthetic_images.to(device), shots=2, queries=2)
        return sampler(torch.arange(100)).to("cpu")

    assert equal(draw("cpu"), draw("cuda"))


def test_split_has_every_class_once():
    for seed in (123, 0):
        splits = split_classes(QUICKDRAW_CLASSES, seed)
        assert [len(splits[name]) for name in ("train", "val", "test")] == [207, 69, 69]
        assert sorted(chain(*splits.values())) == sorted(QUICKDRAW_CLASSES)


def test_split_of_seed_123_is_the_reports():
    """The SHA-256 of the names, in order, of the split that the report's runs used."""
    names = list(chain(*split_classes(QUICKDRAW_CLASSES, 123).values()))
    assert names[0] == "nose"
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
    assert digest == "1d251635d100214b365039251b615f78d86f978ff45e0ca39b76293934a6fb58"


def test_epochs_see_new_training_and_the_same_validation_tasks(tiny_learner, monkeypatch):
    data, learner = tiny_learner()
    seen = {"training": [], "validation": []}
    for name, numbers in seen.items():
        step = getattr(type(learner), f"{name}_step")

        def recorded(self, batch, batch_idx, step=step, numbers=numbers):
            numbers.extend(batch.number.tolist())
            step(self, batch, batch_idx)

        monkeypatch.setattr(type(learner), f"{name}_step", recorded)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(accelerator="cpu", max_epochs=2, num_sanity_val_steps=0, **options).fit(learner, data)
    assert seen == {"training": list(range(24)), "validation": list(range(8)) * 2}


def test_runs_share_evaluation_tasks(tiny_learner):
    (one, _), (other, _) = tiny_learner("seed=1"), tiny_learner("seed=2")
    index = torch.arange(4)
    assert equal(one.episodes("test")(index), other.episodes("test")(index))
    assert not equal(one.episodes("train")(index), other.episodes("train")(index))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.ways=1", "data.ways=1: must be a whole number of at least 2"),
        ("data.shots=0", "data.shots=0"),
        ("data.shots=-1", "data.shots=-1"),
        ("data.queries=0", "data.queries=0"),
        ("data.shots=1.5", "data.shots=1.5"),
        ("data.tasks_per_batch=0", "data.tasks_per_batch=0"),
        ("data.val_batches=0", "data.val_batches=0"),
        ("data.shots=11", "data.shots=11 + data.queries=11 = 22"),
        ("data.ways=70", "data.ways=70: the meta-val split has only 69 classes"),
    ],
)
def test_impossible_episodes_are_refused(tiny_learner, override, says):
    with pytest.raises(Exception) as raised:  # noqa: PT011 (Hydra may wrap it)
        tiny_learner(override)
    line = explain(raised.value)
    assert says in line
    assert "\n" not in line


def test_unknown_split(tiny_learner):
    with pytest.raises(InputError, match="split=dev: must be one of train, val, test"):
        tiny_learner()[0].episodes("dev")
