"""Photon transfer curve of one frame: how its noise grows with its level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
#: The same for the finest differences, which are fewer and depend on each other.
FINE_BIAS = {8: 0.958, 16: 0.988, 32: 0.997}
#: Pixels that the differences of `wide_curve` are apart.
WIDE = 4

#: Offsets (y, x) of the pixels of a difference, and their weights.
Kernel = list[tuple[int, int, float]]


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
    return _curve(image, mask, [_line(0, 1), _line(1, 1)], MEDIAN_BIAS)


def fine_curve(image: NDArray[Any], mask: NDArray[np.bool_]) -> Curve | None:
    """Return the curve of the finest differences: second ones along rows of second ones along columns, d^2/36.

    Structure adds less to it than to `transfer_curve`; the noise of counts is the same, and that of frames whose pixels
    share their noise with their neighbours is less.
    """
    kernel = [(y, x, -2 * weight if y == 0 else weight) for _, x, weight in _line(1, 1) for y in (-1, 0, 1)]
    return _curve(image, mask, [kernel], FINE_BIAS)


def wide_curve(image: NDArray[Any], mask: NDArray[np.bool_]) -> Curve | None:
    """Return the curve of differences over `WIDE` pixels, which do not share their noise. Structure adds much to it."""
    return _curve(image, mask, [_line(0, WIDE), _line(1, WIDE)], MEDIAN_BIAS)


def _line(axis: int, stride: int) -> Kernel:
    steps = ((-stride, 1.0), (0, -2.0), (stride, 1.0))
    return [(step, 0, weight) if axis == 0 else (0, step, weight) for step, weight in steps]


def _curve(
    image: NDArray[Any], mask: NDArray[np.bool_], kernels: Sequence[Kernel], bias: Mapping[int, float]
) -> Curve | None:
    y, good = np.where(mask, 0, image).astype(np.float64), ~mask
    noise, level, number = (np.zeros(y.shape) for _ in range(3))
    for kernel in kernels:
        reach = [max(abs(each[axis]) for each in kernel) for axis in (0, 1)]
        middle = tuple(slice(r, size - r) for r, size in zip(reach, y.shape, strict=True))
        shape = noise[middle].shape
        if not all(shape):
            return None
        difference, mean, fine = np.zeros(shape), np.zeros(shape), np.ones(shape, bool)
        for dy, dx, weight in kernel:
            there = (slice(reach[0] + dy, reach[0] + dy + shape[0]), slice(reach[1] + dx, reach[1] + dx + shape[1]))
            difference += weight * y[there]
            mean += y[there]
            fine &= good[there]
        power = sum(weight**2 for _, _, weight in kernel)
        noise[middle] += np.where(fine, difference**2 / power, 0)
        level[middle] += np.where(fine, mean / len(kernel), 0)
        number[middle] += fine
    for side in SIDES:
        sums = [block_sum(part, side).ravel() for part in (noise, level, number, y != 0)]
        full = sums[2] >= MEASURED * len(kernels) * side**2
        variance, mean = (part[full] / sums[2][full] for part in sums[:2])
        bright = (sums[3][full] >= BLOCK_PIXELS) & (mean > 0)
        if np.count_nonzero(bright) >= 0.5 * len(mean) or side == SIDES[-1]:
            return _levels(variance[bright], mean[bright], bias[side])
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
