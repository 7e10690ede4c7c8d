"""Offset, read noise and what else frames without photons show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.dark import Dark, summed_signal
from bluesky_symdenoise.physics.integrating.blur import Differences
from bluesky_symdenoise.physics.integrating.residual import Residual

#: Standard errors from which a drift is said, and values beyond so many standard deviations are left out.
SAID, CLIPPED = 6.0, 6.0


@dataclass(frozen=True)
class FoundDark:
    """What dark frames show.

    Attributes
    ----------
    dark
        Their sum.
    noise, error
        Standard deviation of a pixel of one frame, and its standard error; NaN of a single dark.
    drift
        Standard deviation of the mean of frames beyond their noise; 0 if none is seen.
    offset
        Mean of the frames, NaN where masked; of some rows, as the differences.
    pairs
        Differences of consecutive frames.
    """

    dark: Dark
    noise: float
    error: float
    drift: float
    offset: NDArray[np.float64]
    pairs: tuple[NDArray[np.float64], ...]

    def residuals(self, good: NDArray[np.bool_], differences: Differences) -> list[Residual]:
        """Return the noise of frames without photons, as residuals at level 0."""
        here = good & np.isfinite(self.offset)
        return [Residual(np.where(here, pair, 0.0), np.zeros(good.shape), here, differences) for pair in self.pairs]


def found_dark(frames: Sequence[NDArray[Any]], *, averaged: int, rows: NDArray[np.intp]) -> FoundDark:
    """Return offset and noise of dark frames (y, x), each the mean of `averaged` exposures.

    Parameters
    ----------
    rows
        Rows from which the noise is read.

    Raises
    ------
    SymDenoiseError
        If frames are identical.
    """
    dark = summed_signal(frames, averaged=averaged)
    parts = [frame[rows].astype(np.float64) for frame in frames]
    good = ~dark.mask[rows]
    if len({np.where(good, part, 0.0).tobytes() for part in parts}) < len(parts):
        raise SymDenoiseError(
            f"{len(parts)} dark frames, of which some are identical",
            rule="the noise of dark frames is the read noise, and no two have the same",
            remedy="give each dark frame once, as the detector wrote it, or one alone, whose noise is then not used",
        )
    offset = np.where(good, dark.counts[rows] / dark.frames, np.nan)
    pairs = []
    for first, second in pairwise(parts):
        step = (first - second) / np.sqrt(2)
        pairs.append(np.where(good, step - np.median(step[good]), 0.0))
    if not pairs or not good.any():
        return FoundDark(dark, np.nan, np.nan, 0.0, offset, ())
    squares = number = 0.0
    for pair in pairs:
        values = pair[good]
        limit = CLIPPED * 1.4826 * np.median(np.abs(values))
        kept = values[np.abs(values) <= limit] if limit > 0 else values
        squares, number = squares + float((kept**2).sum()), number + kept.size
    noise = float(np.sqrt(squares / number))
    # The mean of a frame is known far better than its pixels.
    known = noise / np.sqrt(np.count_nonzero(good))
    spread = float(np.std([frame[good].mean() for frame in parts], ddof=1))
    return FoundDark(
        dark=dark,
        noise=noise,
        # A frame is in two differences.
        error=noise * float(np.sqrt(1.5 / (2 * number))),
        drift=spread if spread > SAID * known else 0.0,
        offset=offset,
        pairs=tuple(pairs),
    )
