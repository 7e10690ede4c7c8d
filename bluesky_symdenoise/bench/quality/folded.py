"""Peers that use the symmetry: mates averaged, checked or not, with and without BM3D; rings averaged over azimuth."""

from __future__ import annotations

import numpy as np

from bluesky_symdenoise.bench.quality.cases import Given
from bluesky_symdenoise.bench.quality.metrics import FloatArray
from bluesky_symdenoise.bench.quality.stabilised import bm3d
from bluesky_symdenoise.physics.fold import gated_mates, mated
from bluesky_symdenoise.physics.frame import Frame, frame_from_counts


def plain_fold(given: Given) -> FloatArray | None:
    """Return the mean over all mates, whether they agree or not; None without a symmetry."""
    if not given.symmetry.operations:
        return None
    frame = _frame(given)
    counts, exposure = frame.counts.copy(), frame.exposure.copy()
    for operation in given.symmetry.operations:
        assert given.symmetry.beam_center is not None
        other = mated(frame, operation, given.symmetry.beam_center)
        counts += other.counts
        exposure += other.exposure
    return np.divide(counts, exposure, out=np.full_like(counts, np.nan), where=exposure > 0)


def gated_fold(given: Given) -> FloatArray | None:
    """Return the mean over the mates that the symmetry test lets in; None without a symmetry."""
    if not given.symmetry.operations:
        return None
    frame = _frame(given)
    mates = gated_mates(frame, given.symmetry)
    exposure = frame.exposure + mates.exposure
    return np.divide(frame.counts + mates.counts, exposure, out=np.full_like(exposure, np.nan), where=exposure > 0)


def bm3d_on_fold(given: Given) -> FloatArray | None:
    """Return BM3D of the counts summed over the mates that the test accepts, per frame; None without symmetry.

    BM3D wants noise of one width, and the sum's depends on how many were summed. So for each number of summed pixels
    m the mean is scaled to m frames and denoised, and the result serves the pixels with that number: those without
    mates get the BM3D of a picture in which they count once.
    """
    if not given.symmetry.operations:
        return None
    frame = _frame(given)
    mates = gated_mates(frame, given.symmetry)
    counts, exposure = frame.counts + mates.counts, frame.exposure + mates.exposure
    unseen = exposure == 0
    mean = np.divide(counts, exposure, out=np.zeros_like(counts), where=~unseen)
    estimate = np.full_like(counts, np.nan)
    for number in np.unique(exposure[~given.mask]):
        here = exposure == number
        estimate[here] = bm3d(mean * number, unseen)[here] / number
    return estimate


def azimuthal(given: Given) -> FloatArray | None:
    """Return the mean over azimuth at each pixel's radius; None where the set is not recorded as rings.

    Rings one pixel wide about the centre, and straight lines between their mean radii. Nothing corrects for tilt or
    polarisation: none is recorded.
    """
    if not given.rings:
        return None
    assert given.symmetry.beam_center is not None
    y, x = np.indices(given.counts.shape)
    radius = np.hypot(y - given.symmetry.beam_center[0], x - given.symmetry.beam_center[1])
    good = ~given.mask
    ring = np.rint(radius[good]).astype(np.intp)
    number, of_radius, of_counts = (np.bincount(ring, weights) for weights in (None, radius[good], given.counts[good]))
    seen = number > 0
    return np.asarray(np.interp(radius, of_radius[seen] / number[seen], of_counts[seen] / number[seen]))


def _frame(given: Given) -> Frame:
    return frame_from_counts(given.counts, mask=given.mask, exposure=np.ones(given.counts.shape))
