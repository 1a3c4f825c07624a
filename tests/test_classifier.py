"""From a checkpoint to a classifier of new classes, in Python and on the command line."""

import csv
import sys

import numpy as np
import pytest
import torch
from conftest import ALGORITHMS, ANY_WAYS, each_algorithm, run
from hydra.utils import get_class, instantiate
from PIL import Image, ImageDraw, ImageOps

import metadraw
from metadraw import Classifier, FewShot, InputError
from metadraw.command.config import CONFIGS
from metadraw.data.bitmap import to_bitmap
from metadraw.training.evaluate import evaluate
from metadraw.use.adapt import adapt, confusion


@pytest.mark.parametrize("algorithm", each_algorithm())
def test_every_algorithm_says_what_evaluation_says(algorithm, checkpoint_of, tmp_path):
    path = checkpoint_of(algorithm)
    data, learner = metadraw.load(path, "learner.query_statistics=support")
    batch = data.episodes("test")(torch.arange(2))
    meta_learner = FewShot(path)
    outcome = learner.evaluate(batch)
    for t in range(2):
        task = batch.task(t)
        pixels = (255 * task.support.x).round().byte()
        classifier = meta_learner.adapt({f"class {i}": pixels[i : i + 1] for i in range(5)})
        for adapted, logits in ((True, outcome.after[t]), (False, outcome.before[t])):
            found = classifier.probabilities(task.query.x, adapted)
            torch.testing.assert_close(found, logits.softmax(1), rtol=1e-3, atol=1e-5)
        # One by one or together, the result is the same.
        alone = torch.cat([classifier.probabilities([x]) for x in task.query.x])
        torch.testing.assert_close(alone, classifier.probabilities(task.query.x))
    classifier.save(tmp_path / "classifier.pt")
    again = Classifier.load(tmp_path / "classifier.pt")
    assert again.about == classifier.about
    assert again.about["examples"] == {f"class {i}": 1 for i in range(5)}
    assert torch.equal(again.probabilities(task.query.x), classifier.probabilities(task.query.x))


def drawing(size=300, mode="L", dark=True, offset=0, width=9):
    """A synthetic house."""
    ground, ink = ("white", "black") if dark else ("black", "white")
    image = Image.new("RGB", (size, size), ground)
    draw = ImageDraw.Draw(image)
    corners = [(0.3, 0.8), (0.3, 0.5), (0.5, 0.3), (0.7, 0.5), (0.7, 0.8), (0.3, 0.8)]
    draw.line([(x * size + offset, y * size) for x, y in corners], ink, width, "curve")
    return image.convert(mode)


@pytest.mark.parametrize("algorithm", ["maml", "unicorn_maml"])
def test_unequal_examples_of_every_kind_and_other_numbers_of_classes(
    algorithm, checkpoint_of, tmp_path
):
    meta_learner = FewShot(checkpoint_of(algorithm))
    file = tmp_path / "drawing.png"
    drawing().save(file)
    examples = {
        "files": [file, str(file)],
        "images": [drawing(mode="RGBA")],
        "arrays": [np.asarray(drawing()), np.asarray(drawing(mode="RGB")), np.zeros((28, 28))],
        "tensors": [torch.rand(1, 28, 28), torch.rand(40, 30)],
    }
    with_five = examples | {"more": [drawing(dark=False)]}
    assert len(meta_learner.adapt(with_five).predict([file, drawing()])) == 2
    if algorithm in ANY_WAYS:
        classifier = meta_learner.adapt(examples)
        assert classifier.probabilities([file]).shape == (1, 4)
        assert classifier.probabilities([]).shape == (0, 4)
    else:
        with pytest.raises(InputError, match=r"4 classes: MAML was trained with 5.*unicorn_maml"):
            meta_learner.adapt(examples)


def test_algorithms_for_any_ways_are_named():
    """Those that the message above names."""
    found = [
        name
        for name in ALGORITHMS
        if get_class(metadraw.compose(f"algorithm={name}").algorithm._target_).any_ways
    ]
    assert found == ANY_WAYS


