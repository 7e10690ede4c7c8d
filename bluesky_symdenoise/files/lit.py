"""The first frames of a file that have counts: shutters open late."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.files.stack import FrameStack
from bluesky_symdenoise.physics.frame import sentinel_mask

#: Seconds that are spent on looking for them.
PATIENCE_S = 20.0


def first_with_counts(
    stack: FrameStack, number: int, *, mask: NDArray[np.bool_] | None, clock: Callable[[], float]
) -> NDArray[Any]:
    """Return the first frames (k, y, x) that have counts; the first of all if none is found within `PATIENCE_S`.

    Parameters
    ----------
    number
        Frames that are returned at most.
    mask
        (y, x), True = bad.
    clock
        Seconds, such as `time.monotonic`.
    """
    begun = clock()
    found: list[NDArray[Any]] = []
    for index in range(len(stack)):
        frame = stack[index]
        good = ~sentinel_mask(frame) if mask is None else ~sentinel_mask(frame) & ~mask
        if np.any(frame[good]):
            found.append(frame)
        if len(found) == number or clock() - begun > PATIENCE_S:
            break
    return np.stack(found) if found else stack[:number]
