"""Mates of pixels under a turn or mirror: counts are moved to them, and never interpolated."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.physics.tilt import Tilt

#: Number of rows whose mates are computed at a time, to keep temporary arrays small.
ROWS = 256


class Operation(NamedTuple):
    """A turn or mirror of the plane without its centre: the matrix that it applies to (y, x).

    With a tilt, the plane is the one at a right angle to the beam, and the detector is not.
    """

    yy: float
    yx: float
    xy: float
    xx: float
    tilt: Tilt | None = None

    @property
    def exact(self) -> bool:
        """Whether the operation maps pixels onto pixels."""
        return self.tilt is None and all(value in (-1, 0, 1) for value in self[:4])

    def __matmul__(self, other: Operation) -> Operation:
        """Return this operation after the other, on one detector."""
        a, b = np.reshape(self[:4], (2, 2)), np.reshape(other[:4], (2, 2))
        yy, yx, xy, xx = (a @ b).ravel().tolist()
        return Operation(yy, yx, xy, xx, self.tilt)

    def inverse(self) -> Operation:
        """Return the operation that undoes it."""
        return Operation(self.yy, self.xy, self.yx, self.xx, self.tilt)

    def moved(self, dy: NDArray[Any], dx: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return where the operation sends places (dy, dx) from the centre on the detector; NaN outside its plane."""
        if self.tilt is not None:
            dy, dx = self.tilt.flattened(dy, dx)
        dy, dx = self.yy * dy + self.yx * dx, self.xy * dy + self.xx * dx
        return (dy, dx) if self.tilt is None else self.tilt.unflattened(dy, dx)


IDENTITY = Operation(1, 0, 0, 1)
INVERSION = Operation(-1, 0, 0, -1)
MIRROR_X = Operation(1, 0, 0, -1)
MIRROR_Y = Operation(-1, 0, 0, 1)
QUARTER = Operation(0, -1, 1, 0)
QUARTER_BACK = Operation(0, 1, -1, 0)
DIAGONAL = Operation(0, 1, 1, 0)
ANTIDIAGONAL = Operation(0, -1, -1, 0)

_NAMES = {
    INVERSION: "inversion (2)",
    MIRROR_X: "mirror, left onto right (m)",
    MIRROR_Y: "mirror, top onto bottom (my)",
    QUARTER: "quarter turn",
    QUARTER_BACK: "quarter turn, the other way",
    DIAGONAL: "mirror, y onto x",
    ANTIDIAGONAL: "mirror, y onto -x",
}


def named(operation: Operation) -> str:
    """Return what an operation does, in words, which a tilt of the detector does not change."""
    flat = operation._replace(tilt=None)
    if flat in _NAMES:
        return _NAMES[flat]
    # For a mirror line at an angle a from the columns, yy = cos 2a and yx = -sin 2a.
    degrees = np.degrees(np.arctan2(-operation.yx, operation.yy)) / 2
    return f"oblique mirror, {degrees:g} degrees from the columns"


def mate(image: NDArray[Any], operation: Operation, beam_center: tuple[float, float]) -> NDArray[Any]:
    """Return the image at each pixel's mate: out(u) = image(c + g (u - c)), 0 where the mate is off the detector.

    Twice the centre is rounded to integers, so that counts are moved and never interpolated; for turns by 180 degrees
    and mirrors along the axes, the mate is at most half a pixel from its true place. A mirror along another line takes
    the nearest pixel, and only where that is mutual (five in six or more): of the others, two would have one mate. On
    a tilted detector, where mates are those of scattering directions, so do all operations.

    Parameters
    ----------
    image
        (y, x) array.
    operation
        Turn or mirror.
    beam_center
        (y, x) in pixels.
    """
    if not operation.exact:
        # The last element stands for pixels without a mate.
        return np.append(image.ravel(), np.zeros(1, image.dtype))[mate_indices(image.shape, operation, beam_center)]
    out = np.zeros_like(image)
    turned, axes = exact_move((image.shape[0], image.shape[1]), operation, beam_center)
    moved = image.T if turned else image
    target: list[slice] = []
    source: list[slice] = []
    for sign, offset, first, last in axes:
        target.append(slice(first, last))
        ends = (first + offset, last + offset) if sign > 0 else (offset - last + 1, offset - first + 1)
        source.append(slice(*ends) if last > first else slice(0, 0))
    part = moved[tuple(source)]
    out[tuple(target)] = part[tuple(slice(None, None, sign) for sign, *_ in axes)]
    return out