WRONG = {
    "one class": (lambda: {"a": [drawing()]}, "1 classes: at least 2"),
    "no picture": (lambda: {"a": [], "b": [drawing()]}, "class 'a': a list of at least one"),
    "no list": (lambda: {"a": "a.png", "b": [drawing()]}, "class 'a': a list of at least one"),
    "no file": (lambda: {"a": ["no.png"], "b": [drawing()]}, "no.png: there is no such file"),
    "no image": (lambda: {"a": [__file__], "b": [drawing()]}, "not a readable image"),
    "shape": (lambda: {"a": [np.zeros((2, 3, 4, 5))], "b": [drawing()]}, "shape (2, 3, 4, 5)"),
    "type": (lambda: {"a": [np.zeros((9, 9), int)], "b": [drawing()]}, "a picture of int64"),
    "range": (lambda: {"a": [np.full((9, 9), 2.0)], "b": [drawing()]}, "not all in 0..1"),
    "pixels": (lambda: {"a": [Image.new("F", (9, 9))], "b": [drawing()]}, "its pixels are F"),
    "kind": (lambda: {"a": [3], "b": [drawing()]}, "int: expected a file, PIL image"),
}


def test_what_cannot_be_learned_from(checkpoint_of):
    meta_learner = FewShot(checkpoint_of("protonet"))
    for examples, says in WRONG.values():
        with pytest.raises(InputError) as refused:
            meta_learner.adapt(examples())
        assert says in str(refused.value)
        assert "\n" not in str(refused.value)


def test_files_that_are_no_classifier(checkpoint_of, tmp_path):
    path = checkpoint_of("protonet")
    with pytest.raises(InputError, match="not a classifier"):
        Classifier.load(path)
    (tmp_path / "text.pt").write_text("nothing")
    with pytest.raises(InputError, match="not a readable checkpoint"):
        Classifier.load(tmp_path / "text.pt")


# ---- pictures --------------------------------------------------------------------------------


def likeness(one, other):
    return np.corrcoef(one.flatten(), other.flatten())[0, 1]


def photo(image):
    """Paper in uneven light, with noise."""
    light = np.linspace(0.5, 0.9, image.width)[None] * np.linspace(1, 0.8, image.height)[:, None]
    noise = np.random.RandomState(0).randn(image.height, image.width) * 4
    grey = np.asarray(image.convert("L"), float) / 255
    return Image.fromarray(np.uint8((255 * light * (0.35 + 0.65 * grey) + noise).clip(0, 255)))


def transparent(image, colour):
    found = Image.new("RGBA", image.size, colour)
    found.putalpha(ImageOps.invert(image.convert("L")))
    return found


@pytest.mark.parametrize(
    "other",
    [
        drawing(dark=False),
        drawing(size=900, width=27),
        drawing(size=90, width=3),
        drawing(mode="1"),
        drawing(mode="P"),
        drawing(offset=40),
        drawing(width=20),
        drawing(width=3),
        transparent(drawing(), (10, 20, 90, 0)),
        transparent(drawing(), (250, 250, 200, 0)),
        photo(drawing()),
    ],
)
def test_a_drawing_is_the_same_bitmap_however_it_was_made(other):
    bitmap = to_bitmap(drawing())
    assert bitmap.shape == (28, 28)
    assert bitmap.max() == 255
    rows, columns = bitmap.nonzero()
    assert max(np.ptp(rows), np.ptp(columns)) == 27
    assert abs(rows.min() - (27 - rows.max())) <= 1
    assert abs(columns.min() - (27 - columns.max())) <= 1
    assert likeness(to_bitmap(other), bitmap) > 0.6  # half a pixel off is 0.7


@pytest.mark.parametrize("level", [0, 128, 255])
def test_no_drawing(level):
    assert not to_bitmap(Image.new("L", (50, 40), level)).any()


def test_a_dot_and_a_line_are_drawings():
    for box in ((20, 20, 24, 24), (0, 20, 100, 24)):
        image = Image.new("L", (100, 100), 255)
        ImageDraw.Draw(image).rectangle(box, fill=0)
        assert to_bitmap(image).any()


