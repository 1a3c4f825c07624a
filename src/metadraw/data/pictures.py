"""The one way to read a picture, for all uses."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
#: Only these are tried, whatever a file is called: some of Pillow's readers start other programs.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")


def square_on_white(image: Image.Image, side: int, channels: int) -> np.ndarray:
    """The centre square of an image on white, resized with antialiasing.

    Args:
        image: of any size and mode, see `plain`.
        side: of the result, in pixels.
        channels: 1 for grey, 3 for RGB.

    Returns:
        ``uint8 [channels, side, side]``.

    Raises:
        ValueError: see `plain`.
    """
    image = plain(image).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    seen = Image.alpha_composite(white, image).convert("L" if channels == 1 else "RGB")
    square = ImageOps.fit(seen, (side, side), method=Image.Resampling.BICUBIC)
    pixels = np.asarray(square)  # [H, W] or [H, W, 3]
    return np.ascontiguousarray(np.moveaxis(np.atleast_3d(pixels), 2, 0))


def plain(image: Image.Image) -> Image.Image:
    """The same picture, upright, of mode ``L``, ``RGB`` or, where it is transparent, ``RGBA``.

    Args:
        image: of any size and mode; of an animation, the first frame.

    Raises:
        ValueError: pixels without a single right conversion to grey or RGB.
    """
    if image.mode in ("F", "LAB"):
        raise ValueError(f"its pixels are {image.mode}, not grey or RGB")
    image = ImageOps.exif_transpose(image)  # a photo taken with the camera turned
    if image.mode.startswith("I"):  # 16 bits: Pillow would clip values above 255
        grey = np.asarray(image).astype(np.float64) / 257
        return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        return image.convert("RGBA")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")
