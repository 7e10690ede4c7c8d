"""Point groups of a diffraction pattern: which pixel is whose mate, about a centre on the half-pixel grid."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.errors import SymDenoiseError


class Operation(NamedTuple):
    """A turn or mirror of the plane without its centre: the matrix that it applies to (y, x)."""

    yy: float
    yx: float
    xy: float
    xx: float

    @property
    def exact(self) -> bool:
        """Whether it maps pixels onto pixels."""
        return all(value in (-1, 0, 1) for value in self)

    def __matmul__(self, other: Operation) -> Operation:
        """This operation after the other."""
        a, b = np.reshape(self, (2, 2)), np.reshape(other, (2, 2))
        return Operation(*(a @ b).ravel().tolist())

    def inverse(self) -> Operation:
        """The operation that undoes it."""
        return Operation(self.yy, self.xy, self.yx, self.xx)


IDENTITY = Operation(1, 0, 0, 1)
INVERSION = Operation(-1, 0, 0, -1)
MIRROR_X = Operation(1, 0, 0, -1)
MIRROR_Y = Operation(-1, 0, 0, 1)
QUARTER = Operation(0, -1, 1, 0)
QUARTER_BACK = Operation(0, 1, -1, 0)
DIAGONAL = Operation(0, 1, 1, 0)
ANTIDIAGONAL = Operation(0, -1, -1, 0)

#: Operations beside the identity, by Hermann-Mauguin symbol. ``m`` maps left onto right, ``my`` top onto bottom. Rings,
#: ``inf``, have more: these are the ones that their symmetry is tested with.
POINT_GROUPS: dict[str, tuple[Operation, ...]] = {
    "1": (),
    "2": (INVERSION,),
    "m": (MIRROR_X,),
    "my": (MIRROR_Y,),
    "2mm": (INVERSION, MIRROR_X, MIRROR_Y),
    "4": (INVERSION, QUARTER, QUARTER_BACK),
    "4mm": (INVERSION, QUARTER, QUARTER_BACK, MIRROR_X, MIRROR_Y, DIAGONAL, ANTIDIAGONAL),
    "inf": (INVERSION, QUARTER, QUARTER_BACK, MIRROR_X, MIRROR_Y, DIAGONAL, ANTIDIAGONAL),
}
#: Groups with a mirror that need not lie along the detector's columns: ``m@30`` is ``m`` turned by 30 degrees.
_TURNED = re.compile(r"(m|2mm)@(-?[0-9]{1,3}(?:\.[0-9]{1,3})?)")
#: Why other groups of the plane are refused.
_REFUSED = dict.fromkeys(
    ("3", "3m", "6", "6mm"), "its turns map no pixel onto a pixel, and counts are not interpolated"
)


@dataclass(frozen=True)
class Symmetry:
    """A point group about a centre.

    Attributes
    ----------
    point_group
        A key of `POINT_GROUPS`, or ``m@ANGLE`` or ``2mm@ANGLE``: with the mirror line turned by so many degrees from
        the detector's columns, from x towards y.
    beam_center
        (y, x) in pixels, the centre of the first pixel is 0; None for ``1``.
    fold
        (y, x) uint8: where bit i is set, the mate under operation i may be used; None where all may, as far as a
        frame's own counts agree. `bluesky_symdenoise.check_symmetry` makes it of many frames.
    """

    point_group: str = "1"
    beam_center: tuple[float, float] | None = None
    fold: NDArray[np.uint8] | None = field(default=None, compare=False, repr=False)

    @property
    def operations(self) -> tuple[Operation, ...]:
        """The operations beside the identity."""
        return _operations(self.point_group)

    def may_fold(self, index: int, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Where (y, x) the mates under one of the operations may be used.

        Raises
        ------
        SymDenoiseError
            If `fold` is of frames of another shape.
        """
        if self.fold is None:
            return np.ones(shape, bool)
        if self.fold.shape != shape:
            raise SymDenoiseError(
                f"a symmetry that was checked on frames of shape {self.fold.shape}",
                rule=f"this one has {shape}",
                remedy="check it on frames of this detector",
            )
        return (self.fold >> np.uint8(index) & 1).astype(bool)

    @property
    def grid_center(self) -> tuple[float, float] | None:
        """The centre on the half-pixel grid that all operations share, so that they are a group of permutations.

        At most a quarter of a pixel from the given one, along each axis. Quarter turns need twice the centre to be
        even along both axes or odd along both: they take the nearest such, at most half a pixel away. Groups with an
        oblique mirror, which moves to the nearest pixels, keep the centre as it is.
        """
        if self.beam_center is None or not all(operation.exact for operation in self.operations):
            return self.beam_center
        quarter = any(operation.yx for operation in self.operations)
        y, x = _twice(self.beam_center, QUARTER if quarter else INVERSION)
        return y / 2, x / 2


