"""Point groups of a diffraction pattern as exact permutations of pixels about a centre on the half-pixel grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.errors import SymDenoiseError

#: An operation without its centre: the signs that it gives to (y, x).
Operation = tuple[int, int]

INVERSION: Operation = (-1, -1)
MIRROR_X: Operation = (1, -1)
MIRROR_Y: Operation = (-1, 1)

#: Operations beside the identity, by Hermann-Mauguin symbol. ``m`` maps left onto right, ``my`` top onto bottom.
POINT_GROUPS: dict[str, tuple[Operation, ...]] = {
    "1": (),
    "2": (INVERSION,),
    "m": (MIRROR_X,),
    "my": (MIRROR_Y,),
    "2mm": (INVERSION, MIRROR_X, MIRROR_Y),
}


@dataclass(frozen=True)
class Symmetry:
    """A point group about a centre.

    Attributes
    ----------
    point_group
        A key of `POINT_GROUPS`.
    beam_center
        (y, x) in pixels, the centre of the first pixel is 0; None for ``1``.
    """

    point_group: str = "1"
    beam_center: tuple[float, float] | None = None

    @property
    def operations(self) -> tuple[Operation, ...]:
        """The operations beside the identity."""
        return POINT_GROUPS[self.point_group]


def checked_point_group(symbol: str) -> str:
    """The symbol, if it is one that can be used.

    Raises
    ------
    SymDenoiseError
        If it is not.
    """
    if symbol not in POINT_GROUPS:
        raise SymDenoiseError(
            f"symmetry {symbol!r}",
            rule=f"it must be one of {', '.join(POINT_GROUPS)} or auto",
            remedy="choose the group that the pattern has, or 1 for none",
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
    """The image at each pixel's mate: out(u) = image(2c + g(u - c) - c), 0 where the mate is off the detector.

    Twice the centre is rounded to an integer, so that counts are moved and never interpolated; the mate is at
    most half a pixel from its true place.

    Parameters
    ----------
    image
        (y, x) array.
    operation
        Signs for (y, x).
    beam_center
        (y, x) in pixels.
    """
    out = np.zeros_like(image)
    target: list[slice] = []
    source: list[slice] = []
    for size, sign, center in zip(image.shape, operation, beam_center, strict=True):
        if sign > 0:
            target.append(slice(None))
            source.append(slice(None))
            continue
        total = round(2 * center)
        first, last = max(0, total - size + 1), min(size - 1, total)
        # Off the detector, last < first: an empty slice, and never one that counts from the other edge.
        overlap = slice(first, max(first, last + 1))
        target.append(overlap)
        source.append(overlap)
    part = image[tuple(source)]
    out[tuple(target)] = part[tuple(slice(None, None, sign) for sign in operation)]
    return out
