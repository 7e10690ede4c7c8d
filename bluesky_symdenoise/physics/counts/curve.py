"""Photon transfer curve of one frame: how its noise grows with its level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.physics.fold import block_sum

#: Sides of the blocks that noise and level are compared in; the smallest is used of which half have so many pixels that
#: are not 0. Of sparse counts these are the photons, and in other units there are as many.
SIDES, BLOCK_PIXELS = (8, 16, 32), 16
#: Share of a block's second differences that must be measured.
MEASURED = 0.5
#: Blocks of a level, and levels at most.
LEVEL_BLOCKS, LEVELS = 25, 16
#: Median over blocks of (variance / mean) of Poisson counts of one rate, over its mean: blocks are few pixels.
MEDIAN_BIAS = {8: 0.981, 16: 0.995, 32: 0.998}


@dataclass(frozen=True)
class Curve:
    """Noise at each level of a frame, from second differences along rows and columns.

    Attributes
    ----------
    mean
        Mean value of each level, increasing.
    ratio, error
        Variance over mean there, 1 for counts, and its standard error.
    blocks
        Blocks of each level.
    median, median_error
        Ratio of all blocks together.
    """

    mean: NDArray[np.float64]
    ratio: NDArray[np.float64]
    error: NDArray[np.float64]
    blocks: NDArray[np.int64]
    median: float
    median_error: float


def transfer_curve(image: NDArray[Any], mask: NDArray[np.bool_]) -> Curve | None:
    """Return the photon transfer curve of a frame; None if it has too few pixels with a signal.

    The variance of a block is the mean of d^2/6 over second differences d = y[i-1] - 2 y[i] + y[i+1] in rows and
    columns, to which structure that is smooth over three pixels adds little.

    Parameters
    ----------
    image
        (y, x).
    mask
        (y, x), True = bad.
    """
    y, good = np.where(mask, 0, image).astype(np.float64), ~mask
    noise, level, number = (np.zeros(y.shape) for _ in range(3))
    for axis in (0, 1):
        before, here, after = (np.take(y, range(k, y.shape[axis] - 2 + k), axis) for k in range(3))
        fine = np.logical_and.reduce([np.take(good, range(k, y.shape[axis] - 2 + k), axis) for k in range(3)])
        middle = (slice(1, -1), slice(None)) if axis == 0 else (slice(None), slice(1, -1))
        noise[middle] += np.where(fine, (before - 2 * here + after) ** 2 / 6, 0)
        level[middle] += np.where(fine, (before + here + after) / 3, 0)
        number[middle] += fine
    for side in SIDES:
        sums = [block_sum(part, side).ravel() for part in (noise, level, number, y != 0)]
        full = sums[2] >= MEASURED * 2 * side**2
        variance, mean = (part[full] / sums[2][full] for part in sums[:2])
        bright = (sums[3][full] >= BLOCK_PIXELS) & (mean > 0)
        if np.count_nonzero(bright) >= 0.5 * len(mean) or side == SIDES[-1]:
            return _levels(variance[bright], mean[bright], MEDIAN_BIAS[side])
    return None


def _levels(variance: NDArray[np.float64], mean: NDArray[np.float64], bias: float) -> Curve | None:
    if len(mean) < LEVEL_BLOCKS:
        return None
    order = np.argsort(mean, kind="stable")
    ratio = (variance / mean)[order] / bias
    parts = np.array_split(np.arange(len(order)), min(LEVELS, len(order) // LEVEL_BLOCKS))
    spread = [1.4826 * np.median(np.abs(ratio[part] - np.median(ratio[part]))) for part in parts]
    centre = np.median(ratio)
    whole = 1.4826 * float(np.median(np.abs(ratio - centre)))
    return Curve(
        mean=np.array([mean[order][part].mean() for part in parts]),
        ratio=np.array([np.median(ratio[part]) for part in parts]),
        error=np.array([1.2533 * s / np.sqrt(len(part)) for s, part in zip(spread, parts, strict=True)]),
        blocks=np.array([len(part) for part in parts]),
        median=float(centre),
        median_error=1.2533 * whole / np.sqrt(len(ratio)),
    )
