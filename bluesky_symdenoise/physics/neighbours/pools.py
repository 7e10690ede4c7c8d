"""Which rows agree with a frame and with each other: pair tests, and tests of pools, which see more than pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bluesky_symdenoise.physics.fold import (
    BLOCK,
    GATE_Z,
    SPOT_BLOCK,
    SPOT_WINDOW,
    WINDOWS,
    block_sum,
    pair_statistics,
    symmetry_score,
)
from bluesky_symdenoise.physics.frame import Frame

Floats = NDArray[np.float64]
Pool = tuple[Floats, Floats]

#: Scores from which on a few pixels of a row differ from those of the frame or of other rows; and of all rows together
#: from the frame's.
SPOT_Z, OWN_SPOT_Z = 3.5, 2.75
#: Blocks and standard deviation of the window, in pixels, of whole regions; and the logarithm of the ratio of two rates
#: from which on a difference there is one of the scenes. Smaller ones are left to the structure function.
REGION_BLOCK, REGION, REGION_CHANGE = 16, 32.0, 0.03
#: Numbers of nearest distances whose rows, with the borrowing row, are compared with those further away on one side.
NEAR = (1, 2, 4)
#: Least share of a frame's counts where a row must agree with it to be of the same scene.
LEAST_ALIKE = 0.5
#: Skewness of a window's sum of binomial numbers, over (1 - 2 p) / (sigma^2 spread): (4 pi)^1.5 / (12 pi^2) /
#: sqrt(4 pi).
SKEWNESS = 0.1061
#: What keeps a logarithm finite where nothing was measured.
LEAST_PRODUCT = 1e-30
#: Share of the largest exposure below which a pool has none: what is left of differences of sums.
LEAST_POOL = 1e-6


def pool_score(one: Pool, other: Pool, *, sigmas: Sequence[float]) -> Floats:
    """Return how strongly two pools differ, (y, x): the largest standard score of the difference in any window.

    Given each pair's sum, one part of it is binomial. With unequal exposures it is skewed: the score z is replaced by
    z - g (z^2 - 1) / 6 for the window's skewness g (Cornish and Fisher), without which rows would be left out where
    they have a count too many more often than where they have one too few.

    Parameters
    ----------
    one, other
        Counts and exposures of blocks, (y, x).
    sigmas
        Standard deviations of the windows, in blocks.
    """
    (y, n), (z, m) = one, other
    both = (n > 0) & (m > 0)
    share = np.divide(n, n + m, out=np.full(both.shape, 0.5), where=both)
    total = np.where(both, y + z, 0.0)
    difference, variance = np.where(both, y - total * share, 0.0), total * share * (1 - share)
    worst = np.zeros(both.shape)
    for sigma in sigmas:
        squared = ndimage.gaussian_filter(variance, sigma / np.sqrt(2), mode="constant", truncate=3.0)
        spread = np.sqrt(squared / (4 * np.pi * sigma**2))
        known = spread > 1e-12
        scale = np.maximum(spread, 1e-12)
        score = ndimage.gaussian_filter(difference, sigma, mode="constant", truncate=3.0) / scale
        skewness = np.clip(SKEWNESS * (1 - 2 * share) / (sigma**2 * scale), -1, 1)
        score = np.abs(score - skewness / 6 * (score**2 - 1))
        np.maximum(worst, np.where(known, score, 0.0), out=worst)
    return worst


def agreeing_pixels(frame: Frame, row: Frame) -> NDArray[np.bool_]:
    """Return where a row agrees with a frame by itself, (y, x): `symmetry_gate`, with fewer false alarms for spots."""
    difference, variance, _, _ = pair_statistics(frame, row, block=SPOT_BLOCK)
    sigma = SPOT_WINDOW / SPOT_BLOCK
    value = ndimage.gaussian_filter(difference, sigma, mode="constant", truncate=3.0)
    squared = ndimage.gaussian_filter(variance, sigma / np.sqrt(2), mode="constant", truncate=3.0)
    spread = squared / (4 * np.pi * sigma**2)
    spot = ndimage.maximum_filter((value**2 > SPOT_Z**2 * spread) & (spread > 1e-24), size=3, mode="constant")
    fine = _of_pixels(spot, SPOT_BLOCK, frame)
    agreeing = (symmetry_score(frame, row) <= GATE_Z) & ~fine & (row.exposure > 0)
    return np.asarray(agreeing)


def regions_agree(frame: Frame, row: Frame, use: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return where a whole region of a row has the frame's rate, (y, x), by the pixels that are used.

    Scenes that differ little in every place, but everywhere to the same side, are told apart by regions only.
    """
    used = use & (frame.exposure > 0) & (row.exposure > 0)
    images = frame.counts, frame.exposure, row.counts, row.exposure
    y, n, z, m = (block_sum(image * used, REGION_BLOCK) for image in images)
    sigma = REGION / REGION_BLOCK
    around = [ndimage.gaussian_filter(each, sigma, mode="constant", truncate=3.0) for each in (y, n, z, m)]
    one, other = (
        np.log((counts + 0.5) * exposure + LEAST_PRODUCT)
        for counts, exposure in ((around[0], around[3]), (around[2], around[1]))
    )
    change = np.abs(one - other)
    differ = (pool_score((y, n), (z, m), sigmas=(sigma,)) > GATE_Z) & (change > REGION_CHANGE)
    return ~_of_pixels(differ, REGION_BLOCK, frame)


