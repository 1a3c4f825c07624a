"""Icons: their table, their conversion to lines, and their packages."""

import base64
import csv
import hashlib
import io
import json
import sys
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from PIL import Image, ImageDraw

import metadraw
from metadraw import InputError
from metadraw.data import icons
from metadraw.data.drawings import QUICKDRAW_CLASSES
from metadraw.data.sources import iconify


def module(cache_dir, *overrides):
    return instantiate(
        metadraw.compose("data=icons", f"data.cache_dir={cache_dir}", *overrides).data
    )


def test_the_table():
    with icons._TABLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["class", *iconify.SETS]
    names = [row["class"] for row in rows]
    assert names == [name for name in QUICKDRAW_CLASSES if name in set(names)]
    used = [(name, icon) for row in rows for name in iconify.SETS for icon in row[name].split()]
    assert len(set(used)) == len(used)  # no picture of two classes
    assert all(sum(len(row[name].split()) for name in iconify.SETS) >= 5 for row in rows)
    # What the documentation says.
    assert f"{len(rows)} of the 345" in " ".join(icons.__doc__.split())


def test_edges_of_shapes_colours_and_white():
    picture = Image.new("RGBA", (224, 224), (0, 0, 0, 0))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((20, 20, 200, 200), (255, 255, 255, 255))  # white, on nothing
    draw.rectangle((60, 60, 160, 160), (255, 0, 0, 255))
    draw.rectangle((90, 90, 130, 130), (255, 40, 40, 255))  # a shade
    ink = np.asarray(icons.edges(picture))
    assert ink[110, [20, 60, 160, 200]].tolist() == [255] * 4
    assert ink[110, [5, 40, 75, 90, 110, 180, 215]].max() == 0
    assert (ink[110] > 0).sum() == 4 * 6


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An icon set of two synthetic icons, which npm fetches, as the only one of two classes."""
    body = '<path fill="{}" d="M2 2h{}v12h-12z"/>'
    held = {"prefix": "own", "width": 16, "height": 16}
    held["icons"] = {"a": {"body": body.format("#f00", 12)}, "b": {"body": body.format("#00f", 6)}}
    content = json.dumps(held).encode()
    with tarfile.open(tmp_path / "own.tgz", "w:gz") as file:
        member = tarfile.TarInfo("package/icons.json")
        member.size = len(content)
        file.addfile(member, io.BytesIO(content))
    (tmp_path / "npm").write_text(
        f'#!/bin/sh\necho "$2" >> {tmp_path}/asked\n/bin/cp {tmp_path}/own.tgz .\n'
    )
    (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    sha512 = hashlib.sha512((tmp_path / "own.tgz").read_bytes()).digest()
    own = iconify.IconSet("1.0.0", base64.b64encode(sha512).decode(), "Nobody", "MIT")
    monkeypatch.setattr(iconify, "SETS", {"own": own})
    monkeypatch.setattr(icons, "_TABLE", tmp_path / "icons.csv")
    (tmp_path / "icons.csv").write_text("class,own\ncat,a b\ndog,\n")
    return tmp_path


@pytest.mark.parametrize("channels", [1, 3])
def test_rendered_once(package, channels):
    pytest.importorskip("resvg_py")
    options = [f"data.image_channels={channels}", "data.image_size=32"]
    drawings = module(package / "cache", *options).load()
    assert drawings.classes == ("cat",)
    [images] = drawings.images
    assert images.shape == (2, channels, 32, 32)
    assert drawings.provenance["licences"] == "own: Nobody, MIT"
    assert drawings.provenance["location"] == "@iconify-json/own@1.0.0"
    if channels == 1:  # a line around the square, as large as the picture, and nothing in it
        assert images[0, 0, 16, [0, 31]].min() > 200
        assert images[0, 0, 8:24, 8:24].max() == 0
    else:  # red on white, where the icon is
        assert images[0, :, 16, 16].tolist() == [255, 0, 0]
        assert images[0, :, 1, 1].tolist() == [255, 255, 255]
    again = module(package / "cache", *options).load()
    assert np.array_equal(again.images[0], images)
    assert (package / "asked").read_text() == "@iconify-json/own@1.0.0\n"


def test_without_the_renderer_or_npm(package, monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(InputError, match=r"a package is missing.*pip install 'metadraw\[icons\]'"):
        module(package / "cache").load()
    (package / "npm").unlink()
    monkeypatch.setitem(sys.modules, "resvg_py", SimpleNamespace())
    with pytest.raises(
        InputError, match=r"^data=icons: npm is not installed.* a connection, once$"
    ):
        module(package / "cache").load()


def test_a_package_without_an_icon(package):
    assert list(iconify.load("own", ["b"])) == ["b"]
    with pytest.raises(InputError, match=r"^@iconify-json/own@1\.0\.0 has no icon c$"):
        iconify.load("own", ["c"])


def test_pictures_of_a_user_have_the_same_form(tmp_path):
    drawing = Image.new("L", (90, 60), 255)
    ImageDraw.Draw(drawing).ellipse((10, 10, 50, 50), outline=0, width=4)
    ink = module(tmp_path, "data.image_size=40").prepare(drawing)
    assert (ink.shape, ink[0, 20, 20], ink.max()) == ((1, 40, 40), 0, 255)
    rgb = module(tmp_path, "data.image_size=40", "data.image_channels=3").prepare(drawing)
    assert (rgb.shape, rgb[:, 0, 0].tolist()) == ((3, 40, 40), [255] * 3)


@pytest.mark.usefixtures("from_npm")
def test_a_real_set(tmp_path):
    pytest.importorskip("resvg_py")
    drawings = module(tmp_path, "data.sets=[emojione]").load()
    assert len(drawings.classes) > 150
    images = np.concatenate(list(drawings.images))
    assert (images.reshape(len(images), -1).max(axis=1) >= 250).all()  # nothing is empty
    assert 0.05 < images.mean() / 255 < 0.4  # lines, not shapes


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.sets=[noto,other]", "data.sets: other is not an icon set; there are noto, "),
        ("data.sets=noto", "data.sets=noto: must be null for all, or a list of noto, "),
        ("data.sets=[noto,noto]", "must name each set once"),
        ("data.image_channels=4", "data.image_channels=4: must be 1 for lines or 3 for RGB"),
    ],
)
def test_refused(tmp_path, override, says):
    with pytest.raises(InstantiationException) as info:
        module(tmp_path, override)
    assert says in str(info.value)