def kinds(folder):
    """The same synthetic drawings in files of every kind: five classes of four."""
    ways = [
        lambda image: image,
        lambda image: ImageOps.invert(image.convert("L")),
        lambda image: image.convert("1"),
        lambda image: image.convert("P"),
        lambda image: transparent(image, (250, 250, 200, 0)),
        photo,
        lambda image: Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257),
    ]
    number = 0
    for name in "abcde":
        (folder / name).mkdir(parents=True)
        for suffix in ("png", "png", "tiff", "png"):
            way = ways[number % len(ways)]
            turned = Image.Exif()
            turned[0x0112] = 3 if number % 2 else 1
            file = folder / name / f"{number:02}.{suffix}"
            way(drawing(offset=number, width=4 + number)).save(file, exif=turned)
            number += 1
    return folder


def test_eval_and_adapt_see_the_same(checkpoint_of, tmp_path, caplog):
    """The network gets each picture of a folder in the right form, or the user is warned."""
    path, folder = checkpoint_of("protonet"), kinds(tmp_path / "kinds")
    files = [sorted((folder / name).iterdir()) for name in "abcde"]
    data = [f"data.path={folder}", f"data.cache_dir={tmp_path / 'cache'}"]
    typed = [f"ckpt_path={path}", "data=image_folder", *data, "split=all", "trainer=cpu"]
    typed += ["data.test_batches=1", f"paths.output_dir={tmp_path / 'eval'}"]

    def says(*more):
        caplog.clear()
        with caplog.at_level("INFO"):
            found = evaluate(metadraw.compose(*typed, *more, config="eval"))
        assert found["data"]["prepare"] == found["config"]["data"]["prepare"]
        return caplog.text

    assert "mostly white" not in says("data.prepare=ink")
    assert "checkpoint was trained on light ink on black: data.prepare=ink" in says()
    overrides = [*data, "data.prepare=ink"]
    seen = instantiate(metadraw.compose("data=image_folder", *overrides).data).episodes("all")
    tasks = seen(torch.arange(30))
    pictures = torch.cat([tasks.support.x, tasks.query.x], 1).flatten(0, 1).flatten(1)
    expected = FewShot(path).prepare([file for of_class in files for file in of_class]).flatten(1)
    assert set(map(tuple, pictures.tolist())) == set(map(tuple, expected.tolist()))
    assert len(set(map(tuple, expected.tolist()))) == 20
    assert all(0 < x.mean() < 0.5 for x in expected)
    for file in (file for of_class in files for file in of_class):
        drawing(dark=False).save(file)
    assert "mostly white" not in says()


def test_ink_of_any_size():
    for side in (1, 16, 84, 300):
        bitmap = to_bitmap(drawing(), side)
        assert bitmap.shape == (side, side)
        assert bitmap.max() == 255
    small = Image.fromarray(to_bitmap(drawing(), 84)).resize((28, 28), Image.Resampling.BOX)
    assert likeness(np.asarray(small), to_bitmap(drawing())) > 0.6  # half a pixel off


# ---- the command line ------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path):
    """Synthetic examples of four classes, in different numbers, and pictures to classify."""
    for number, name in enumerate(["one", "two", "three", "four"]):
        for part, count in (("support", 1 + number), ("query", 2)):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                drawing(offset=10 * number, width=4 + i).save(folder / f"{i}.png")
    return tmp_path / "support", tmp_path / "query"


def test_adapt(checkpoint_of, folders, tmp_path):
    support, query = folders
    out = tmp_path / "out"
    done = run(
        [
            sys.executable,
            "adapt.py",
            f"ckpt_path={checkpoint_of('unicorn_maml')}",
            f"support={support}",
        ]
        + [f"query={query}", f"hydra.run.dir={out}"]
    )
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((out / "predictions.csv").open()))
    assert [row["file"] for row in rows][:2] == ["four/0.png", "four/1.png"]
    assert [row["class"] for row in rows][:2] == ["four", "four"]
    for row in rows:
        chances = {name: float(row[name]) for name in ("one", "two", "three", "four")}
        assert sum(chances.values()) == pytest.approx(1, abs=1e-5)
        assert row["predicted"] == max(chances, key=chances.get)
        assert row["none of these"] == ""  # not calibrated
    hits = sum(row["class"] == row["predicted"] for row in rows)
    assert f"accuracy {100 * hits / 8:.1f} % ({hits} of 8)" in done.stdout
    assert (out / "predictions.png").stat().st_size > 1000
    with Image.open(out / "confusion.png") as picture:
        picture.load()
    assert "their picture, the confusion matrix and the classifier" in done.stdout
    classifier = Classifier.load(out / "classifier.pt")
    assert classifier.about["examples"] == {"four": 4, "one": 1, "three": 3, "two": 2}
    assert classifier.predict([query / rows[0]["file"]]) == [rows[0]["predicted"]]


