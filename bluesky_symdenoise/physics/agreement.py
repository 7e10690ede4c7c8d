"""Agreement of a frame's counts with a symmetry: a map of where they differ, and one test for each operation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.physics.fold import REGION, mated, pair_statistics, symmetry_score
from bluesky_symdenoise.physics.frame import Frame
from bluesky_symdenoise.physics.mates import Operation, first_of_pair
from bluesky_symdenoise.physics.symmetry import Symmetry

#: Fewest counts of the pairs in a region for which it is tested; with fewer, D/sqrt(V) is not normal enough.
TESTABLE = 25


@dataclass(frozen=True)
class PairTest:
    """Agreement of the mates under one operation, each pair of pixels taken once.

    Attributes
    ----------
    operation
        The operation that was tested.
    regions
        Regions of 32 x 32 pixels with enough counts.
    agreeing
        Share of them within three standard deviations.
    p_regions
        Probability that regions of truly symmetric rates differ as much as these: sum of D^2/V against chi squared
        with ``regions`` degrees of freedom. NaN if no region can be tested.
    p_pixels
        The same for single pixels: the sum of chi squares of all pairs against its normal limit, one-sided.
        NaN if no pair has counts.
    difference
        Rms difference of the mates' rates over regions, beyond noise, in units of their mean: whatever p is, a small
        value does little harm. NaN if no region can be tested.
    """

    operation: Operation
    regions: int
    agreeing: float
    p_regions: float
    p_pixels: float
    difference: float


def disagreement(frame: Frame, symmetry: Symmetry) -> NDArray[np.float64]:
    """Return the strongest disagreement of each pixel's surroundings with any mate, (y, x) in standard deviations.

    NaN where the pixel or all of its mates were not measured.
    """
    worst = np.zeros(frame.counts.shape)
    seen = np.zeros(frame.counts.shape, bool)
    for operation in symmetry.operations:
        assert symmetry.grid_center is not None
        other = mated(frame, operation, symmetry.grid_center)
        np.maximum(worst, symmetry_score(frame, other), out=worst)
        seen |= other.exposure > 0
    return np.where((frame.exposure > 0) & seen, worst, np.nan)


def pair_tests(frame: Frame, symmetry: Symmetry) -> tuple[PairTest, ...]:
    """Return one test for each operation of a symmetry, from the counts alone; see `PairTest`."""
    return tuple(_pair_test(frame, operation, symmetry.grid_center) for operation in symmetry.operations)


def _pair_test(frame: Frame, operation: Operation, beam_center: tuple[float, float] | None) -> PairTest:
    from scipy import stats

    assert beam_center is not None
    other = mated(frame, operation, beam_center)
    once = first_of_pair(frame.counts.shape, operation, beam_center)
    # Seen from its other end, a pair has the same D with the opposite sign: counted twice, it would make p far too
    # small.
    first = Frame(
        counts=np.where(once, frame.counts, 0), exposure=np.where(once, frame.exposure, 0), reference=frame.reference
    )
    difference, variance, chi, chi_variance = pair_statistics(first, other, block=REGION)
    testable = variance >= TESTABLE / 4
    d, v = difference[testable], variance[testable]
    regions = len(d)
    score = d**2 / v
    spread = float(chi_variance.sum())
    return PairTest(
        operation=operation,
        regions=regions,
        agreeing=float(np.mean(score <= 9)) if regions else float("nan"),
        p_regions=float(stats.chi2.sf(score.sum(), regions)) if regions else float("nan"),
        p_pixels=float(stats.norm.sf(chi.sum() / np.sqrt(spread))) if spread > 0 else float("nan"),
        # With equal exposures n = 4 V, so that 2 (a - b) / (a + b) = D / V.
        difference=float(np.sqrt(max(0.0, (d**2 - v).sum()) / (v**2).sum())) if regions else float("nan"),
    )
