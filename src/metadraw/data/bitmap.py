"""Converts any picture of a drawing to the bitmaps that Quick, Draw! networks are trained on."""

from __future__ import annotations

from functools import reduce

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from metadraw.data.pictures import plain

SIDE = 28  # pixels
_FINE = 8 * SIDE  # the side at which strokes are measured and corrected
_STROKE = 10  # their width at that side: 1.25 pixels of a 28-pixel bitmap
_FILLED = 50  # anything wider is a filled shape, not a stroke, and stays unchanged
_CONTRAST = 24  # grey levels between ground and ink; with fewer there is no drawing


def to_bitmap(image: Image.Image, side: int = SIDE) -> np.ndarray:
    """Convert a picture to light strokes on black, centred and as large as the bitmap allows.

    Its ground may be light, dark or transparent, or paper in uneven light. All strokes become about
    one pixel wide, like those of the data.

    Args:
        image: any size and mode.
        side: of the bitmap, in pixels.

    Returns:
        ``uint8 [side, side]``, 0 ground to 255 ink; all 0 for a picture without a drawing.

    Raises:
        ValueError: pixels that are neither grey nor RGB.
    """
    ink = _ink(_grey(image))
    columns, rows = (np.flatnonzero((ink > 0.5).any(axis=axis)) for axis in (0, 1))
    if not columns.size:
        return np.zeros((side, side), np.uint8)
    cropped = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = side / max(cropped.shape)
    height, width = (max(1, round(scale * length)) for length in cropped.shape)
    fine = Image.fromarray((255 * cropped).astype(np.uint8)).resize(
        (max(1, width * _FINE // side), max(1, height * _FINE // side)), Image.Resampling.BICUBIC
    )
    resampling = Image.Resampling.BOX if side <= _FINE else Image.Resampling.BICUBIC
    small = _even_strokes(fine).resize((width, height), resampling)
    bitmap = np.zeros((side, side), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    values = np.asarray(small, np.float32)
    bitmap[top : top + height, left : left + width] = np.rint(values * (255 / max(values.max(), 1)))
    return bitmap


def _grey(image: Image.Image) -> Image.Image:
    """The picture in mode ``L``, without transparency, at a size that is fast to process."""
    image = plain(image)
    image.thumbnail((2 * _FINE, 2 * _FINE), reducing_gap=2.0)
    if image.mode == "RGBA":
        alpha = np.asarray(image.getchannel("A"), np.float32)
        luminance = np.asarray(image.convert("L"), np.float32)
        # Light strokes on a transparent ground would vanish on white.
        light = alpha.sum() > 0 and (luminance * alpha).sum() / alpha.sum() > 128
        ground = Image.new("RGBA", image.size, "black" if light else "white")
        image = Image.alpha_composite(ground, image)
    return image.convert("L")


def _ink(grey: Image.Image) -> np.ndarray:
    """How much each pixel differs from the ground around it, ``float32 [H, W]`` in 0..1."""
    pixels = np.asarray(grey)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    # Most of the border and of the picture is ground; a drawing may touch the border.
    if np.median(border) + np.median(pixels) > 255:
        grey = ImageOps.invert(grey)
    # Now ink is lighter than the ground, which is the darkest value nearby, smoothed.
    coarse = grey.resize((64, 64), Image.Resampling.BOX)
    nearby = Image.fromarray(around(np.asarray(coarse), 15, np.minimum))
    nearby = nearby.filter(ImageFilter.GaussianBlur(6))
    ground = np.asarray(nearby.resize(grey.size, Image.Resampling.BICUBIC), np.float32)
    difference = np.asarray(grey, np.float32) - ground
    strongest = float(np.quantile(difference, 0.995)) if difference.size else 0.0
    strongest = max(strongest, 0.6 * float(difference.max(initial=0.0)))
    if strongest < _CONTRAST:
        return np.zeros_like(difference)
    # Below a quarter it is paper, not ink.
    return np.clip((difference / strongest - 0.25) / 0.5, 0, 1)


def _even_strokes(fine: Image.Image) -> Image.Image:
    """Erode or dilate strokes to the width of those in the data."""
    pixels = np.asarray(fine)
    area, inner = (int((a > 127).sum()) for a in (pixels, around(pixels, 3, np.minimum)))
    if area == inner:
        return fine
    width = 2 * area / (area - inner)  # of a long stroke: area = width * edge / 2
    if width > _FILLED:
        return fine
    size = 2 * round(abs(width - _STROKE) / 2) + 1
    return Image.fromarray(around(pixels, size, np.minimum if width > _STROKE else np.maximum))


def around(pixels: np.ndarray, size: int, extreme: np.ufunc) -> np.ndarray:
    """The minimum or maximum in a square around each pixel; its side is an odd number.

    Rows first, then columns: Pillow's rank filters would sort the whole square.
    """
    for _ in range(2):
        padded = np.pad(pixels, ((size // 2, size // 2), (0, 0)), "edge")
        pixels = reduce(extreme, (padded[i : i + len(pixels)] for i in range(size))).T
    return pixels
