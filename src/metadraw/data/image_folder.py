"""Any folder of class folders of images: ``FOLDER/cat/1.png``, ``FOLDER/dog/a.jpg`` and so on."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from metadraw.data import cache
from metadraw.data.bitmap import to_bitmap
from metadraw.data.datamodule import EpisodeDataModule
from metadraw.data.drawings import Drawings
from metadraw.data.picture_files import PictureFile, picture_files
from metadraw.data.pictures import FORMATS, square_on_white
from metadraw.data.sources import choose_rows
from metadraw.errors import InputError, check_seed, is_whole, to_path

_log = logging.getLogger(__name__)
_AT_ONCE = 1000  # files
PREPARE = ("as_is", "inverted", "ink")


class ImageFolder(EpisodeDataModule):
    """Episodes of a user's own images; each sub-folder of a folder is a class.

    Other files, and hidden files and folders, are ignored. A subclass may find its classes in other
    places, see `find`. Images are read once and then cached, as
    ``prepare`` returns them, until a file changes. A cache above 1 GiB is memory-mapped.

    Args:
        path: the folder, or a zip archive of one.
        samples_per_class: the maximum number of images per class, all if `None`.
        drawings_seed: which images of a class are chosen.
        cache_dir: where images are cached.
        prepare: ``as_is`` takes images unchanged; ``inverted`` exchanges light and dark, for
            drawings on white; ``ink`` converts each drawing to light ink on black, see `to_bitmap`,
            as `FewShot` does for a network that was trained on doodles.
        **episodes: what `EpisodeDataModule` takes; ``image_channels`` is 1 (grey) or 3 (RGB).

    Raises:
        InputError: an impossible option; see also `EpisodeDataModule`.
    """

    ink = False
    #: In results.
    source = "image_folder"
    #: Part of the cache's name: a subclass raises it when its `prepare` changes.
    version = 1

    def __init__(
        self,
        *,
        path: str | Path,
        samples_per_class: int | None,
        drawings_seed: int,
        cache_dir: str | Path,
        prepare: str = "as_is",
        **episodes: Any,
    ) -> None:
        super().__init__(**episodes)
        if self.image_channels not in (1, 3):
            raise InputError(
                f"data.image_channels={self.image_channels}: must be 1 for grey or 3 for RGB"
            )
        if prepare not in PREPARE:
            raise InputError(f"data.prepare={prepare}: must be one of {', '.join(PREPARE)}")
        if prepare == "ink" and self.image_channels != 1:
            raise InputError(
                f"data.prepare=ink with data.image_channels={self.image_channels}: ink is grey, "
                "expected data.image_channels=1"
            )
        self.preparation, self.ink = prepare, prepare != "as_is"
        if samples_per_class is not None and not is_whole(samples_per_class, 1):
            raise InputError(
                f"data.samples_per_class={samples_per_class}: must be a whole number of at least "
                "1, or null for all of a class"
            )
        check_seed("data.drawings_seed", drawings_seed)
        self.path = to_path("data.path", path)
        self.cache_dir = to_path("data.cache_dir", cache_dir)
        self.samples, self.drawings_seed = samples_per_class, drawings_seed

    def prepare(self, image: Image.Image) -> np.ndarray:
        """The centre square of an image on white, resized with antialiasing; or the ink in it.

        Args:
            image: of any size and mode, as read from its file; of an animation, the first frame.

        Returns:
            ``uint8 [image_channels, image_size, image_size]``.

        Raises:
            ValueError: pixels that are neither grey nor RGB.
        """
        if self.preparation == "ink":
            return to_bitmap(image, self.image_size)[None]
        pixels = square_on_white(image, self.image_size, self.image_channels)
        return 255 - pixels if self.preparation == "inverted" else pixels

    def load(self) -> Drawings:
        """The images of the chosen classes, from their files or from the cache.

        Returns:
            For each class ``uint8 [S, image_channels, image_size, image_size]``; classes are
            sorted by name.

        Raises:
            InputError: no such folder, one without images, an image that cannot be read, or a
                cache that cannot be written.
        """
        files = self.find()
        classes = self.chosen(list(files))
        # By position among all classes, so that leaving out others changes nothing in a class.
        chosen = [
            [
                files[name][row]
                for row in choose_rows(
                    len(files[name]), self.samples or len(files[name]), self.drawings_seed, i
                )
            ]
            for i, name in enumerate(files)
            if name in set(classes)
        ]
        counts = [len(of_class) for of_class in chosen]
        if not sum(counts):
            raise InputError(f"data.path={self.path} holds no images in {', '.join(classes[:3])}")
        origin: dict[str, str | int] = {
            "source": self.source,
            "renderer": f"{type(self).__module__}.{type(self).__qualname__} {self.version}",
            "image_size": self.image_size,
            "image_channels": self.image_channels,
            "prepare": self.preparation,
            "samples_per_class": self.samples or "all",
            "seed": self.drawings_seed,
        }
        origin["fingerprint"] = self._fingerprint(chosen, origin)
        with cache.told(self.cache_dir):
            images, provenance = cache.read_or_make(
                self.cache_dir / f"images-{str(origin['fingerprint'])[:16]}",
                classes,
                (sum(counts), *self.image_shape),
                origin,
                lambda: self._read_all(chosen),
            )
        of_classes = np.split(images, np.cumsum(counts)[:-1])
        return Drawings(of_classes, tuple(classes), {**provenance, "location": str(self.path)})

    def find(self) -> dict[str, list[PictureFile]]:
        """The files of each class, both sorted by name; nothing of them is read.

        Raises:
            InputError: there are none, or not where they should be.
        """
        files: dict[str, list[PictureFile]] = {}
        if self.path.is_dir():
            try:  # a class without images is still a class, and is reported
                files = {folder.name: [] for folder in sorted(_seen(self.path)) if folder.is_dir()}
            except OSError as error:
                raise InputError(f"data.path={self.path}: cannot be read: {error}") from error
        elif self.path.suffix.lower() != ".zip":
            raise InputError(
                f"data.path={self.path} is not a folder or zip archive; give one with a folder of "
                "images per class"
            )
        for file in picture_files(self.path, depth=2):
            if len(file.path) > 1:
                files.setdefault(file.path[-2], []).append(file)
        if not files:
            raise InputError(
                f"data.path={self.path} holds no class folders; expected FOLDER/CLASS/IMAGE.png"
            )
        return dict(sorted(files.items()))

    def _fingerprint(self, chosen: list[list[PictureFile]], origin: dict[str, str | int]) -> str:
        """A checksum of files and options, which does not change when the folder moves."""
        files = [["/".join(f.path), *f.stamp] for of_class in chosen for f in of_class]
        return hashlib.sha256(json.dumps([files, origin]).encode()).hexdigest()

    def _read_all(self, chosen: list[list[PictureFile]]) -> Iterator[np.ndarray]:
        """The images of all files, one after the other, a few in memory at a time."""
        files = [file for of_class in chosen for file in of_class]
        _log.info("drawings: reading %d images in %s", len(files), self.path)
        progress = tqdm(total=len(files), desc="images", unit="image")
        with ThreadPoolExecutor() as pool, progress:  # Pillow lets other threads decode
            for start in range(0, len(files), _AT_ONCE):
                for image in pool.map(self._read, files[start : start + _AT_ONCE]):
                    yield image
                    progress.update()

    def _read(self, file: PictureFile) -> np.ndarray:
        try:
            with Image.open(io.BytesIO(file.read()), formats=FORMATS) as image:
                return self.prepare(image)
        except Exception as error:  # a damaged file raises nearly anything
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"{file} cannot be read as an image ({reason}): repair or remove it"
            ) from error


def _seen(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".")]
