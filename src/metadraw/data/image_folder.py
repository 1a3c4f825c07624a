"""Any folder of class folders of images: ``FOLDER/cat/1.png``, ``FOLDER/dog/a.jpg`` and so on."""

from __future__ import annotations

import hashlib
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
from metadraw.data.pictures import FORMATS, SUFFIXES, square_on_white
from metadraw.data.sources import choose_rows
from metadraw.errors import InputError

_log = logging.getLogger(__name__)
_AT_ONCE = 1000  # files


class ImageFolder(EpisodeDataModule):
    """Episodes of a user's own images; each sub-folder of a folder is a class.

    Other files, and hidden files and folders, are ignored. Images are read once and then cached, as
    ``prepare`` returns them, until a file changes. A cache above 1 GiB is memory-mapped.

    Args:
        path: the folder.
        samples_per_class: the maximum number of images per class, all if `None`.
        drawings_seed: which images of a class are chosen.
        cache_dir: where images are cached.
        prepare: ``as_is`` takes images unchanged; ``ink`` converts each drawing to light ink on
            black, see `to_bitmap`, as `FewShot` does for a network that was trained on doodles.
        **episodes: what `EpisodeDataModule` takes; ``image_channels`` is 1 (grey) or 3 (RGB).

    Raises:
        InputError: an impossible option; see also `EpisodeDataModule`.
    """

    ink = False
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
        if prepare not in ("as_is", "ink"):
            raise InputError(f"data.prepare={prepare}: must be as_is or ink")
        if prepare == "ink" and self.image_channels != 1:
            raise InputError(
                f"data.prepare=ink with data.image_channels={self.image_channels}: ink is grey, "
                "expected data.image_channels=1"
            )
        self.ink = prepare == "ink"
        if samples_per_class is not None and (
            type(samples_per_class) is not int or samples_per_class < 1
        ):
            raise InputError(
                f"data.samples_per_class={samples_per_class}: must be a whole number of at least "
                "1, or null for all of a class"
            )
        if type(drawings_seed) is not int or not 0 <= drawings_seed < 2**32:
            raise InputError(
                f"data.drawings_seed={drawings_seed}: must be a whole number from 0 to {2**32 - 1}"
            )
        self.path, self.cache_dir = Path(path).expanduser(), Path(cache_dir).expanduser()
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
        if self.ink:
            return to_bitmap(image, self.image_size)[None]
        return square_on_white(image, self.image_size, self.image_channels)

    def load(self) -> Drawings:
        """The images of the chosen classes, from their files or from the cache.

        Returns:
            For each class ``uint8 [S, image_channels, image_size, image_size]``; classes are
            sorted by name.

        Raises:
            InputError: no such folder, one without images, an image that cannot be read, or a
                cache that cannot be written.
        """
        files = self._files()
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
            "source": "image_folder",
            "renderer": f"{type(self).__module__}.{type(self).__qualname__} {self.version}",
            "image_size": self.image_size,
            "image_channels": self.image_channels,
            "prepare": "ink" if self.ink else "as_is",
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

    def _files(self) -> dict[str, list[Path]]:
        """The image files of each class, both sorted by name."""
        if not self.path.is_dir():
            raise InputError(
                f"data.path={self.path} is not a folder; give one with a folder of images per class"
            )
        try:
            files = {
                folder.name: sorted(file for file in _seen(folder) if _is_image(file))
                for folder in sorted(_seen(self.path))
                if folder.is_dir()
            }
        except OSError as error:
            raise InputError(f"data.path={self.path}: cannot be read: {error}") from error
        if not files:
            raise InputError(
                f"data.path={self.path} holds no class folders; expected FOLDER/CLASS/IMAGE.png"
            )
        return files

    def _fingerprint(self, chosen: list[list[Path]], origin: dict[str, str | int]) -> str:
        """A checksum of files and options, which does not change when the folder moves."""
        files = []
        for file in (file for of_class in chosen for file in of_class):
            stat = file.stat()
            files.append([str(file.relative_to(self.path)), stat.st_size, stat.st_mtime_ns])
        return hashlib.sha256(json.dumps([files, origin]).encode()).hexdigest()

    def _read_all(self, chosen: list[list[Path]]) -> Iterator[np.ndarray]:
        """The images of all files, one after the other, a few in memory at a time."""
        files = [file for of_class in chosen for file in of_class]
        _log.info("drawings: reading %d images in %s", len(files), self.path)
        progress = tqdm(total=len(files), desc="images", unit="image")
        with ThreadPoolExecutor() as pool, progress:  # Pillow lets other threads decode
            for start in range(0, len(files), _AT_ONCE):
                for image in pool.map(self._read, files[start : start + _AT_ONCE]):
                    yield image
                    progress.update()

    def _read(self, file: Path) -> np.ndarray:
        try:
            with Image.open(file, formats=FORMATS) as image:
                return self.prepare(image)
        except Exception as error:  # a damaged file raises nearly anything
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"{file} cannot be read as an image ({reason}): repair or remove it"
            ) from error


def _seen(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and file.is_file()
