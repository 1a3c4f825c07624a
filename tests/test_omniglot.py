"""Omniglot: real drawings in the form of its archives, from a server and from a folder."""

import hashlib
import shutil
import zipfile
from io import BytesIO

import numpy as np
import pytest
import torch
from conftest import equal, sampler_of
from PIL import Image
from range_server import serve
from test_image_folder import NUMBERS

import metadraw
from metadraw import InputError
from metadraw.data import download, omniglot
from metadraw.data.bitmap import to_bitmap
from metadraw.data.omniglot import EVALUATION, Omniglot
from metadraw.training.evaluate import evaluate
from metadraw.training.train import train

#: As its authors name them: five alphabets of the background set and two of the evaluation set.
ALPHABETS = {"Balinese": 4, "Greek": 3, "Hebrew": 3, "Korean": 4, "Latin": 3}
ALPHABETS |= {"Gurmukhi": 3, "Kannada": 4}
DRAWERS = 4


def png(drawing):
    """A doodle as Omniglot's files are: 105 x 105 pixels, dark ink on white, one bit each."""
    large = Image.fromarray(255 - drawing).resize((105, 105), Image.Resampling.BICUBIC)
    stream = BytesIO()
    large.convert("1", dither=Image.Dither.NONE).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def drawings(from_npm):
    """Files by alphabet, character and drawer: real doodles under the names of characters."""
    images, found = iter(from_npm[0].images), {}
    for alphabet, characters in ALPHABETS.items():
        for number in range(1, characters + 1):
            number += 40 * (alphabet == "Gurmukhi")  # 41, 42 and 43
            for drawer, image in enumerate(next(images)[:DRAWERS], 1):
                path = f"{alphabet}/character{number:02}/{number:04}_{drawer:02}.png"
                found[path] = png(image)
    return found


def pack(file, folder, drawings):
    with zipfile.ZipFile(file, "w") as archive:
        for path, content in drawings.items():
            archive.writestr(f"{folder}/{path}", content)


@pytest.fixture
def archives(drawings, tmp_path, monkeypatch):
    """A folder with both archives of these drawings, which have the right checksums."""
    folder = tmp_path / "archives"
    folder.mkdir()
    for name in omniglot.ARCHIVES:
        evaluates = "evaluation" in name
        chosen = {p: d for p, d in drawings.items() if (p.split("/")[0] in EVALUATION) == evaluates}
        pack(folder / name, name.removesuffix(".zip"), chosen)
    md5s = {f.name: hashlib.md5(f.read_bytes()).hexdigest() for f in folder.iterdir()}
    monkeypatch.setattr(omniglot, "ARCHIVES", {name: md5s[name] for name in omniglot.ARCHIVES})
    return folder


@pytest.fixture
def make(tmp_path):
    """A data module, with options."""

    def make(**options):
        own = {"source": "path", "base_url": "http://127.0.0.1:9", "samples_per_class": None}
        own |= {"path": None, "drawings_seed": 0, "cache_dir": tmp_path / "cache"}
        return Omniglot(**NUMBERS | own | {"split": "published"} | options)

    return make


def refused(use, *arguments, **options):
    with pytest.raises(InputError) as info:
        use(*arguments, **options)
    assert "\n" not in str(info.value)
    return str(info.value)


# ---- files ---------------------------------------------------------------------------------------


def test_files_become_light_ink_on_black(make, archives, drawings):
    data = make(path=archives)
    data.setup()
    assert len(data.drawings.classes) == sum(ALPHABETS.values())
    assert list(data.drawings.classes) == sorted({path.rpartition("/")[0] for path in drawings})
    place = data.drawings.classes.index("Latin/character02")
    file = Image.open(BytesIO(drawings["Latin/character02/0002_03.png"])).convert("L")
    small = np.asarray(file.resize((28, 28), Image.Resampling.BICUBIC))
    images = data.drawings.images[place][:, 0]
    assert sum(np.array_equal(image, 255 - small) for image in images) == 1
    assert images.mean() < 100  # most of it is ground
    assert data.ink
    converted = make(path=archives, prepare="ink").load().images[place][:, 0]
    assert sum(np.array_equal(image, to_bitmap(file)) for image in converted) == 1


def test_archives_folders_and_both_are_the_same(make, archives, drawings, tmp_path):
    """And drawings that are in two places count once."""
    packed = make(path=archives).load()
    with zipfile.ZipFile(archives / "images_background.zip") as archive:
        archive.extractall(archives)
    both = make(path=archives).load()
    for path, content in drawings.items():
        file = tmp_path / "unpacked" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    unpacked = make(path=tmp_path / "unpacked").load()
    for other in (both, unpacked):
        assert other.classes == packed.classes
        assert np.array_equal(other.images, packed.images)
    one = make(path=archives / "images_evaluation.zip", split="characters").load()
    assert {name.split("/")[0] for name in one.classes} == {"Gurmukhi", "Kannada"}
    (archives / "images_background" / "Greek" / "character01" / "0001_01.png").write_bytes(b"x")
    assert "is another drawing than" in refused(make(path=archives).load)
    flat = tmp_path / "unpacked" / "Greek"
    assert "expected" in refused(make(path=flat).load)
    assert "ALPHABET/CHARACTER/DRAWING.png" in refused(make(path=flat).load)
    shutil.rmtree(archives / "images_background")
    (archives / "images_evaluation.zip").write_bytes(b"PK cut off")
    assert "images_evaluation.zip: cannot be read" in refused(make(path=archives).load)


