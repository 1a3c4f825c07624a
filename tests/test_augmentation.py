"""Augmentation: worked by hand, only in meta-training, each choice a function of its drawing."""

import numpy as np
import pytest
import torch
from conftest import equal, sampler_of

import metadraw
from metadraw import InputError
from metadraw.command.cli import explain
from metadraw.data import augmentation
from metadraw.data.datamodule import EpisodeDataModule
from metadraw.data.drawings import Drawings

CLASSES = 12
EVERYTHING = {"orientations": 4, "shift": 2, "mirror": True}


@pytest.fixture(scope="module")
def marked():
    """[12, 9, 28, 28] uint8: three asymmetric pixels, whose values identify the drawing."""
    images = torch.zeros(CLASSES, 9, 28, 28, dtype=torch.uint8)
    images[:, :, 3, 4] = torch.arange(1, 1 + CLASSES, dtype=torch.uint8)[:, None]
    images[:, :, 3, 5] = torch.arange(1, 10, dtype=torch.uint8)
    images[:, :, 6, 4] = 255
    return images


def sampler(images, *, split="train", ways=5, shots=2, queries=2, **options):
    return sampler_of(images, split=split, ways=ways, shots=shots, queries=queries, **options)


def by_class(x, ways):
    """[T, N*K, 1, H, W] float32 in 0..1 -> [T, N, K, H, W] uint8."""
    return (x[:, :, 0] * 255).round().to(torch.uint8).unflatten(1, (ways, -1))


def orientations(picture):
    """The eight orientations of an array by NumPy, in the order of their numbers."""
    return [np.rot90(p, turns) for p in (picture, np.fliplr(picture)) for turns in range(4)]


# ---- the functions -------------------------------------------------------------------------------


def test_eight_orientations_by_hand():
    picture = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8)
    seen = augmentation.orient(picture.expand(8, 2, 2), torch.arange(8))
    assert seen.dtype == torch.uint8
    assert seen.flatten(1).tolist() == [
        [1, 2, 3, 4],
        [2, 4, 1, 3],
        [4, 3, 2, 1],
        [3, 1, 4, 2],
        [2, 1, 4, 3],
        [1, 3, 2, 4],
        [3, 4, 1, 2],
        [4, 2, 3, 1],
    ]


def test_orientations_are_distinct_and_numpys():
    pictures = torch.arange(6 * 5 * 5, dtype=torch.uint8).view(2, 3, 1, 5, 5).expand(2, 3, 8, 5, 5)
    seen = augmentation.orient(pictures, torch.arange(8))
    assert seen.shape == pictures.shape
    for before, after in zip(pictures.flatten(0, 1), seen.flatten(0, 1), strict=True):
        assert np.array_equal(after, orientations(before[0].numpy()))
        assert len(after.flatten(1).unique(dim=0)) == 8


def test_orientations_of_pictures_that_are_not_square():
    picture = torch.arange(6).view(2, 3)
    mirrored = augmentation.orient(picture.expand(2, 2, 3), torch.tensor([4, 2]))
    assert mirrored.tolist() == [[[2, 1, 0], [5, 4, 3]], [[5, 4, 3], [2, 1, 0]]]


def test_shift_by_hand():
    picture = torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.uint8)
    dx, dy = torch.tensor([0, 1, -2, 0, 0, 3]), torch.tensor([0, 0, 0, 1, -1, 0])
    moved = augmentation.shift(picture.expand(6, 2, 3), dx, dy)
    assert moved.dtype == torch.uint8
    assert moved.tolist() == [
        [[1, 2, 3], [4, 5, 6]],
        [[0, 1, 2], [0, 4, 5]],
        [[3, 0, 0], [6, 0, 0]],
        [[0, 0, 0], [1, 2, 3]],
        [[4, 5, 6], [0, 0, 0]],
        [[0, 0, 0], [0, 0, 0]],
    ]


# ---- episodes ------------------------------------------------------------------------------------


def test_off_changes_nothing(marked):
    number = torch.arange(20)
    off = sampler(marked, orientations=1, shift=0, mirror=False)(number)
    assert equal(off, sampler(marked)(number))


