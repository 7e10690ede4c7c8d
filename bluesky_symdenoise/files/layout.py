"""Rules for what is one image, a stack of images or a colour image: the same for files and for runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bluesky_symdenoise.errors import SymDenoiseError

Shape = tuple[int, ...]

#: An axis of at most this length, beside two longer ones, holds colour channels.
_CHANNELS = 4


def is_colour(shape: Sequence[int | None]) -> bool:
    """Return whether images of this shape are coloured: channels last, (y, x, 3), or line by line, (y, 3, x).

    Three planes, (3, y, x), could be three frames or one colour image: they count as frames.
    """
    known = [size for size in shape if size is not None]
    if len(known) != len(shape) or len(known) not in (3, 4):
        return False
    first, second, last = known[-3:]
    if last in (3, 4):
        return True
    return first > _CHANNELS and (1 < last <= _CHANNELS < second or (second in (3, 4) and last > _CHANNELS))


def stated_shape(shape: Sequence[int | None] | None) -> tuple[int | None, ...]:
    """Return the shape that a data key states, without the zeros of an old ``describe``, as in (x, y, 0).

    A size that is not a whole number becomes None.
    """
    sizes = shape if isinstance(shape, list | tuple) else ()
    return tuple(size if isinstance(size, int) else None for size in sizes if size != 0)


def may_be_image(shape: Sequence[int | None]) -> bool:
    """Return whether a stated shape may be that of 2D images, one or several: (..., y, x), None if it varies."""
    return len(shape) in (2, 3) and not is_colour(shape) and all(size is None or size > 1 for size in shape[-2:])


def frames_stated(shape: Sequence[int | None]) -> int | None:
    """Return how many frames a row of this stated shape holds; None if it varies."""
    leading = [size for size in shape[:-2] if size is not None]
    return math.prod(leading) if len(leading) == len(shape[:-2]) else None


def row_shape(own: Sequence[int], stated: Sequence[int | None] | None) -> Shape:
    """Return the shape (..., y, x) of a row: as stated if it equals the file's own except for axes of length 1.

    If they differ, the file's own shape decides, because stated shapes may be wrong: (x, y, 0), (1, x, y), a region
    that was made smaller, or several frames that the detector summed.

    Parameters
    ----------
    own
        Shape of the row in its file.
    stated
        Shape by its data key, as `stated_shape` returns it; None where it varies.

    Raises
    ------
    SymDenoiseError
        If the row is not an image.
    """
    if len(own) < 2 or 0 in own or min(own[-2:]) < 2:
        raise SymDenoiseError(
            f"an image of shape {tuple(own)}",
            rule=f"it is not (..., y, x), and its data key states {_said(stated)}",
            remedy="name the data key of an image, or fix the device that describes it",
        )
    frames = math.prod(own[:-2])
    flat = (frames, *own[-2:])
    if is_colour(flat if frames > 1 else own[-2:]):
        raise SymDenoiseError(
            f"an image of shape {tuple(own)}",
            rule=f"colour images hold no counts, and its data key states {_said(stated)}",
            remedy="have the camera give monochrome images, or leave its data key out with data_keys=...",
        )
    wanted = tuple(stated or ())
    known = tuple(size for size in wanted if size is not None)
    if len(known) == len(wanted) >= 2 and (math.prod(known[:-2]), *known[-2:]) == flat:
        return known
    return flat if len(wanted) > 2 or frames > 1 else flat[1:]


def _said(stated: Sequence[int | None] | None) -> str:
    return "nothing" if stated is None else str(tuple(stated))