def exact_move(
    shape: tuple[int, int], operation: Operation, beam_center: tuple[float, float]
) -> tuple[bool, tuple[tuple[int, int, int, int], tuple[int, int, int, int]]]:
    """Return where an exact operation takes an image's pixels from.

    Returns
    -------
    tuple
        Whether the axes are exchanged, and, for each axis of the result, (sign, offset, first, last): pixels from
        ``first`` to before ``last`` are those at sign * position + offset of the image, or of its transpose.
    """
    doubled = twice(beam_center, operation)
    turned = operation.yx != 0
    signs = (operation.xy, operation.yx) if turned else (operation.yy, operation.xx)
    sizes = shape[::-1] if turned else shape
    axes: list[tuple[int, int, int, int]] = []
    for axis, sign in enumerate(signs):
        offset = (doubled[1 - axis if turned else axis] - int(sign) * doubled[axis]) // 2
        there = sizes[axis]
        low, high = (-offset, there - 1 - offset) if sign > 0 else (offset - there + 1, offset)
        first, last = max(0, low), min(shape[axis] - 1, high)
        # Off the detector last < first: the range must be empty, and not count from the other edge.
        axes.append((int(sign), offset, first, max(first, last + 1)))
    return turned, (axes[0], axes[1])


def first_of_pair(shape: tuple[int, ...], operation: Operation, beam_center: tuple[float, float]) -> NDArray[np.bool_]:
    """Return True for one pixel of each pair (u, g u), if both are on the detector: no photon is in two pairs."""
    there = mate_indices(shape, operation, beam_center)
    if operation.inverse() == operation:
        return np.arange(shape[0] * shape[1]).reshape(shape) < there
    # A quarter turn maps four pixels onto each other: the first and the third of them lead a pair.
    center = beam_center if operation.tilt else tuple(value / 2 for value in twice(beam_center, operation))
    y, x = (np.arange(size) - at for size, at in zip(shape, center, strict=True))
    dy, dx = y[:, None], x[None, :]
    if operation.tilt is not None:
        dy, dx = operation.tilt.flattened(dy, dx)
    leads = ((dy > 0) & (dx >= 0)) | ((dy < 0) & (dx <= 0))
    if operation.tilt is None:
        return (there >= 0) & leads
    # Rounding to the nearest pixel may cross the border of the quarter.
    return (there >= 0) & leads & ~leads.ravel()[there]


def same_mate(
    shape: tuple[int, ...], one: Operation, other: Operation, beam_center: tuple[float, float]
) -> NDArray[np.bool_]:
    """Return True for pixels (y, x) that two operations send to one place."""
    if one.exact and other.exact:
        difference = other.inverse() @ one
        center = twice(beam_center, difference)
        dy, dx = (2 * np.arange(size) - c for size, c in zip(shape, center, strict=True))
        dy, dx = dy[:, None], dx[None, :]
        a, b, c, d = (int(value) for value in difference[:4])
        return ((a - 1) * dy + b * dx == 0) & (c * dy + (d - 1) * dx == 0)
    return np.equal(mate_indices(shape, one, beam_center), mate_indices(shape, other, beam_center))


def twice(beam_center: tuple[float, float], operation: Operation) -> tuple[int, int]:
    """Return twice the centre as integers; for a quarter turn both even or both odd."""
    y, x = (round(2 * value) for value in beam_center)
    if operation.yx and (y - x) % 2:
        away = 2 * beam_center[0] - y, 2 * beam_center[1] - x
        if abs(away[0]) > abs(away[1]):
            y += 1 if away[0] > 0 else -1
        else:
            x += 1 if away[1] > 0 else -1
    return y, x


def mate_indices(
    shape: tuple[int, ...], operation: Operation, beam_center: tuple[float, float]
) -> NDArray[np.signedinteger]:
    """Return the flat index of each pixel's mate, -1 if it has none."""
    if operation.exact:
        return mate(np.arange(1, 1 + shape[0] * shape[1]).reshape(shape), operation, beam_center) - 1
    return _mutual_nearest((shape[0], shape[1]), operation, beam_center)


@lru_cache(8)
def _mutual_nearest(
    shape: tuple[int, int], operation: Operation, beam_center: tuple[float, float]
) -> NDArray[np.signedinteger]:
    """Return the flat index of each pixel's nearest mate if each is the other's; -1 elsewhere."""
    height, width = shape
    x = np.arange(width)[None, :] - beam_center[1]

    def nearest(g: Operation) -> NDArray[np.int32]:
        index = np.empty(shape, np.int32)
        for first in range(0, height, ROWS):
            y = np.arange(first, min(first + ROWS, height))[:, None] - beam_center[0]
            dy, dx = g.moved(y, x)
            to_y, to_x = np.rint(dy + beam_center[0]), np.rint(dx + beam_center[1])
            on = (to_y >= 0) & (to_y < height) & (to_x >= 0) & (to_x < width)
            index[first : first + ROWS] = np.where(on, to_y * width + to_x, -1)
        return index

    there = nearest(operation)
    back = there if operation.inverse() == operation else nearest(operation.inverse())
    mutual = (there >= 0) & (back.ravel()[there] == np.arange(height * width).reshape(shape))
    index = np.where(mutual, there, np.int32(-1))
    index.flags.writeable = False
    return index