# ---- splits and groups ---------------------------------------------------------------------------


def splits_of(data):
    data.setup()
    together = [name for names in data.splits.values() for name in names]
    assert sorted(together) == list(data.drawings.classes)
    return {s: {name.split("/")[0] for name in names} for s, names in data.splits.items()}


def test_splits(make, archives):
    published = splits_of(make(path=archives))
    assert published["test"] == {"Gurmukhi", "Kannada"}
    assert len(published["val"]) == 1
    vinyals = make(path=archives, split="vinyals")
    alphabets = splits_of(vinyals)
    assert alphabets["val"] == {"Hebrew"}
    tested = [name for name in vinyals.splits["test"] if name.startswith("Gurmukhi")]
    assert tested == ["Gurmukhi/character42", "Gurmukhi/character43"]
    assert "Gurmukhi/character41" in vinyals.splits["train"]
    by_alphabet = splits_of(make(path=archives, split="alphabets"))
    assert [len(names) for names in by_alphabet.values()] == [4, 2, 1]
    assert not by_alphabet["train"] & by_alphabet["test"]
    characters = splits_of(make(path=archives, split="characters"))
    assert characters["train"] & characters["test"]
    named = {f"{s}_classes": n for s, n in make_names(vinyals).items()}
    assert splits_of(make(path=archives, **named)) == alphabets
    none = make(path=archives / "images_background.zip")
    assert "no alphabet of the evaluation set: must be alphabets" in refused(none.setup)


def make_names(data):
    return {split: list(reversed(names)) for split, names in data.splits.items()}


def test_tasks_of_one_alphabet(make, archives):
    options = {"path": archives, "split": "characters", "ways": 3, "new_classes": "rotations"}
    data = make(**options, within_groups=True)
    everything = data.episodes("all")(torch.arange(300)).about["classes"]
    found = [[data.drawings.classes[c].split("/")[0] for c in row] for row in everything.tolist()]
    assert {len(set(row)) for row in found} == {1}
    counts = {alphabet: sum(row[0] == alphabet for row in found) for alphabet in ALPHABETS}
    assert min(counts.values()) > 20  # of 43 on average: alphabets are equally likely
    # Orientations of a class are of its alphabet.
    trained = data.episodes("train")(torch.arange(300)).about["classes"]
    names = len(data.drawings.classes)
    assert trained.max() >= names
    first = [{data.drawings.classes[c % names].split("/")[0] for c in r} for r in trained.tolist()]
    assert {len(row) for row in first} == {1}
    # Alphabets of fewer characters are left out, and none may be left.
    four = make(**options | {"ways": 4}, within_groups=True).episodes("all")(torch.arange(50))
    seen = {data.drawings.classes[c].split("/")[0] for c in four.about["classes"].flatten()}
    assert seen == {"Balinese", "Korean", "Kannada"}
    five = make(**options | {"ways": 5}, within_groups=True)
    assert "data.ways=5: with data.within_groups=true" in refused(five.episodes, "all")


def test_groups_of_the_sampler(synthetic_images):
    """Classes of one group are drawn as if there were no others; one group changes nothing."""
    plain = sampler_of(synthetic_images, ways=3)(torch.arange(40))
    assert equal(
        plain, sampler_of(synthetic_images, ways=3, groups=torch.ones(12).long())(torch.arange(40))
    )
    groups = torch.tensor([1, 0, 1, 0] * 3)
    sampler = sampler_of(synthetic_images, ways=3, groups=groups)
    classes = sampler(torch.arange(2000)).about["classes"]
    assert (classes % 2 == classes[:, :1] % 2).all()
    counts = classes.flatten().bincount(minlength=12).double()
    assert (counts - 500).abs().max() < 6 * (500 * 11 / 12) ** 0.5
    assert all(len(row.unique()) == 3 for row in classes)
    # More ways add to a task, and a task depends on nothing but its number.
    more = sampler_of(synthetic_images, ways=5, groups=groups)(torch.arange(2000))
    assert torch.equal(more.about["classes"][:, :3], classes)
    assert torch.equal(sampler(torch.tensor([1234])).about["classes"], classes[1234:1235])


# ---- the download --------------------------------------------------------------------------------


@pytest.fixture
def waited(monkeypatch):
    """The seconds for which a download would have waited before each further try."""
    seconds = []
    monkeypatch.setattr(download.time, "sleep", seconds.append)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return seconds