@lru_cache(64)
def _operations(symbol: str) -> tuple[Operation, ...]:
    turned = _TURNED.fullmatch(symbol)
    if turned is None:
        return POINT_GROUPS[symbol]
    twice = np.radians(2 * float(turned[2]))
    # A line at an angle a from the columns: its direction (y, x) is (cos a, -sin a), and 2 d d^T - 1 the mirror.
    mirror = Operation(float(np.cos(twice)), float(-np.sin(twice)), float(-np.sin(twice)), float(-np.cos(twice)))
    mirror = Operation(*(round(value) if abs(value - round(value)) < 1e-12 else value for value in mirror))
    return (mirror,) if turned[1] == "m" else (INVERSION, mirror, INVERSION @ mirror)


def checked_point_group(symbol: str) -> str:
    """The symbol, if it is one that can be used.

    Raises
    ------
    SymDenoiseError
        If it is not.
    """
    if symbol not in POINT_GROUPS and _TURNED.fullmatch(str(symbol)) is None:
        known = f"must be one of {', '.join(POINT_GROUPS)}, m@ANGLE, 2mm@ANGLE or auto"
        raise SymDenoiseError(
            f"symmetry {symbol!r}",
            rule=_REFUSED.get(symbol, f"it {known}"),
            remedy=f"choose {', '.join(POINT_GROUPS)}, m@30 or 2mm@30 as far as the pattern has it; 1 is none",
        )
    return symbol


def checked_beam_center(center: Any, shape: tuple[int, int]) -> tuple[float, float]:
    """The beam centre (y, x) in pixels, if it lies on the detector.

    Raises
    ------
    SymDenoiseError
        If it is not two finite numbers on the detector.
    """
    values = np.asarray(center, dtype=np.float64)
    if values.shape != (2,) or not np.isfinite(values).all():
        raise SymDenoiseError(
            f"beam centre {center!r}", rule="it must be two finite numbers", remedy="give (y, x) in pixels"
        )
    y, x = (float(value) for value in values)
    if not (-0.5 <= y <= shape[0] - 0.5 and -0.5 <= x <= shape[1] - 0.5):
        raise SymDenoiseError(
            f"beam centre (y, x) = ({y:g}, {x:g})",
            rule=f"it must lie on the detector of {shape[0]} x {shape[1]} pixels",
            remedy="check the order (y, x), or use symmetry 1 when the beam is off the detector",
        )
    return y, x


def mate(image: NDArray[Any], operation: Operation, beam_center: tuple[float, float]) -> NDArray[Any]:
    """The image at each pixel's mate: out(u) = image(c + g (u - c)), 0 where the mate is off the detector.

    Twice the centre is rounded to integers, so that counts are moved and never interpolated; for turns by 180 degrees
    and mirrors along the axes, the mate is at most half a pixel from its true place. A mirror along another line takes
    the nearest pixel, and only where that is mutual (five in six or more): of the others, two would have one mate.

    Parameters
    ----------
    image
        (y, x) array.
    operation
        What turns or mirrors.
    beam_center
        (y, x) in pixels.
    """
    out = np.zeros_like(image)
    if not operation.exact:
        index = _mutual_nearest((image.shape[0], image.shape[1]), operation, beam_center)
        known = index >= 0
        out[known] = image.ravel()[index[known]]
        return out
    twice = _twice(beam_center, operation)
    # Along each axis of what is moved, the source is sign * position + offset.
    turned = operation.yx != 0
    moved = image.T if turned else image
    signs = (operation.xy, operation.yx) if turned else (operation.yy, operation.xx)
    target: list[slice] = []
    source: list[slice] = []
    for axis, sign in enumerate(signs):
        offset = (twice[1 - axis if turned else axis] - int(sign) * twice[axis]) // 2
        there = moved.shape[axis]
        low, high = (-offset, there - 1 - offset) if sign > 0 else (offset - there + 1, offset)
        first, last = max(0, low), min(image.shape[axis] - 1, high)
        # Off the detector, last < first: an empty slice, and never one that counts from the other edge.
        stop = max(first, last + 1)
        target.append(slice(first, stop))
        ends = (first + offset, stop + offset) if sign > 0 else (offset - stop + 1, offset - first + 1)
        source.append(slice(*ends) if stop > first else slice(0, 0))
    part = moved[tuple(source)]
    out[tuple(target)] = part[tuple(slice(None, None, int(sign)) for sign in signs)]
    return out


