"""From a file to an upright RGB picture of 8 bits, whatever its mode."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from dwsep_zoo.errors import UserError, first_line

WHITE = "#ffffff"
DECODING = 2
"""Counts changes of this file after which some pictures look different."""
ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each orientation that a camera writes."""
ON_ITS_SIDE = [UPRIGHT[orientation] for orientation in (5, 6, 7, 8)]
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
SIGNED = 2


def read_picture(
    path: str | Path,
    content: BinaryIO | Path | None = None,
    background: str = WHITE,
    reduction: Callable[[tuple[int, int]], int] | None = None,
) -> Image.Image:
    """Decode a file to RGB, see :func:`as_rgb`.

    Args:
        path: as messages name it.
        content: what has its bytes; ``None``: the file at that path.
        background: colour below what is transparent.
        reduction: how many times smaller a JPEG of this width and height may be decoded.

    Raises:
        UserError: naming the path, if it is missing, damaged or not a picture.
    """
    with opened(path, content) as image:
        if reduction is not None and image.format == "JPEG":
            _reduce(image, reduction)
        return as_rgb(image, background)


def as_rgb(image: Image.Image, background: str = WHITE) -> Image.Image:
    """An upright picture in RGB.

    The first one of an animation is taken. It is turned as its EXIF orientation says. What is
    transparent shows the background. Grey values of more than 8 bits are scaled by the range of
    their kind: of 16 bits from 0-65535. Floating-point ones are from 0-1 or, if one is above 1,
    0-255.

    Raises:
        UserError: for values outside their range, and those that are not finite.
    """
    image.load()  # readers of TIFF turn the picture here
    turn = _turn(image)
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.mode.endswith(("A", "a")) or "transparency" in image.info:
        if image.mode == "La":  # has no direct way to RGBA
            image = image.convert("LA")
        with_alpha = image.convert("RGBA")
        image = Image.new("RGB", image.size, background)
        image.paste(with_alpha, mask=with_alpha.getchannel("A"))
    image = image.convert("RGB")
    image.info = {}  # whoever reads it again shall not turn it again
    return image if turn is None else image.transpose(turn)


def _reduce(image: Image.Image, reduction: Callable[[tuple[int, int]], int]) -> None:
    """Have a JPEG decoded at a part of its size."""
    width, height = image.size
    on_its_side = _turn(image) in ON_ITS_SIDE
    scale = reduction((height, width) if on_its_side else (width, height))
    if scale > 1:
        image.draft(None, (width // scale, height // scale))


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What sets a picture upright that is not."""
    # Damaged metadata, for which Pillow raises errors of many kinds, leave the pixels intact.
    try:
        found = image.getexif().get(ORIENTATION)
    except Exception:
        return None
    return UPRIGHT.get(found) if isinstance(found, int) else None


def _eight_bits(image: Image.Image) -> Image.Image:
    """A picture of one channel with more than 8 bits, as 8 bits."""
    values, top = np.asarray(image), 65535
    tags = getattr(image, "tag_v2", None) or {}
    if image.mode == "F":
        if not np.isfinite(values).all():
            raise UserError("it has values that are not finite")
        top = 1 if values.max() <= 1 else 255
    elif BITS in tags:
        bits = int(tags[BITS][0])
        signed = tags.get(SAMPLE_FORMAT, (1,))[0] == SIGNED
        top = 2 ** (bits - signed) - 1
        if values.dtype == np.int32 and not signed:
            values = values.view(np.uint32)
    if values.min() < 0 or values.max() > top:
        raise UserError(
            f"it has values from {values.min():g} to {values.max():g}; those of its kind are in "
            f"0 ... {top}"
        )
    grey = np.rint(values * (255 / top)).astype(np.uint8)
    if tags.get(PHOTOMETRIC) == 0:  # 0 is white
        grey = 255 - grey
    if isinstance(clear := image.info.get("transparency"), int):
        opaque = np.where(values == clear, np.uint8(0), np.uint8(255))
        return Image.fromarray(np.dstack([grey, opaque]))  # LA
    return Image.fromarray(grey)


@contextmanager
def opened(path: str | Path, content: BinaryIO | Path | None = None) -> Iterator[Image.Image]:
    """Open a file; both this and the later access to its pixels may fail.

    Args:
        path: as messages name it.
        content: what has its bytes; ``None``: the file at that path.
    """
    try:
        with Image.open(path if content is None else content) as image:
            yield image
    # Pillow's readers raise errors of many kinds for damaged files.
    except Exception as error:
        known = isinstance(error, (OSError, SyntaxError, ValueError, EOFError))
        reason = " ".join(str(error).split()) if known else first_line(error)
        raise UserError(
            f"cannot read the picture {path}: {reason or type(error).__name__}"
        ) from error


@contextmanager
def no_warnings() -> Iterator[None]:
    """Ignore Pillow's warnings of damaged metadata, which are not used."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
