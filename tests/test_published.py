"""The field's benchmarks: small files in each form in which they are handed on."""

import csv
import io
import json
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from test_image_folder import NUMBERS

import metadraw
from metadraw import InputError
from metadraw.command.cli import one_line_errors
from metadraw.data.published import WHERE, Published

SIZES = {
    "mini_imagenet": (64, 16, 20),
    "tiered_imagenet": (351, 97, 160),
    "cifar_fs": (64, 16, 20),
    "fc100": (60, 20, 20),
    "cub": (100, 50, 50),
}
SAMPLES = 2


def published(name):
    path = ROOT / "src" / "metadraw" / "data" / "published" / f"{name}.csv"
    with path.open(newline="") as file:
        return {row["class"]: row["split"] for row in csv.DictReader(file)}


def picture(label, number):
    """32 x 32 pixels that say which class and which picture they are."""
    random = np.random.RandomState(sum(map(ord, label)) * 10 + number)
    return random.randint(0, 256, (32, 32, 3)).astype(np.uint8)


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def make(tmp_path):
    """A data module, with options."""

    def make(split, path, **options):
        own = {"samples_per_class": None, "drawings_seed": 0, "cache_dir": tmp_path / "cache"}
        own |= {"image_size": 32, "image_channels": 3}
        return Published(**NUMBERS | own | options, split=split, path=path)

    return make


def in_folders(place, split, inside=""):
    for label, part in published(split).items():
        folder = place / inside.format(part) / label
        folder.mkdir(parents=True)
        for number in range(SAMPLES):
            (folder / f"{number}.png").write_bytes(png(picture(label, number)))
    return place


def in_one_folder(place, split):
    """As mini-ImageNet is handed on: all files in one folder, and three tables."""
    (place / "images").mkdir(parents=True)
    rows = {"train": [], "val": [], "test": []}
    for label, part in published(split).items():
        for number in range(SAMPLES):
            name = f"{label}0000000{number}.png"
            (place / "images" / name).write_bytes(png(picture(label, number)))
            rows[part].append(f"{name},{label}")
    for part, lines in rows.items():
        (place / f"{part}.csv").write_text("\n".join(["filename,label", *lines]) + "\n")
    return place


def in_binary(place, split):
    """CIFAR-100's records: superclass, class, and three planes."""
    place.mkdir()
    labels = sorted(published(split))
    (place / "fine_label_names.txt").write_text("\n".join(labels) + "\n")
    for number, file in enumerate(("train.bin", "test.bin")):
        with (place / file).open("wb") as stream:
            for place_of, label in enumerate(labels):
                stream.write(bytes([0, place_of]))
                stream.write(picture(label, number).transpose(2, 0, 1).tobytes())
    return place


def in_parquet(place, split):
    """As Hugging Face writes it: labels are numbers, whose names are in the metadata."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    place.mkdir()
    labels = sorted(published(split))
    named = ["cra" if label == "crab" else label for label in labels]
    features = {"img": {"_type": "Image"}, "fine_label": {"_type": "ClassLabel", "names": named}}
    described = metadata_of(features)
    for number, file in enumerate(("train-00000.parquet", "test-00000.parquet")):
        pictures = [{"bytes": png(picture(label, number)), "path": None} for label in labels]
        table = pyarrow.table({"img": pictures, "fine_label": list(range(len(labels)))})
        parquet.write_table(table.replace_schema_metadata(described), place / file)
    return place


def metadata_of(features):
    return {"huggingface": json.dumps({"info": {"features": features}})}


def zipped(place, split):
    in_folders(place / "unpacked" / "data", split)
    return shutil.make_archive(place / "packed", "zip", place / "unpacked")


FORMS = {
    "folders": ("cub", in_folders),
    "folders of splits": ("tiered_imagenet", lambda p, s: in_folders(p, s, "{}")),
    "zip": ("cifar_fs", zipped),
    "tables": ("mini_imagenet", in_one_folder),
    "binary": ("fc100", in_binary),
    "parquet": ("cifar_fs", in_parquet),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form(make, tmp_path, form):
    split, write = FORMS[form]
    data = make(split, write(tmp_path / "data", split))
    data.setup()
    assert tuple(len(names) for names in data.splits.values()) == SIZES[split]
    lists = {name: part for part, names in data.splits.items() for name in names}
    assert lists == published(split)
    for name, images in zip(data.drawings.classes, data.drawings.images, strict=True):
        expected = [picture(name, number).transpose(2, 0, 1) for number in range(SAMPLES)]
        given = sorted(images.tobytes()[at : at + 3072] for at in (0, 3072))
        assert given == sorted(image.tobytes() for image in expected), name
    batch = data.episodes("test")(torch.arange(3))
    assert batch.query.x.shape == (3, 2, 3, 32, 32)
    assert data.provenance["source"] == split


def test_lists_are_the_published_ones():
    """By what the papers say of them; names themselves are checked against a user's pictures."""
    assert set(SIZES) == set(WHERE)
    for name, sizes in SIZES.items():
        counts = Counter(published(name).values())
        assert tuple(counts[split] for split in ("train", "val", "test")) == sizes
    # Chen et al. 2019: species by number, odd, and two of four.
    kinds = {1: "train", 2: "val", 3: "train", 0: "test"}
    assert published("cub") == {name: kinds[int(name[:3]) % 4] for name in published("cub")}
    # FC100 does not divide CIFAR-100's superclasses (Oreshkin et al. 2018); three of them.
    people = ("baby", "boy", "girl", "man", "woman")
    flowers = ("orchid", "poppy", "rose", "sunflower", "tulip")
    fc100 = published("fc100")
    assert {fc100[name] for name in people} == {"test"}
    assert {fc100[name] for name in flowers} == {"train"}
    assert {fc100[name] for name in ("crab", "lobster", "snail", "spider", "worm")} == {"val"}
    assert set(fc100) == set(published("cifar_fs"))
    # Ravi and Larochelle 2017.
    assert published("mini_imagenet")["n01532829"] == "train"  # house finch
    assert published("mini_imagenet")["n01930112"] == "test"  # nematode


