"""User data sets: folders of synthetic images, class lists, and tests on another data set."""

import os
import shutil

import numpy as np
import pytest
import torch
from conftest import equal
from PIL import Image

import metadraw
from metadraw import InputError
from metadraw.command.cli import one_line_errors
from metadraw.data.datamodule import EpisodeDataModule
from metadraw.data.drawings import Drawings
from metadraw.data.image_folder import ImageFolder
from metadraw.training.evaluate import evaluate
from metadraw.training.train import train

NUMBERS = {
    **dict.fromkeys(("tasks_per_batch", "train_batches", "val_batches", "test_batches"), 2),
    **{"ways": 2, "shots": 1, "queries": 1, "seed": 0, "eval_seed": 0, "split_seed": 0},
    **{"new_classes": "none", "shift": 0, "mirror": False, "train_samples_per_class": None},
}
NAMES = [f"c{number:02}" for number in range(10)]


def write_images(folder, classes=10, images=5, seed=0):
    """Synthetic RGB images of 40 x 32 pixels in several formats; every class has its colour."""
    random = np.random.RandomState(seed)
    for name in NAMES[:classes]:
        (folder / name).mkdir(parents=True)
        colour = random.randint(0, 200, 3)
        for number in range(images):
            pixels = (colour + random.randint(0, 55, (32, 40, 3))).astype(np.uint8)
            suffix = ("png", "JPG", "bmp", "gif", "webp", "tiff")[number % 6]
            Image.fromarray(pixels).save(folder / name / f"{number}.{suffix}")
        (folder / name / ".hidden.png").write_bytes(b"")
        (folder / name / "notes.txt").write_text("no image")
    (folder / ".git").mkdir()
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_images(tmp_path / "synthetic")


@pytest.fixture
def module(folder, tmp_path):
    """A module of that folder, with options."""

    def make(**options):
        own = {"path": folder, "samples_per_class": None, "drawings_seed": 0}
        own |= {"cache_dir": tmp_path / "cache", "image_size": 20}
        return ImageFolder(**NUMBERS | own | options)

    return make


@pytest.fixture
def tiny_folder(folder, tmp_path, monkeypatch):
    """Overrides for a run that takes seconds, on RGB images."""
    monkeypatch.setenv("METADRAW_CACHE", str(tmp_path / "cache"))  # reloaded
    return [
        "data=image_folder",
        f"data.path={folder}",
        f"data.cache_dir={tmp_path / 'cache'}",
        "data.image_size=32",
        "data.image_channels=3",
        "data.ways=2",
        *(f"data.{key}=2" for key in ("train_batches", "val_batches", "test_batches")),
        "data.tasks_per_batch=2",
        "trainer=cpu",
        "trainer.max_epochs=1",
        "model.hidden_channels=4",
        "callbacks.progress_bar.refresh_rate=0",
        f"paths.output_dir={tmp_path / 'run'}",
    ]


# ---- images ------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_and_the_same_episodes_twice(module, channels):
    data = module(image_channels=channels)
    batch = data.episodes("train")(torch.arange(3))
    assert [images.shape for images in data.drawings.images] == [(5, channels, 20, 20)] * 10
    assert {images.dtype for images in data.drawings.images} == {np.dtype(np.uint8)}
    assert data.drawings.classes == tuple(NAMES)
    assert batch.support.x.shape == (3, 2, channels, 20, 20)
    assert batch.support.x.min() >= 0
    assert batch.support.x.max() <= 1
    again = module(image_channels=channels).episodes("train")(torch.arange(3))
    assert equal(batch, again)


def test_fewer_samples_are_the_first_of_more(module):
    few, all_of_them = module(samples_per_class=2).load(), module().load()
    for one, of_all in zip(few.images, all_of_them.images, strict=True):
        assert np.array_equal(one, of_all[:2])
    other = module(samples_per_class=2, drawings_seed=1).load()
    assert not np.array_equal(few.images, other.images)


def test_augmentation_moves_all_channels_alike(module):
    options = {"new_classes": "rotations", "shift": 3, "mirror": True, "train_samples_per_class": 3}
    data = module(image_channels=3, **options)
    grey = data.episodes("train")
    grey.images = grey.images[:, :1]
    colour = data.episodes("train")(torch.arange(4))
    assert colour.query.x.shape == (4, 2, 3, 20, 20)
    assert torch.equal(colour.query.x[:, :, :1], grey(torch.arange(4)).query.x)


