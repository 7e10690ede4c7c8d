"""Defective pixels, found in the counts themselves with a stated rate of false alarms."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import pdtr

from bluesky_symdenoise.physics.frame import Frame

#: Probability of finding a defect in a frame without one.
FALSE_ALARM = 1e-6
#: A spot at least half a pixel wide puts more than this fraction of its brightest pixel's counts on that pixel's
#: neighbours, the brightest of which is left out.
LEAK = 0.02
#: Fewest measured neighbours, of eight, from which a pixel is judged.
NEIGHBOURS = 5
#: Largest dead spot, in pixels.
DEAD_PIXELS = 4
#: Flag of these pixels in results.
HOT, DEAD = 1, 2


@dataclass(frozen=True)
class Defects:
    """Pixels (y, x) whose counts cannot come from photons."""

    hot: NDArray[np.bool_]
    dead: NDArray[np.bool_]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """True where a pixel is hot or dead."""
        return self.hot | self.dead


def found_defects(frame: Frame) -> Defects:
    """Return hot and dead pixels of a frame, or of the sum of many, judged by their neighbours.

    Hot: the neighbours would get more counts even from a spot half a pixel wide. With S the sum of the neighbours
    without the brightest, S ~ Poisson(LEAK * y) or more, and P(S or less) times the number of pixels is below one in a
    million. A pixel among dark ones is thus never hot below 1400 counts; narrow peaks of any height never are. The
    brightest neighbour is left out, so that two hot pixels side by side are found.

    Dead: no counts in up to four touching pixels, while each of those around has so many that a pixel like the dimmest
    of them would count nothing with a probability, times the number of pixels, below one in a million: 27 counts in a
    frame of 10^6 pixels. Shadows are larger.
    """
    limit = float(np.log(frame.counts.size / FALSE_ALARM))
    return Defects(hot=_hot(frame, limit), dead=_dead(frame, limit))


def no_defects(frame: Frame) -> Defects:
    """Return the result for a frame whose counts are all used."""
    nothing = np.zeros(frame.counts.shape, bool)
    return Defects(hot=nothing, dead=nothing)


def _hot(frame: Frame, limit: float) -> NDArray[np.bool_]:
    found = np.zeros(frame.counts.shape, bool)
    y, x = np.nonzero(frame.counts * LEAK > limit)
    if len(y) == 0:
        return found
    counts, exposure = (_around(image, y, x) for image in (frame.counts, frame.exposure))
    rest = counts.sum(axis=0) - counts.max(axis=0)
    leak = LEAK * frame.counts[y, x] / frame.exposure[y, x] * exposure.mean(axis=0)
    enough = np.count_nonzero(exposure, axis=0) >= NEIGHBOURS
    found[y, x] = enough & (pdtr(rest, leak) < np.exp(-limit))
    return found


def _dead(frame: Frame, limit: float) -> NDArray[np.bool_]:
    found = np.zeros(frame.counts.shape, bool)
    # The first pixel of a dead spot has a bright one on its left, or the last one on its right: rare in most frames.
    bright = frame.counts * frame.exposure.max() > limit * frame.exposure
    empty = (frame.exposure > 0) & (frame.counts == 0)
    beside = np.zeros_like(empty)
    beside[:, 1:] |= bright[:, :-1]
    beside[:, :-1] |= bright[:, 1:]
    beside &= empty
    if not beside.any():
        return found
    label, number = ndimage.label(empty, np.ones((3, 3)))
    small = np.zeros(number + 1, bool)
    small[label[beside]] = True
    small &= np.bincount(label.ravel(), minlength=number + 1) <= DEAD_PIXELS
    y, x = np.nonzero(small[label])
    spot = label[y, x]
    counts, exposure, labels = (_around(image, y, x) for image in (frame.counts, frame.exposure, label))
    other = (exposure > 0) & (labels != spot)
    rate = np.divide(counts, exposure, out=np.full(counts.shape, np.inf), where=other)
    # The pixels of a spot are tested together: by the dimmest of all their neighbours, and by their number.
    least = np.full(number + 1, np.inf)
    np.minimum.at(least, spot, rate.min(axis=0) * frame.exposure[y, x])
    neighbours = np.bincount(spot, other.sum(axis=0), minlength=number + 1)
    dead = np.isfinite(least) & (least > limit) & (neighbours >= NEIGHBOURS)
    found[y, x] = dead[spot]
    return found


def _around(image: NDArray[Any], y: NDArray[np.intp], x: NDArray[np.intp]) -> NDArray[Any]:
    """Return (8, pixel) values of the neighbours; 0 beyond the edge."""
    height, width = image.shape
    out = np.zeros((8, len(y)), image.dtype)
    steps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
    for values, (dy, dx) in zip(out, steps, strict=True):
        inside = (y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width)
        values[inside] = image[y[inside] + dy, x[inside] + dx]
    return out


def gap_lines(frame: Frame) -> NDArray[np.bool_]:
    """Return gaps between modules that no mask marks: whole rows and columns without a count that should have many.

    A line without counts has probability exp(-m), with m the counts expected from the next lines with counts on both
    sides: the smaller of the two, pixel by pixel, and at most one per pixel, so that a peak alone does not decide. It
    is a gap where that, times the number of lines, is below one in a million. Beyond the last line with counts there
    may be a shadow: no gap is found there.

    Parameters
    ----------
    frame
        The counts, of one frame or of many added up: sparse frames cannot tell a gap from a dark line.

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
    """Return the frame with `gap_lines` masked."""
    return without(frame, gap_lines(frame))


def without(frame: Frame, bad: NDArray[np.bool_]) -> Frame:
    """Return the frame with more pixels masked, (y, x) True = bad; the frame itself if there are none."""
    if not bad.any():
        return frame
    return replace(frame, counts=np.where(bad, 0.0, frame.counts), exposure=np.where(bad, 0.0, frame.exposure))
