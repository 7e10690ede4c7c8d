"""Pixels that cannot be believed, found in the counts themselves with a stated rate of false alarms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.physics.frame import Frame

#: Probability that a frame without such a defect is said to have one.
FALSE_ALARM = 1e-6


def gap_lines(frame: Frame) -> NDArray[np.bool_]:
    """Gaps between modules that no mask names: whole rows and columns without a count, where there should be many.

    A line without counts has probability exp(-m), m the counts that the next lines with counts on both sides let
    expect: the smaller of the two, pixel by pixel, and at most one in a pixel, so that no peak speaks for a line. It
    is a gap where that, times the number of lines, is below one in a million. Beyond the last line with counts there
    may be a shadow: no gap is found there.

    Parameters
    ----------
    frame
        The counts, of one frame or of many added up: sparse frames tell no gap from a dark line.

    Returns
    -------
    ndarray
        (y, x), True in the gaps; pixels that were masked before are not repeated.
    """
    found = np.zeros(frame.counts.shape, bool)
    measured = frame.exposure > 0
    for axis in (0, 1):
        lines, seen = np.moveaxis(frame.counts, axis, 0), np.moveaxis(measured, axis, 0)
        total = lines.sum(axis=1)
        known = seen.any(axis=1)
        full = np.flatnonzero(total > 0)
        if full.size == 0:
            continue
        limit = np.log(len(lines) / FALSE_ALARM)
        for index in np.flatnonzero(known & (total == 0)):
            after = np.searchsorted(full, index)
            if not 0 < after < full.size:
                continue
            expected = np.minimum(np.minimum(lines[full[after - 1]], lines[full[after]]), 1.0)
            if expected[seen[index]].sum() > limit:
                np.moveaxis(found, axis, 0)[index] = True
    return found & measured


def without_gaps(frame: Frame) -> Frame:
    """The frame with `gap_lines` masked."""
    gaps = gap_lines(frame)
    return replace(frame, counts=np.where(gaps, 0.0, frame.counts), exposure=np.where(gaps, 0.0, frame.exposure))
