"""What the values of frames tell before their noise: which are usable, saturation, exposures that were averaged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bluesky_symdenoise.physics.counts.verdict import value_step
from bluesky_symdenoise.physics.frame import NEGATIVE_CODES
from bluesky_symdenoise.physics.integrating.readout import coded

#: Pixels that hold the largest value if it is saturated, and least value of a converter that saturates.
SATURATED_PIXELS, LEAST_TOP = 10, 255
#: Exposures whose mean is recognised from steps between values, at most.
MOST_EXPOSURES = 1000
#: How far a difference of single precision numbers may be off a whole number.
OFF_WHOLE = 0.02
#: Pixels around saturated ones that are left out.
AROUND_SATURATED = 4
#: Pixels of a frame that are enough, and rows of the bands that these are taken in, which begin at multiples.
MOST_PIXELS, BAND, MULTIPLE = 2**20, 128, 32


def saturation(frames: Sequence[NDArray[Any]], bad: NDArray[np.bool_]) -> float | None:
    """Return the largest value, if many pixels have it and few come near it, or it is the largest of so many bits."""
    usable = [~(bad | (~np.isfinite(frame) if frame.dtype.kind == "f" else frame >= 2**31 - 1)) for frame in frames]
    if not any(good.any() for good in usable):
        return None
    top = max(float(frame[good].max()) for frame, good in zip(frames, usable, strict=True) if good.any())
    if top <= 0:
        return None
    pairs = list(zip(frames, usable, strict=True))
    held = sum(int(np.count_nonzero((frame == top) & good)) for frame, good in pairs)
    near = sum(int(np.count_nonzero((frame < top) & (frame >= 0.98 * top) & good)) for frame, good in pairs)
    of_bits = float(np.log2(top + 1)).is_integer()
    return top if held >= SATURATED_PIXELS and top >= LEAST_TOP and (of_bits or held > 2 * near) else None


def exposures(values: NDArray[Any]) -> int | None:
    """Return N if all values are multiples of 1/N; None if they are whole, or multiples of nothing."""
    if values.dtype.kind != "f" or not values.size or values.min() < 0:
        return None
    step = value_step(values)
    if step is None or not 1.5 / MOST_EXPOSURES < step < 0.7 or abs(round(1 / step) * step - 1) > 0.01:
        return None
    return round(1 / step)


def averaged_exposures(frames: Sequence[NDArray[Any]], usable: Sequence[NDArray[np.bool_]]) -> int | None:
    """Return the number of exposures of which frames are means, as the steps between their values say; else None.

    Fractions that are the same in all frames are those of a dark that was subtracted, itself a mean.
    """
    first = frames[0][usable[0]]
    if len(frames) == 1 or first.dtype.kind != "f" or not first.size or first.min() < 0:
        return exposures(first)
    both = usable[0] & usable[1]
    difference, where = np.unique(np.abs(frames[1][both].astype(np.float64) - frames[0][both]), return_inverse=True)
    if np.all(np.abs(difference - np.round(difference)) < OFF_WHOLE):
        return None
    # Rounding to single precision makes one value several.
    new = np.diff(difference, prepend=-np.inf) > 0.5 / MOST_EXPOSURES
    return exposures(difference[new][np.cumsum(new) - 1][where])


def bands(shape: tuple[int, ...]) -> NDArray[np.intp]:
    """Return the rows of bands, evenly spread, that are enough of a large frame."""
    height, width = shape
    number = max(1, MOST_PIXELS // (BAND * width))
    if height <= number * BAND:
        return np.arange(height)
    first = np.linspace(0, height - BAND, number).astype(int) // MULTIPLE * MULTIPLE
    return np.unique((first[:, None] + np.arange(BAND)).ravel())


def usable_pixels(frame: NDArray[Any], bad: NDArray[np.bool_], top: float | None) -> NDArray[np.bool_]:
    """Return which pixels were measured, far from saturated ones."""
    out = bad | coded(frame)
    below = frame[(frame < 0) & ~out]
    # Many different negative values are noise about a dark that was subtracted; few are codes.
    if below.size and np.unique(below).size <= NEGATIVE_CODES:
        out |= frame < 0
    if top is not None:
        out |= ndimage.binary_dilation(frame >= top, iterations=AROUND_SATURATED)
    return ~out