def test_it_is_downloaded_once(make, archives, tmp_path, waited):
    right = make(path=archives).load()
    with serve(archives, suffix=".zip") as server:
        server.no_ranges = True  # a plain server
        options = {"source": "github", "base_url": f"{server.url}/"}
        data = make(**options)
        assert np.array_equal(data.load().images, right.images)
        assert data.load().provenance["location"] == server.url
        assert server.requests == {"images_background": 1, "images_evaluation": 1}
    assert np.array_equal(make(**options).load().images, right.images)  # without the server
    assert not list((tmp_path / "cache").rglob("*.part"))
    assert not waited


@pytest.mark.parametrize("ranges", [True, False])
def test_it_goes_on_where_it_broke_off(make, archives, waited, ranges):
    right = make(path=archives).load()
    size = sum(file.stat().st_size for file in archives.iterdir())
    with serve(archives, suffix=".zip") as server:
        server.no_ranges = not ranges
        server.cuts["images_background"] = 2
        server.fails["images_evaluation"] = 1
        found = make(source="github", base_url=server.url).load()
        assert np.array_equal(found.images, right.images)
        assert len(waited) == 3
        if ranges:  # nothing is sent twice
            assert server.sent == size
        else:
            assert server.sent > size


def test_faults_of_a_download_that_stay(make, archives, tmp_path, waited):
    with serve(archives, suffix=".zip") as server:
        options = {"source": "github", "base_url": server.url}
        server.missing = {"images_evaluation"}
        assert "images_evaluation.zip: HTTP Error 404" in refused(make(**options).load)
        server.missing, server.fails["images_evaluation"] = set(), 9
        assert "run again to continue" in refused(make(**options).load)
        assert len(waited) == 3
        (archives / "images_evaluation.zip").write_bytes(b"another")
        server.fails.clear()
        assert "expected" in refused(make(**options).load)
        assert "it was discarded" in refused(make(**options).load)
        assert server.requests["images_background"] == 1
    waited.clear()
    shutil.rmtree(tmp_path / "cache")
    assert "http://127.0.0.1:9/images_background.zip" in refused(make(source="github").load)
    assert not waited  # an offline machine fails immediately


WRONG = [
    ({"source": "google"}, "data.source=google: must be one of github, path"),
    ({}, "data.source=path needs data.path=FOLDER"),
    ({"source": "github", "path": "x"}, "data.path=x needs data.source=path"),
    ({"source": "github", "base_url": "ftp://x"}, "data.base_url=ftp://x: expected http"),
    ({"path": "x", "split": "random"}, "data.split=random: must be one of published, vinyals"),
    ({"path": "x", "within_groups": 1}, "data.within_groups=1: must be true or false"),
    ({"path": "x", "within_groups": None}, "data.within_groups=None: must be true or false"),
]


@pytest.mark.parametrize(("options", "says"), WRONG)
def test_wrong_options(make, options, says):
    assert says in refused(make, **options)


def test_data_without_groups(tiny):
    cfg = metadraw.compose(*tiny, "data.within_groups=true")
    assert "is of no group" in refused(metadraw.build, cfg)
    assert "there is no such folder" in refused(
        metadraw.build, metadraw.compose("data=omniglot", "data.source=path", "data.path=/no/such")
    )


# ---- whole runs ----------------------------------------------------------------------------------


def test_train_and_test_within_an_alphabet(archives, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("METADRAW_CACHE", str(tmp_path / "cache"))
    small = [f"data.{key}=2" for key in ("train_batches", "val_batches", "test_batches", "ways")]
    small += ["data.tasks_per_batch=2", "trainer=cpu", "trainer.max_epochs=1"]
    small += ["model.hidden_channels=4", "callbacks.progress_bar.refresh_rate=0"]
    run = tmp_path / "run"
    data = ["data=omniglot", "data.source=path", f"data.path={archives}"]
    found = train(metadraw.compose(*data, *small, f"paths.output_dir={run}"))
    assert found["data"]["source"] == "omniglot"
    typed = [f"ckpt_path={run}/checkpoints/best.ckpt", "trainer=cpu"]
    typed += [f"paths.output_dir={tmp_path / 'eval'}"]
    within = evaluate(metadraw.compose(*typed, "data.within_groups=true", config="eval"))
    assert within["config"]["data"]["within_groups"] is True
    assert evaluate(metadraw.compose(*typed, config="eval"))["test"]["acc"] == found["test"]["acc"]
    caplog.clear()
    with caplog.at_level("INFO"):
        for name in "ab":
            (tmp_path / "white" / name).mkdir(parents=True)
            for number in range(2):
                image = Image.new("L", (40, 40), 255)
                image.save(tmp_path / "white" / name / f"{number}.png")
        white = ["data=image_folder", f"data.path={tmp_path / 'white'}", "split=all"]
        evaluate(metadraw.compose(*typed, *white, config="eval"))
    assert "mostly white" in caplog.text