def first_of_pair(shape: tuple[int, ...], operation: Operation, beam_center: tuple[float, float]) -> NDArray[np.bool_]:
    """True for one pixel of each pair (u, g u), where both are on the detector: no photon is in two pairs."""
    index = np.arange(1, 1 + shape[0] * shape[1]).reshape(shape)
    there = mate(index, operation, beam_center)
    if operation @ operation == IDENTITY or not operation.exact:
        return index < there
    # Of four pixels that a quarter turn makes of one, the first and the third are followed by their mates.
    y, x = _twice(beam_center, operation)
    dy, dx = 2 * np.arange(shape[0])[:, None] - y, 2 * np.arange(shape[1])[None, :] - x
    return (there > 0) & (((dy > 0) & (dx >= 0)) | ((dy < 0) & (dx <= 0)))


def same_mate(
    shape: tuple[int, ...], one: Operation, other: Operation, beam_center: tuple[float, float]
) -> NDArray[np.bool_]:
    """True for pixels (y, x) that two operations send to one place."""
    if one.exact and other.exact:
        difference = other.inverse() @ one
        center = _twice(beam_center, difference)
        dy, dx = (2 * np.arange(size) - c for size, c in zip(shape, center, strict=True))
        dy, dx = dy[:, None], dx[None, :]
        a, b, c, d = (int(value) for value in difference)
        return ((a - 1) * dy + b * dx == 0) & (c * dy + (d - 1) * dx == 0)
    index = np.arange(1, 1 + shape[0] * shape[1]).reshape(shape)
    return mate(index, one, beam_center) == mate(index, other, beam_center)


def _twice(beam_center: tuple[float, float], operation: Operation) -> tuple[int, int]:
    """Twice the centre as integers; for a quarter turn both even or both odd."""
    y, x = (round(2 * value) for value in beam_center)
    if operation.yx and (y - x) % 2:
        away = 2 * beam_center[0] - y, 2 * beam_center[1] - x
        if abs(away[0]) > abs(away[1]):
            y += 1 if away[0] > 0 else -1
        else:
            x += 1 if away[1] > 0 else -1
    return y, x


@lru_cache(8)
def _mutual_nearest(
    shape: tuple[int, int], operation: Operation, beam_center: tuple[float, float]
) -> NDArray[np.int64]:
    """The flat index of each pixel's nearest mate where each is the other's; -1 elsewhere."""
    height, width = shape
    y, x = np.indices(shape, dtype=np.float64)

    def nearest(g: Operation) -> NDArray[np.int64]:
        dy, dx = y - beam_center[0], x - beam_center[1]
        to_y = np.rint(g.yy * dy + g.yx * dx + beam_center[0]).astype(np.int64)
        to_x = np.rint(g.xy * dy + g.xx * dx + beam_center[1]).astype(np.int64)
        on = (to_y >= 0) & (to_y < height) & (to_x >= 0) & (to_x < width)
        return np.where(on, to_y * width + to_x, -1)

    there, back = nearest(operation), nearest(operation.inverse()).ravel()
    mutual = (there >= 0) & (back[there] == np.arange(height * width).reshape(shape))
    index = np.where(mutual, there, -1)
    index.flags.writeable = False
    return index