def test_the_centre_square_on_white_as_seen(module):
    prepare = module(image_size=8, image_channels=3).prepare
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    clear.paste((255, 0, 0, 255), (0, 0, 4, 8))
    assert prepare(clear)[:, 0, [0, 7]].tolist() == [[255, 255], [0, 255], [0, 255]]
    # Only the centre of a wide image is kept.
    wide = Image.new("L", (40, 8), 0)
    wide.paste(200, (16, 0, 24, 8))
    assert (prepare(wide) == 200).all()
    # Upside down, as its EXIF data say.
    turned = Image.new("L", (8, 8), 0)
    turned.paste(255, (0, 0, 8, 4))
    turned.getexif()[0x0112] = 3
    assert prepare(turned)[0, [0, 7], 0].tolist() == [0, 255]
    deep = Image.fromarray(np.full((8, 8), 257 * 130, np.uint16))
    assert (prepare(deep) == 130).all()
    with pytest.raises(ValueError, match="its pixels are F"):
        prepare(Image.new("F", (8, 8)))


def test_a_zip_archive_is_the_same_as_its_folder(module, folder, tmp_path):
    packed = shutil.make_archive(tmp_path / "packed", "zip", folder.parent, folder.name)
    right, found = module().load(), module(path=packed).load()
    assert found.classes == right.classes
    assert np.array_equal(found.images, right.images)


def test_light_and_dark_exchanged(module):
    straight, inverted = module(), module(prepare="inverted")
    assert np.array_equal(straight.load().images, 255 - np.array(inverted.load().images))
    assert (straight.ink, inverted.ink) == (False, True)


def test_read_once_and_again_where_something_changed(module, folder, monkeypatch):
    read = []
    prepare = ImageFolder.prepare
    monkeypatch.setattr(
        ImageFolder, "prepare", lambda self, image: read.append(1) or prepare(self, image)
    )

    def reads(**options):
        read.clear()
        module(**options).load()
        return len(read)

    assert reads() == 50
    assert reads() == 0
    assert reads(image_size=16) == 50
    assert reads(prepare="ink") == 50
    assert reads(classes=NAMES[:4]) == 20
    assert reads() == 0
    file = folder / "c03" / "0.png"
    Image.new("RGB", (9, 9), "white").save(file)
    assert reads() == 50
    os.utime(file, ns=(1, 1))
    assert reads() == 50
    # A moved folder is the same folder.
    folder.rename(folder.with_name("elsewhere"))
    assert reads(path=folder.with_name("elsewhere")) == 0


def test_a_damaged_cache_is_made_anew(module, tmp_path):
    right = module().load()
    (array,) = (tmp_path / "cache").glob("*/drawings.npy")
    array.write_bytes(array.read_bytes()[:-9])
    assert np.array_equal(module().load().images, right.images)


def test_a_smaller_data_set_by_its_own_classes(module, folder):
    """An excluded class is not read, limits no number of images, and changes no other class."""
    everything = module().load()
    (folder / "c04" / "0.png").write_bytes(b"damaged")
    for file in list((folder / "c05").iterdir()):
        file.unlink()
    data = module(classes=["c02", "c00", "c01"])
    data.setup()
    assert data.drawings.classes == ("c00", "c01", "c02")
    assert np.array_equal(data.drawings.images, everything.images[:3])


def test_classes_of_unequal_size_are_used_as_they_are(module, folder):
    """One class has one image: only that class is refused, and the others keep all images."""
    for number in range(1, 5):
        next((folder / "c04").glob(f"{number}.*")).unlink()
    next((folder / "c07").glob("0.*")).unlink()
    everything = module()
    everything.setup()
    assert [len(images) for images in everything.drawings.images] == [5, 5, 5, 5, 1, 5, 5, 4, 5, 5]
    with pytest.raises(InputError, match=r"there are 1 of c04: .* data\.exclude_classes"):
        everything.episodes("all")
    data = module(exclude_classes=["c04"])
    batch = data.episodes("all")(torch.arange(300))
    assert "c04" not in data.drawings.classes
    seen = [set() for _ in data.drawings.classes]
    for classes, x in zip(batch.about["classes"], batch.query.x, strict=True):
        for number, image in zip(classes.tolist(), x, strict=True):
            pixels = (image * 255).round().to(torch.uint8).numpy()
            own = data.drawings.images[number]
            seen[number] |= {i for i, each in enumerate(own) if np.array_equal(each, pixels)}
    assert [len(places) for places in seen] == [len(own) for own in data.drawings.images]


# ---- class lists ---------------------------------------------------------------------------------


class Squares(EpisodeDataModule):
    """Ten classes of eight drawings."""

    def load(self):
        images = np.random.RandomState(0).randint(0, 255, (10, 8, 28, 28)).astype(np.uint8)
        return Drawings(images, tuple(NAMES), {"source": "synthetic"})