def test_confusion():
    actual, predicted = ["b", "a", "", "b", "b"], ["a", "a", "a", "b", "a"]
    counts = confusion(actual, predicted, ("a", "b", "c"))
    assert counts.dtype == torch.int64
    assert counts.tolist() == [[1, 0, 0], [2, 1, 0], [0, 0, 0]]


def test_what_is_like_none_of_the_classes_is_said(checkpoint_of, folders, tmp_path, caplog):
    saved = torch.load(checkpoint_of("protonet"), weights_only=True)
    saved["metadraw_calibration"] = {"threshold": 1e9}
    torch.save(saved, tmp_path / "calibrated.ckpt")
    given = [f"ckpt_path={tmp_path / 'calibrated.ckpt'}", f"support={folders[0]}"]
    given += [f"query={folders[1]}", f"paths.output_dir={tmp_path / 'out'}"]
    with caplog.at_level("INFO"):
        adapt(metadraw.compose(*given, config="adapt"))
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").open()))
    assert {row["none of these"] for row in rows} == {"yes"}
    assert caplog.text.count("(like none of these)") == len(rows) == 8


def test_no_confusion_without_known_classes(checkpoint_of, folders, tmp_path, caplog):
    support, query = folders
    (query / "one").rename(query / "new")
    out = tmp_path / "out"  # the same each time: nothing stays of the query set before
    for part, known in (("", 6), ("two/0.png", 1), ("new", 0)):
        keys = {"ckpt_path": checkpoint_of("protonet"), "support": support, "query": query / part}
        typed = [f"{key}={value}" for key, value in keys.items()]
        caplog.clear()
        with caplog.at_level("INFO"):
            adapt(metadraw.compose(*typed, f"paths.output_dir={out}", config="adapt"))
        assert (out / "confusion.png").exists() == (known > 0)
        assert ("the confusion matrix and the classifier" in caplog.text) == (known > 0)
        assert (f" of {known})" in caplog.text) == (known > 0)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"query": "nowhere"}, "nowhere: there is no such file or folder"),
        ({"support": "nowhere"}, "support=nowhere: expected a folder"),
        ({"support": str(CONFIGS / "hydra")}, "has 0 sub-folders"),
        ({"query": str(CONFIGS / "hydra")}, "there is no picture in this folder"),
        ({"ckpt_path": "no.ckpt"}, "ckpt_path=no.ckpt: there is no such file"),
        ({"ckpt_path": "???"}, "ckpt_path is missing"),
        ({"query": "null"}, "query=null: expected query=PATH"),
        ({"support": "[a,b]"}, "support=['a', 'b']: expected support=PATH"),
        ({"ckpt_path": "null"}, "ckpt_path=null: expected ckpt_path=PATH"),
        ({"steps": -1}, "steps=-1: must be a whole number of at least 0"),
        ({"steps": "many"}, "steps=many: must be a whole number"),
    ],
)
def test_adapt_refuses(checkpoint_of, folders, tmp_path, wrong, says):
    keys = {"ckpt_path": checkpoint_of("protonet"), "support": folders[0], "query": folders[1]}
    typed = [f"{key}={value}" for key, value in (keys | wrong).items() if value != "???"]
    cfg = metadraw.compose(*typed, f"paths.output_dir={tmp_path / 'out'}", config="adapt")
    with pytest.raises(InputError) as refused:
        adapt(cfg)
    assert says in str(refused.value)


def test_a_classifier_is_printed_in_a_line(checkpoint_of):
    pictures = torch.zeros(5, 28, 28, dtype=torch.uint8)
    classifier = FewShot(checkpoint_of("protonet")).adapt(
        {"cat": pictures[:2], "dog": pictures[2:]}
    )
    assert repr(classifier).startswith("Classifier(classes=('cat', 'dog'), about={'checkpoint': ")
    assert len(repr(classifier)) < 500
    assert classifier.about["steps"] == 0  # there is no inner loop
