"""What the values of frames tell without their noise: saturation, and the number of exposures that were averaged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.physics.counts.verdict import value_step

#: Pixels that hold the largest value if it is saturated, and least value of a converter that saturates.
SATURATED_PIXELS, LEAST_TOP = 10, 255
#: Exposures whose mean is recognised from steps between values, at most.
MOST_EXPOSURES = 1000


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