def test_own_classes_instead(make, tmp_path):
    """A user's lists of names, such as splits/bertinetto/train.txt, need no published class."""
    place = in_folders(tmp_path / "data", "cifar_fs", "data")
    for split, names in (("train", "apple\nbee\n"), ("val", "crab\nfox\n"), ("test", "own\nbed\n")):
        (tmp_path / f"{split}.txt").write_text(names)
    shutil.copytree(place / "data" / "cup", place / "data" / "own")
    named = {
        f"{split}_classes": str(tmp_path / f"{split}.txt") for split in ("train", "val", "test")
    }
    data = make("cifar_fs", place, **named)
    data.setup()
    assert data.splits == {
        "train": ["apple", "bee"],
        "val": ["crab", "fox"],
        "test": ["bed", "own"],
    }


@pytest.mark.parametrize("name", SIZES)
def test_configs_have_the_size_of_papers_and_say_where_to_get_it(name):
    cfg = metadraw.compose(f"data={name}")
    side = 32 if name in ("cifar_fs", "fc100") else 84
    assert (cfg.data.image_size, cfg.data.image_channels) == (side, 3)
    says = rf"error: data\.path=FOLDER is missing: {name} needs .*https://"
    with pytest.raises(SystemExit, match=says), one_line_errors():
        metadraw.build(cfg)


def lose(place):
    shutil.rmtree(place / "apple")


def rename(file, text):
    def change(place):
        for child in list(place.iterdir()):
            shutil.rmtree(child)
        (place / file).write_text(text)

    return change


def add(file, text):
    return lambda place: (place / file).write_text(text)


WRONG = {
    "a class": (lose, "lacks 1 of the 100 classes of cifar_fs: apple"),
    "a pickle": (rename("mini-imagenet-cache-train.pkl", ""), "is a pickle, which may run any"),
    "an archive": (rename("CUB_200_2011.tgz", ""), "is a tar archive: unpack it"),
    "nothing": (rename("notes.txt", ""), "holds no pictures in folders named by class"),
    "columns": (add("train.csv", "a,b\n1,2\n"), "train.csv: expected the columns filename and"),
    "a file": (add("train.csv", "filename,label\nx.png,bee\n"), "there is no file x.png"),
    "no records": (add("fine_label_names.txt", "apple\n"), "train.bin: missing, or not a file"),
    "no parquet": (add("a.parquet", "PAR1"), "a.parquet"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_read_is_told_in_one_line(make, tmp_path, wrong):
    change, says = WRONG[wrong]
    change(place := in_folders(tmp_path / "data", "cifar_fs"))
    with pytest.raises(InputError) as info:
        make("cifar_fs", place).load()
    assert says in str(info.value)
    assert "\n" not in str(info.value)


def test_wrong_options(make, tmp_path):
    with pytest.raises(InputError, match=r"data\.split=imagenet: must be one of mini_imagenet"):
        make("imagenet", tmp_path)
    with pytest.raises(InputError, match="there is no such folder or archive"):
        make("cub", tmp_path / "missing").load()