def test_lists_and_files_in_any_order(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("c07\n\n c01 \nc03\n")
    listed, from_file = (Squares(**NUMBERS, classes=c) for c in (["c03", "c01", "c07"], str(file)))
    everything = Squares(**NUMBERS)
    for data in (listed, from_file, everything):
        data.setup()
        together = [name for names in data.splits.values() for name in names]
        assert sorted(together) == list(data.drawings.classes)
    assert listed.drawings.classes == from_file.drawings.classes == ("c01", "c03", "c07")
    for one, number in zip(listed.drawings.images, (1, 3, 7), strict=True):
        assert np.array_equal(one, everything.drawings.images[number])
    assert listed.drawings.provenance == from_file.drawings.provenance
    assert listed.class_count == 3
    batch = listed.episodes("all")(torch.arange(20))
    assert set(batch.about["classes"].flatten().tolist()) == {0, 1, 2}
    with pytest.raises(InputError, match="ways=2: the meta-test split has only 1 classes"):
        listed.episodes("test")


def test_splits_by_name(tmp_path):
    file = tmp_path / "test.txt"
    file.write_text("c09\nc08\n")
    named = {"train_classes": NAMES[:3], "val_classes": ["c05", "c04"], "test_classes": file}
    data = Squares(**NUMBERS, **named)
    batch = data.episodes("test")(torch.arange(20))
    assert data.splits == {"train": NAMES[:3], "val": ["c04", "c05"], "test": ["c08", "c09"]}
    assert set(batch.about["classes"].flatten().tolist()) == {8, 9}
    assert len(data.drawings.provenance["test_classes"]) == 64


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"classes": ["c01", "C02", "x"]}, "data.classes: the data have no C02, x; the closest"),
        ({"classes": ["c011"]}, "the closest name to c011 is c01"),
        ({"classes": ["c01", "c01"]}, "data.classes: c01 repeated"),
        ({"classes": []}, "data.classes: it names no class"),
        ({"classes": 3}, "data.classes=3: expected"),
        ({"classes": "/no/such/file"}, "data.classes=/no/such/file: not a readable"),
        ({"test_classes": ["c01"]}, "data.train_classes, data.val_classes: missing"),
        (
            {"train_classes": NAMES[:4], "val_classes": NAMES[3:6], "test_classes": NAMES[6:]},
            "data.train_classes and data.val_classes share c03",
        ),
        (
            {"train_classes": NAMES[:3], "val_classes": ["c04", "c05"], "test_classes": ["dog"]},
            "data.test_classes: the data have no dog",
        ),
    ],
)
def test_wrong_names(options, says):
    with pytest.raises(InputError) as raised:
        Squares(**NUMBERS, **options).setup()
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


# ---- whole runs ----------------------------------------------------------------------------------


def test_train_on_images_and_test_on_others(tiny_folder, tmp_path):
    # Its schedule is planned by the number of batches, which another data set does not change.
    found = train(metadraw.compose(*tiny_folder, "scheduler=one_cycle"))
    assert 0 <= found["test"]["acc"] <= 1
    assert found["data"]["source"] == "image_folder"
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"

    def test(*overrides):
        quiet = ["trainer=cpu", f"paths.output_dir={tmp_path / 'eval'}"]
        cfg = metadraw.compose(f"ckpt_path={checkpoint}", *quiet, *overrides, config="eval")
        return evaluate(cfg)

    assert test()["test"]["loss"] == found["test"]["loss"]
    other = write_images(tmp_path / "other", classes=3, images=4, seed=1)
    another = ["data=image_folder", f"data.path={other}", f"data.cache_dir={tmp_path / 'cache'}"]
    there = test(*another, "split=all", "data.shots=2")
    assert there["test"]["tasks"] == 4
    assert there["test"]["split"] == "all"
    assert there["data"]["location"] == str(other)
    # Tasks and image size as trained, except for overrides and keys that follow them.
    data = there["config"]["data"]
    expected = {"ways": 2, "shots": 2, "queries": 2, "image_size": 32, "image_channels": 3}
    assert {key: data[key] for key in expected} == expected
    assert data["samples_per_class"] is None
    assert (tmp_path / "eval" / "episode.png").exists()
    with pytest.raises(InputError, match="the meta-test split has only 1 classes"):
        test(*another)
    with pytest.raises(InputError, match="of another network"):
        test(*another, "split=all", "data.image_channels=1")
    with pytest.raises(SystemExit, match=r"error: .*data\.path"), one_line_errors():
        test("data=image_folder")