def agreeing_rows(frame: Frame, rows: Sequence[Frame], offsets: Floats) -> NDArray[np.bool_]:
    """Return where each row may lend to a frame, (row, y, x).

    A row must agree with the frame (`agreeing_pixels`, `regions_agree`) and with the pool of the other rows. Where the
    rows before and after the frame differ, those stay that differ less from it. Rows further away on one side must
    agree with the nearest ones and the frame together. Rows that agree with the frame where it has less than half of
    its counts lend nothing.

    Parameters
    ----------
    rows
        Frames with exposures in units of the frame's.
    offsets
        (row, axis) steps from the frame.
    """
    use = np.stack([agreeing_pixels(frame, row) for row in rows])
    use &= np.stack([regions_agree(frame, row, used) for row, used in zip(rows, use, strict=True)])
    side = sides(offsets)
    distance = np.linalg.norm(offsets, axis=1).round(9)
    wide = _Pools(frame, rows, use, BLOCK, WINDOWS, GATE_Z)
    wide.against_others()
    wide.sides(side)
    wide.far(distance, side)
    spots = _Pools(frame, rows, use, SPOT_BLOCK, (SPOT_WINDOW,), SPOT_Z)
    spots.against_others()
    around = ndimage.minimum_filter(spots.stay, size=(1, 3, 3), mode="nearest")
    use &= np.stack([_of_pixels(each, BLOCK, frame) for each in wide.stay])
    use &= np.stack([_of_pixels(each, SPOT_BLOCK, frame) for each in around])
    return np.asarray(use & of_scene(frame, use)[:, None, None])


def agreeing_evidence(frame: Frame, evidence: Frame) -> NDArray[np.bool_]:
    """Return where all rows together agree with a frame's own counts, (y, x); nowhere if they mostly do not."""
    whole = np.ones((1, *frame.counts.shape), bool)
    use = whole[0]
    for block, windows, limit in ((BLOCK, WINDOWS, GATE_Z), (SPOT_BLOCK, (SPOT_WINDOW,), OWN_SPOT_Z)):
        pools = _Pools(frame, [evidence], whole, block, windows, limit)
        stay = pools.apart(pools.own, pools.of(np.array([True]))) <= limit
        if block == SPOT_BLOCK:
            stay = ndimage.minimum_filter(stay, size=3, mode="nearest")
        use = use & _of_pixels(stay, block, frame)
    use = use & regions_agree(frame, evidence, use)
    return np.asarray(use & of_scene(frame, use[None])[0])


