"""Icons: picture symbols of the things that people doodle, from icon sets of several authors.

The table ``icons.csv`` names the icons of each class of Quick, Draw!: 222 of the 345 have at least
five. Where a class means something else in the two (a mouse is an animal and a device, an angel is
a face with a halo and a whole figure), it is left out.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from metadraw.data import cache
from metadraw.data.bitmap import around, to_bitmap
from metadraw.data.datamodule import EpisodeDataModule
from metadraw.data.drawings import Drawings
from metadraw.data.pictures import square_on_white
from metadraw.data.sources import iconify
from metadraw.errors import InputError, to_path

_TABLE = Path(__file__).with_name("icons.csv")
_FINE = 224  # the side at which icons are rendered, in pixels, unless they are to be larger
_EDGE = 7  # the width of an edge at that side: about one pixel of a 28-pixel bitmap
_SHADE = 64  # grey levels below which a difference is shading, not an edge
_VERSION = 1  # of the conversion
_log = logging.getLogger(__name__)


class Icons(EpisodeDataModule):
    """Episodes of icons, whose classes are those of Quick, Draw!.

    In grey they are light lines on black, like doodles: the edges of shapes and colours, or, where
    icons are drawn in lines, the lines. In RGB they are as designed, on white.

    Args:
        sets: the icon sets to use, in this order, of `iconify.SETS`; all if `None`.
        cache_dir: where the pictures are kept.
        **episodes: what `EpisodeDataModule` takes; ``image_channels`` is 1 (grey) or 3 (RGB).

    Raises:
        InputError: an impossible option; see also `EpisodeDataModule`.
    """

    def __init__(
        self, *, sets: Sequence[str] | None, cache_dir: str | Path, **episodes: Any
    ) -> None:
        super().__init__(**episodes)
        if self.image_channels not in (1, 3):
            raise InputError(
                f"data.image_channels={self.image_channels}: must be 1 for lines or 3 for RGB"
            )
        if sets is None:
            sets = list(iconify.SETS)
        known = ", ".join(iconify.SETS)
        if isinstance(sets, str) or not isinstance(sets, Sequence) or not sets:
            raise InputError(f"data.sets={sets}: must be null for all, or a list of {known}")
        for name in sets:
            if name not in iconify.SETS:
                raise InputError(f"data.sets: {name} is not an icon set; there are {known}")
        if len(set(sets)) < len(sets):
            raise InputError(f"data.sets={list(sets)}: must name each set once")
        self.sets, self.cache_dir = list(sets), to_path("data.cache_dir", cache_dir)
        self.ink = self.image_channels == 1

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Convert any picture: a drawing to ink, or its centre square on white to RGB."""
        if self.ink:
            return to_bitmap(image, self.image_size)[None]
        return square_on_white(image, self.image_size, self.image_channels)

    def load(self) -> Drawings:
        """The icons of all classes that have one in the chosen sets, rendered or from the cache.

        Returns:
            For each class ``uint8 [S, image_channels, image_size, image_size]``, in the order of
            Quick, Draw!'s classes and of the sets.

        Raises:
            InputError: a package cannot be fetched, the renderer is not installed, or the cache
                cannot be written.
        """
        icons = _icons(self.sets)
        counts = [len(of_class) for of_class in icons.values()]
        packages = [(iconify.SETS[name], name) for name in self.sets]
        size = f"{self.image_size}-{self.image_channels}"
        origin: dict[str, str | int] = {
            "source": "icons",
            "renderer": f"resvg, {'lines' if self.ink else 'RGB'} {_VERSION}",
            "location": " ".join(each.package(name) for each, name in packages),
            "licences": "; ".join(f"{name}: {e.author}, {e.licence}" for e, name in packages),
        }
        names = "all" if self.sets == list(iconify.SETS) else "+".join(self.sets)
        with cache.told(self.cache_dir):
            images, provenance = cache.read_or_make(
                self.cache_dir / f"icons-{names}-{size}",
                tuple(icons),
                (sum(counts), *self.image_shape),
                origin,
                lambda: self._render(icons),
            )
        of_classes = np.split(images, np.cumsum(counts)[:-1])
        return Drawings(of_classes, tuple(icons), provenance)

    def _render(self, icons: dict[str, list[tuple[str, str]]]) -> Iterator[np.ndarray]:
        """The pictures of all icons, one after the other."""
        try:
            import resvg_py
        except ImportError as error:
            raise InputError(
                f"data=icons: a package is missing ({error}): pip install 'metadraw[icons]'"
            ) from error
        wanted = [icon for of_class in icons.values() for icon in of_class]
        _log.info("drawings: rendering %d icons of %s", len(wanted), ", ".join(self.sets))
        try:
            svg = {
                name: iconify.load(name, [icon for of, icon in wanted if of == name])
                for name in self.sets
            }
        except InputError as error:
            raise InputError(f"data=icons: {error}; it needs npm and a connection, once") from error
        side = max(_FINE, self.image_size)
        for name, icon in wanted:
            png = resvg_py.svg_to_bytes(
                svg_string=svg[name][icon], width=side, height=side, skip_system_fonts=True
            )
            picture = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
            yield self._convert(picture, iconify.SETS[name].lines)

    def _convert(self, icon: Image.Image, lines: bool) -> np.ndarray:
        """``uint8 [image_channels, image_size, image_size]`` of an RGBA picture."""
        if not self.ink:
            return self.prepare(icon)
        cropped = icon.crop(icon.getchannel("A").getbbox())
        inner = ImageOps.pad(cropped, (icon.width - _EDGE + 1,) * 2, color=(0, 0, 0, 0))
        framed = ImageOps.expand(inner, _EDGE // 2, (0, 0, 0, 0))
        drawn = framed.getchannel("A") if lines else edges(framed)
        small = drawn.resize((self.image_size,) * 2, Image.Resampling.BOX)
        return np.asarray(ImageOps.autocontrast(small))[None]


def edges(picture: Image.Image) -> Image.Image:
    """The edges of shapes and colours, light on black.

    An edge is where pixels nearby differ, in red, green or blue on white, or in opacity, so that
    white shapes have one, too.

    Args:
        picture: of mode ``RGBA``.

    Returns:
        Mode ``L``, of the same size.
    """
    white = Image.new("RGBA", picture.size, "white")
    planes = [*Image.alpha_composite(white, picture).split()[:3], picture.getchannel("A")]
    strongest = np.zeros(picture.size[::-1], np.uint8)
    for plane in map(np.asarray, planes):
        difference = around(plane, _EDGE, np.maximum) - around(plane, _EDGE, np.minimum)
        strongest = np.maximum(strongest, difference)
    return Image.fromarray(strongest).point(lambda grey: min(255, 2 * max(0, grey - _SHADE)))


def _icons(sets: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """The icons of each class that has any, by set and name."""
    with _TABLE.open(encoding="utf-8", newline="") as file:
        icons = {
            row["class"]: [(name, icon) for name in sets for icon in row[name].split()]
            for row in csv.DictReader(file)
        }
    return {name: of_class for name, of_class in icons.items() if of_class}