def test_a_checkpoint_uses_the_cache_of_the_machine_that_reads_it(
    tiny_folder, tmp_path, monkeypatch
):
    """Not that of its maker, whose path an older checkpoint has in its config."""
    train(metadraw.compose(*tiny_folder))
    path, makers = tmp_path / "run" / "checkpoints" / "best.ckpt", tmp_path / "cache"
    assert makers.is_dir()
    assert str(makers) not in (tmp_path / "run" / "results.json").read_text()
    checkpoint = torch.load(path, weights_only=True)
    assert str(makers) not in str(checkpoint["metadraw_config"])
    checkpoint["metadraw_config"]["data"]["cache_dir"] = str(makers)
    torch.save(checkpoint, tmp_path / "older.ckpt")
    shutil.rmtree(makers)
    for number, file in enumerate((path, tmp_path / "older.ckpt")):
        for use in (metadraw.load, use_in_python):
            here = tmp_path / f"{use.__name__}-{number}"
            monkeypatch.setenv("METADRAW_CACHE", str(here))
            use(file)
            assert any(here.glob("images-*"))
    assert not makers.exists()
    metadraw.load(path, f"data.cache_dir={makers}")
    assert makers.is_dir()


def use_in_python(path):
    """As the page of demo.py, which shows real drawings."""
    metadraw.FewShot(path).data.setup()


def test_a_checkpoint_from_before_data_had_the_size(tiny_folder, tmp_path):
    """Its config lacks these keys; those of the network describe its images."""
    train(metadraw.compose(*tiny_folder))
    path = tmp_path / "run" / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    data = checkpoint["metadraw_config"]["data"]
    for key in ("image_size", "image_channels", "classes", "train_classes", "val_classes"):
        del data[key]
    del data["test_classes"]
    torch.save(checkpoint, path)
    data, learner = metadraw.load(path)
    assert (data.image_size, data.image_channels) == (32, 3)
    assert learner.evaluate(data.episodes("test")(torch.arange(2))).after.shape == (2, 2, 2)


def damage(folder):
    (folder / "c02" / "1.JPG").write_bytes(b"\xff\xd8\xff cut off")


def empty(folder):
    for file in (folder / "c02").iterdir():
        file.unlink()


WRONG = {
    "missing": (["data.path=/no/such/folder"], None, "data.path=/no/such/folder is not a folder"),
    "no path": (["data.path=???"], None, "data.path"),
    "a damaged image": ([], damage, "c02/1.JPG cannot be read as an image"),
    "an empty class": ([], empty, "data.queries=1 = 2 drawings of a class, but there are 0 of c02"),
    "nothing": (["data.classes=[c02]"], empty, "holds no images in c02"),
    "too many shots": (["data.shots=3"], None, "data.queries=3 = 6 drawings of a class, but there"),
    "left out": ([f"data.exclude_classes=[{','.join(NAMES)}]"], None, "leaves no class"),
    "unknown": (["data.exclude_classes=[c0]"], None, "data.exclude_classes: the data have no c0"),
    "too many ways": (["data.ways=5"], None, "the meta-val split has only 2 classes"),
    "prepare": (["data.prepare=white"], None, "data.prepare=white: must be one of as_is, inverted"),
    "prepare nothing": (
        ["data.prepare=null"],
        None,
        "data.prepare=None: must be one of as_is, inverted",
    ),
    "ink in colour": (
        ["data.prepare=ink"],
        None,
        "data.prepare=ink with data.image_channels=3",
    ),
    "channels": (["data.image_channels=2"], None, "data.image_channels=2: must be 1"),
    "size": (["data.image_size=0"], None, "data.image_size=0: must be a whole number"),
    "small": (["data.image_size=8"], None, "image_size=8: four poolings need at least 16"),
    "samples": (["data.samples_per_class=0"], None, "data.samples_per_class=0"),
    "seed": (["data.drawings_seed=-1"], None, "data.drawings_seed=-1"),
    "cache": (["data.cache_dir=/dev/null/x"], None, "data.cache_dir=/dev/null/x: cannot keep"),
    "names": (["data.classes=[c01,d02]"], None, "data.classes: the data have no d02"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_input_is_told_in_one_line(tiny_folder, folder, wrong):
    overrides, change, says = WRONG[wrong]
    if change:
        change(folder)
    with pytest.raises(SystemExit) as stopped, one_line_errors():
        train(metadraw.compose(*tiny_folder, *overrides))
    line = str(stopped.value)
    assert line.startswith("error: ")
    assert says in line
    assert "\n" not in line


def test_no_class_folders(module, tmp_path):
    (tmp_path / "flat").mkdir()
    with pytest.raises(InputError, match="holds no class folders"):
        module(path=tmp_path / "flat").load()


def test_an_image_that_would_fill_the_memory(module, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match=r"cannot be read as an image \(Image size"):
        module().load()


def test_quick_draw_has_one_size(tiny):
    with pytest.raises(InputError, match=r"image_size=32, .* the drawings are 28 x 28 pixels"):
        metadraw.build(metadraw.compose(*tiny, "data.image_size=32"))