@pytest.mark.parametrize(
    ("count", "mirror"), [(1, False), (1, True), (4, False), (4, True), (8, False)]
)
def test_a_new_class_is_its_class_in_one_orientation(marked, count, mirror):
    """The picture alone identifies a drawing: each matches its class, and is drawn once."""
    draw = sampler(marked, shots=3, queries=4, orientations=count, mirror=mirror)
    batch = draw(torch.arange(200))
    pictures = torch.cat([by_class(batch.support.x, 5), by_class(batch.query.x, 5)], dim=2)
    names = {
        seen.tobytes(): (c, s, number)
        for c in range(CLASSES)
        for s in range(9)
        for number, seen in enumerate(orientations(marked[c, s].numpy()))
    }
    found = {True: 0, False: 0}
    for classes, task in zip(batch.about["classes"].tolist(), pictures, strict=True):
        assert len(set(classes)) == 5
        for id_, of_class in zip(classes, task, strict=True):
            named = [names[picture.numpy().tobytes()] for picture in of_class]
            assert len({s for _, s, _ in named}) == 7  # support and query: no repetition
            for c, _, number in named:
                assert c == id_ % CLASSES
                assert number == id_ // CLASSES or (mirror and number == id_ // CLASSES + 4)
                found[number == id_ // CLASSES] += 1
    assert set(batch.about["classes"].unique().tolist()) == set(range(CLASSES * count))
    # Half are mirrored (6 standard deviations).
    expected = sum(found.values()) / 2 if mirror else 0
    assert abs(found[False] - expected) <= 6 * (expected / 2) ** 0.5


def test_orientations_of_a_class_meet_in_a_task(marked):
    classes = sampler(marked, ways=40, orientations=4)(torch.arange(3)).about["classes"]
    for task in classes:
        assert len(task.unique()) == 40
        assert len((task % CLASSES).unique()) == CLASSES


def test_every_shift_is_equally_likely_and_independent(marked):
    """Measured by the position of each drawing's brightest pixel (6 standard deviations)."""
    batch = sampler(marked, shift=2)(torch.arange(1000))
    for x in (batch.support.x, batch.query.x):
        at = x.flatten(2).argmax(2).flatten()
        dy, dx = at // 28 - 6, at % 28 - 4
        assert dy.abs().max() == dx.abs().max() == 2
        counts = (5 * (dy + 2) + dx + 2).bincount(minlength=25).double()
        expected = len(at) / 25
        assert (counts - expected).abs().max() < 6 * (expected * 24 / 25) ** 0.5


def test_more_ways_or_shots_extend_an_augmented_episode(marked):
    small, large = (
        sampler(marked, ways=ways, shots=shots, **EVERYTHING)(torch.arange(30))
        for ways, shots in ((3, 1), (6, 4))
    )
    assert torch.equal(small.about["classes"], large.about["classes"][:, :3])
    assert torch.equal(small.support.x, large.support.x[:, [0, 4, 8]])
    # The smaller episode's queries are drawn next: they are support drawings here.
    expected = by_class(large.support.x, 6)[:, :3, 1:3]
    assert torch.equal(by_class(small.query.x, 3), expected)
    first_five = sampler(marked, ways=5, **EVERYTHING)(torch.arange(30)).about["classes"]
    assert torch.equal(
        first_five, sampler(marked, ways=10, **EVERYTHING)(torch.arange(30)).about["classes"][:, :5]
    )


def test_a_drawing_is_augmented_alike_at_any_place_in_an_episode(marked):
    """With fewer drawings, the same ones come in other positions, but are augmented alike."""
    many = sampler(marked, shots=5, queries=4, **EVERYTHING)(torch.arange(30))
    few = sampler(marked[:, :5], shots=3, queries=2, **EVERYTHING)(torch.arange(30))
    all_nine, all_five = (
        torch.cat([by_class(batch.support.x, 5), by_class(batch.query.x, 5)], dim=2).flatten(-2)
        for batch in (many, few)
    )
    found = (all_five[:, :, :, None] == all_nine[:, :, None]).all(-1)  # [T, N, 5, 9]
    assert found.any(-1).all()
    assert not found[..., range(5), range(5)].all()


def test_an_augmented_episode_depends_on_nothing_but_seed_split_and_index(marked):
    draw = sampler(marked, **EVERYTHING)
    together = draw(torch.arange(10))
    assert equal(together, sampler(marked, **EVERYTHING)(torch.arange(10)))
    assert equal(together.task(7), draw(torch.tensor([3, 7])).task(1))
    assert not equal(together, sampler(marked, seed=1, **EVERYTHING)(torch.arange(10)))


def test_a_drawing_is_augmented_anew_in_another_episode(marked):
    """One class, one drawing: episodes differ only in augmentation."""
    options = {"ways": 2, "shots": 4, "queries": 5, "shift": 1, "mirror": True}
    draw = sampler_of(marked[:1].expand(2, -1, -1, -1), **options)
    batch = draw(torch.arange(200))
    pictures = torch.cat([by_class(batch.support.x, 2), by_class(batch.query.x, 2)], dim=2)
    assert len(pictures.flatten(0, 2).flatten(1).unique(dim=0)) == 9 * 9 * 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_same_augmentation_on_a_gpu(marked):
    number = torch.arange(100)
    on_gpu = sampler(marked.cuda(), **EVERYTHING)(number).to("cpu")
    assert equal(on_gpu, sampler(marked, **EVERYTHING)(number))


# ---- the data module -----------------------------------------------------------------------------

OVERRIDES = ["data.new_classes=rotations", "data.shift=2", "data.mirror=true"]


def test_only_meta_training_is_augmented(tiny_learner):
    plain, augmented = tiny_learner()[0], tiny_learner(*OVERRIDES)[0]
    number = torch.arange(8)
    for split in ("val", "test"):
        assert equal(plain.episodes(split)(number), augmented.episodes(split)(number))
    one, other = plain.episodes("train")(number), augmented.episodes("train")(number)
    assert not torch.equal(one.support.x, other.support.x)
    assert one.about["classes"].max() < 345 <= other.about["classes"].max() < 4 * 345
    assert (plain.class_count, augmented.class_count) == (345, 4 * 345)


def test_class_count_with_mirrors(tiny_learner):
    assert tiny_learner("data.new_classes=rotations_mirrors")[0].class_count == 8 * 345


class Small(EpisodeDataModule):
    """20 classes of drawings of 10 x 10 pixels, or of another height."""

    height = 10

    def load(self):
        random = np.random.RandomState(0)
        images = random.randint(0, 255, (20, 8, self.height, 10)).astype(np.uint8)
        return Drawings(images, tuple(map(str, range(20))), {})


@pytest.fixture
def small():
    """A module of drawings of another size; 12 / 4 / 4 classes."""
    numbers = dict.fromkeys(("train_batches", "val_batches", "test_batches", "tasks_per_batch"), 1)
    numbers |= {"ways": 3, "shots": 1, "queries": 1, "seed": 0, "eval_seed": 0, "split_seed": 0}
    numbers["image_size"] = 10
    off = {"new_classes": "none", "shift": 0, "mirror": False, "train_samples_per_class": None}
    return lambda **options: Small(**numbers | off | options)


def test_drawings_of_another_size(small):
    batch = small(shift=9, mirror=True).episodes("train")(torch.arange(3))
    assert batch.query.x.shape == (3, 3, 1, 10, 10)
    with pytest.raises(InputError, match="shift=10: must be below 10"):
        small(shift=10)
    with pytest.raises(InputError, match=r"image_size=28, .* the drawings are 10 x 10 pixels"):
        small(image_size=28).setup()
    not_square = small()
    not_square.height = 14
    with pytest.raises(InputError, match=r"image_size=10, .* the drawings are 14 x 10 pixels"):
        not_square.setup()


def test_ways_are_checked_against_the_classes_that_there_are(tiny_learner, small):
    with pytest.raises(InputError, match="ways=13: the meta-train split has only 12 classes"):
        small(ways=13).episodes("train")
    # New classes suffice for meta-training, but the other splits have none.
    with pytest.raises(InputError, match="ways=208: the meta-val split has only 69 classes"):
        tiny_learner("data.ways=208", "data.new_classes=rotations")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["new_classes=all"], "data.new_classes=all: must be one of none, rotations, rotations_"),
        (["new_classes=null"], "data.new_classes=None: must be one of none, rotations, rotations_"),
        (["shift=-1"], "data.shift=-1: must be a whole number of at least 0"),
        (["shift=1.5"], "data.shift=1.5: must be a whole number of at least 0"),
        (["shift=true"], "data.shift=True: must be a whole number of at least 0"),
        (["shift=28"], "data.shift=28: must be below 28"),
        (["mirror=1"], "data.mirror=1: must be true or false"),
        (["mirror=always"], "data.mirror=always: must be true or false"),
        (
            ["mirror=true", "new_classes=rotations_mirrors"],
            "data.mirror=true with data.new_classes=rotations_mirrors",
        ),
    ],
)
def test_impossible_augmentation_is_refused(tiny, overrides, says):
    cfg = metadraw.compose(*tiny, *(f"data.{override}" for override in overrides))
    with pytest.raises(Exception) as raised:  # noqa: PT011 (Hydra may wrap it)
        metadraw.build(cfg)
    line = explain(raised.value)
    assert says in line
    assert "\n" not in line