def of_scene(frame: Frame, use: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return for each row whether it agrees where the frame has at least `LEAST_ALIKE` of its counts, (row,)."""
    counts = (frame.counts * use).sum(axis=(1, 2))
    return np.asarray(counts >= LEAST_ALIKE * max(frame.counts.sum(), 1e-12))


def sides(offsets: Floats) -> NDArray[np.int64]:
    """Return -1 for rows before the borrowing one, 1 for rows after it, 0 for repeats: the sign of the first step."""
    out = np.zeros(len(offsets), np.int64)
    for axis in range(offsets.shape[1]):
        out = np.where(out == 0, np.sign(offsets[:, axis]).astype(np.int64), out)
    return out


class _Pools:
    """Sums of rows over blocks, and where each of them is still used."""

    def __init__(
        self,
        frame: Frame,
        rows: Sequence[Frame],
        use: NDArray[np.bool_],
        block: int,
        windows: Sequence[float],
        limit: float,
    ) -> None:
        self.own = block_sum(frame.counts, block), block_sum(frame.exposure, block)
        self.counts = np.stack([block_sum(row.counts * used, block) for row, used in zip(rows, use, strict=True)])
        self.exposure = np.stack([block_sum(row.exposure * used, block) for row, used in zip(rows, use, strict=True)])
        self.stay = np.ones(self.counts.shape, bool)
        self.sigmas, self.limit = [window / block for window in windows], limit

    def of(self, chosen: NDArray[np.bool_]) -> Pool:
        """Return counts and exposure of the pool of some rows."""
        kept = self.stay[chosen]
        return (self.counts[chosen] * kept).sum(axis=0), (self.exposure[chosen] * kept).sum(axis=0)

    def apart(self, one: Pool, other: Pool) -> Floats:
        """Return how strongly two pools differ."""
        return pool_score(one, other, sigmas=self.sigmas)

    def against_others(self) -> None:
        """Leave each row out where it differs from the pool of the other rows."""
        if len(self.counts) < 2:
            return
        counts, exposure = self.counts * self.stay, self.exposure * self.stay
        least = LEAST_POOL * exposure.max()
        for index, stay in enumerate(self.stay):
            others = exposure.sum(axis=0) - exposure[index]
            others = np.where(others > least, others, 0.0)
            pool = np.maximum(counts.sum(axis=0) - counts[index], 0), others
            stay &= self.apart((counts[index], exposure[index]), pool) <= self.limit

    def sides(self, side: NDArray[np.int64]) -> None:
        """Where the rows before and after differ, leave out those that differ more from the frame."""
        before, after = side < 0, side > 0
        if not (before.any() and after.any()):
            return
        differ = self.apart(self.of(before), self.of(after)) > self.limit
        away = [self.apart(self.own, self.of(chosen)) for chosen in (before, after)]
        self.stay[before] &= ~(differ & (away[0] > away[1]))
        self.stay[after] &= ~(differ & (away[0] <= away[1]))

    def far(self, distance: Floats, side: NDArray[np.int64]) -> None:
        """Leave out rows further away on one side where they differ from the nearest ones with the frame."""
        steps = np.unique(distance)
        for nearest in NEAR:
            if nearest >= len(steps):
                return
            limit = steps[nearest]
            counts, exposure = self.of(distance < limit)
            near = counts + self.own[0], exposure + self.own[1]
            for which in np.unique(side):
                far = (distance >= limit) & (side == which)
                if far.any():
                    self.stay[far] &= self.apart(near, self.of(far)) <= self.limit


def _of_pixels(blocks: NDArray[np.bool_], block: int, frame: Frame) -> NDArray[np.bool_]:
    """Return values of blocks as those of their pixels."""
    height, width = frame.counts.shape
    return np.asarray(blocks.repeat(block, axis=0).repeat(block, axis=1)[:height, :width])
