"""Ratio of the flux of two rows, from what agrees between their frames."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Side, in pixels, of the blocks that are compared.
BLOCK = 16
#: Blocks that differ by more standard deviations than this are left out of the ratio.
ALIKE_Z = 3.0
#: Number of times that the ratio is computed again without the blocks that differ.
TRIMS = 4


def flux_ratios(counts: Floats, exposure: Floats, others: Floats, other_exposure: Floats) -> Floats:
    """Return how much brighter the exposures of rows were than that of a frame: a = (Y_j / N_j) / (Y / N).

    Sums run over the blocks that agree: at first those on the counts' side of the weighted median of the blocks'
    ratios, which a change in less than half of the counts cannot move far, then those within `ALIKE_Z` standard
    deviations of the last ratio. Blocks differ by Y_j - r Y with r = a N_j / N, whose variance is r (Y + Y_j) if the
    ratio is right.

    Parameters
    ----------
    counts, exposure
        (block,) sums over blocks of the frame's pixels that both measured, one array for all rows or (row, block).
    others, other_exposure
        (row, block) sums of the rows.

    Returns
    -------
    ndarray
        (row,) ratio of rates; NaN where nothing was counted in both.
    """
    counts, exposure = np.broadcast_to(counts, others.shape), np.broadcast_to(exposure, others.shape)
    out = np.full(len(others), np.nan)
    for index, (y, n, z, m) in enumerate(zip(counts, exposure, others, other_exposure, strict=True)):
        seen = (n > 0) & (m > 0) & (y + z > 0)
        if y[seen].sum() > 0 and z[seen].sum() > 0:
            out[index] = _ratio(y[seen], n[seen], z[seen], m[seen])
    return out


def _ratio(y: Floats, n: Floats, z: Floats, m: Floats) -> float:
    """Return the ratio of rates of one pair of frames."""
    expected = m / n
    # A block without counts in the frame has an infinite ratio: half a count keeps it in order.
    ratio = (z + 0.5) / (y + 0.5) / expected
    order = np.argsort(ratio, kind="stable")
    weight = (y + z)[order].cumsum()
    a = float(ratio[order][np.searchsorted(weight, weight[-1] / 2)])
    for _ in range(TRIMS):
        r = a * expected
        alike = (z - r * y) ** 2 <= ALIKE_Z**2 * np.maximum(r * (y + z), r)
        # The first threshold is that of a ratio which may be off by the median's own error.
        total = y[alike].sum(), (z[alike] / expected[alike]).sum()
        if not (total[0] > 0 and total[1] > 0):
            break
        a = float(total[1] / total[0])
    return a
