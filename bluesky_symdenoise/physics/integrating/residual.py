"""Noise of detector frames in blocks of pixels: from differences of frames, of symmetry mates, or of neighbours."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bluesky_symdenoise.physics.fold import block_sum
from bluesky_symdenoise.physics.integrating.blur import Differences
from bluesky_symdenoise.physics.mates import Operation, first_of_pair, mate

Image = NDArray[np.float64]
Mask = NDArray[np.bool_]

#: Sums along a side of the blocks in which signal and noise are compared, by binning.
GROUPED = {1: 8, 2: 8, 4: 4, 8: 3, 32: 1}
#: Share of a block of pixels, and of second differences in a block of sums, that must be measured.
MEASURED = 0.75
#: How many second differences are worth one independent value: those along rows and columns, and mixed ones.
WORTH = {"along": 2.94, "mixed": 3.78}
#: Groups of blocks that are left out in turn to find standard errors, along each side, and their size in pixels.
GROUPS, CELL = 4, 32
#: Variance of a squared median deviation of n neighbouring differences, times n.
MEDIAN_WORTH = 8.0
#: Standard deviations by which a pixel is above or below those around it if it is hot or dead.
HOT_Z, DEAD_Z = 8.0, 3.5
#: Side of the blocks by which two frames are scaled to each other.
SCALED = 16


@dataclass(frozen=True)
class Residual:
    """Noise of one frame, and what it should depend on; all (y, x).

    Attributes
    ----------
    noise
        Values whose standard deviation is that of one frame's pixel; of a single frame, the frame itself.
    level
        Signal above the offset.
    good
        Pixels that were measured.
    differences
        ``along`` rows and columns, or ``mixed`` where structure of the frame is left.
    common
        How much of the variance that all frames share, as the noise of a dark that was subtracted from each, is in that
        of the noise.
    """

    noise: Image
    level: Image
    good: Mask
    differences: Differences
    common: float = 0.0


@dataclass(frozen=True)
class Blocks:
    """Noise in blocks of pixels.

    Attributes
    ----------
    level, around
        Signal above the offset in a block, and in the blocks around it.
    variance
        Variance of a sum over pixels, divided by their number.
    number
        Independent values that the variance is worth.
    group
        Number of the group that is left out together with this block.
    """

    level: Image
    around: Image
    variance: Image
    number: Image
    group: NDArray[np.int64]

    def chosen(self, which: Mask) -> Blocks:
        """Return some of the blocks."""
        return Blocks(*(getattr(self, name)[which] for name in ("level", "around", "variance", "number", "group")))

    @staticmethod
    def together(several: list[Blocks]) -> Blocks:
        """Return all blocks of several."""
        names = ("level", "around", "variance", "number", "group")
        return Blocks(*(np.concatenate([getattr(each, name) for each in several]) for name in names))


def of_two_frames(first: Image, second: Image, good: Mask) -> Residual:
    """Return the residual of two frames of one scene whose intensity and dark may have changed.

    With the line second -> scale second + shift that fits the first frame best, (a - scale b - shift) over
    sqrt(1 + scale^2) has the variance of a frame of level (a + scale^2 b)/(1 + scale^2). Of what both share,
    (1 - scale)^2/(1 + scale^2) is left.
    """
    scale, shift = _scaled(first, second, good)
    whole = 1 + scale**2
    noise = np.where(good, first - scale * second - shift, 0.0) / np.sqrt(whole)
    level = np.where(good, first + scale**2 * second, 0.0) / whole
    return Residual(noise, level, good, "along", common=(1 - scale) ** 2 / whole)


def of_mates(frame: Image, good: Mask, operation: Operation, center: tuple[float, float]) -> Residual:
    """Return the residual of the pairs of pixels that an operation maps onto each other."""
    pair = first_of_pair(frame.shape, operation, center) & good & mate(good, operation, center)
    signal = np.where(good, frame, 0.0)
    other = mate(signal, operation, center)
    noise, level = np.where(pair, signal - other, 0.0) / np.sqrt(2), np.where(pair, signal + other, 0.0) / 2
    return Residual(noise, level, pair, "along")


def of_one_frame(frame: Image, good: Mask) -> Residual:
    """Return the residual of one frame, structure and all."""
    signal = np.where(good, frame, 0.0)
    return Residual(signal, signal, good, "mixed")


def without_lone_pixels(residual: Residual, *, gain: float, constant: float) -> Residual:
    """Return the residual of one frame without pixels far off those around them, which are hot or dead.

    Parameters
    ----------
    gain, constant
        Line through the noise of the residual, by which far is measured.
    """
    level = ndimage.median_filter(residual.level, 3)
    deviation = np.sqrt(np.maximum(gain * level + constant, 1e-12))
    off = (residual.level - level) / deviation
    # Photons have a long tail upward, and none downward.
    return replace(residual, good=residual.good & (off < HOT_Z) & (off > -DEAD_Z))


def in_blocks(residual: Residual, binning: int, *, shared: float = 0.0) -> Blocks:
    """Return the noise of sums over `binning` x `binning` pixels, in blocks of such sums.

    Second differences of neighbouring sums see nothing of what changes linearly across them, such as a dark that
    drifted.

    Parameters
    ----------
    shared
        Variance of a pixel that all frames share. As it is that of independent pixels, it is the same at any binning.
    """
    side = GROUPED[binning]
    number = block_sum(residual.good.astype(np.float64), binning)
    # Of a frame itself, sums over fewer pixels would differ by more than noise.
    share = 1.0 if residual.differences == "mixed" else MEASURED
    full = number >= share * binning**2
    safe = np.maximum(number, 1)
    noise = np.where(full, block_sum(np.where(residual.good, residual.noise, 0.0), binning) / np.sqrt(safe), 0.0)
    level = np.where(full, block_sum(np.where(residual.good, residual.level, 0.0), binning) / safe, 0.0)
    squares, seen = _squares(noise, full, residual.differences)
    total, values, levels, pixels = (block_sum(part, side) for part in (squares, seen, level, full.astype(float)))
    possible = (1 if residual.differences == "mixed" else 2) * side**2
    used = (values >= MEASURED * possible) & (pixels > 0)
    mean = np.divide(levels, pixels, out=np.zeros_like(levels), where=pixels > 0)
    around = _around(levels, pixels, mean)
    width = binning * side
    y, x = (np.arange(n) * width // CELL % GROUPS for n in mean.shape)
    group = np.broadcast_to(y[:, None] * GROUPS + x, mean.shape)
    worth = values / WORTH[residual.differences]
    variance = total[used] / values[used] - shared * residual.common
    return Blocks(mean[used], around[used], variance, worth[used], np.asarray(group[used], dtype=np.int64))


def shared_noise(residual: Residual, axis: int) -> tuple[float, float]:
    """Return the variance that all pixels of a row (axis 1) or column (0) share, and its standard error.

    The means of neighbouring rows differ by more than the noise of their pixels says.
    """
    number = residual.good.sum(axis=axis)
    lines = number >= MEASURED * residual.good.shape[axis]
    values = np.where(residual.good, residual.noise, 0.0)
    mean = values.sum(axis=axis) / np.maximum(number, 1)
    square = (values**2).sum(axis=axis) / np.maximum(number, 1) - mean**2
    own = square / np.maximum(number, 1)
    both = lines[:-1] & lines[1:] & (own[:-1] + own[1:] > 0)
    if np.count_nonzero(both) < GROUPS**2:
        return 0.0, np.inf
    step, expected = np.diff(mean)[both], (own[:-1] + own[1:])[both]
    # The median is not moved by the few rows that something else changed.
    score = (1.4826 * float(np.median(np.abs(step) / np.sqrt(expected)))) ** 2
    typical = float(np.median(expected)) / 2
    return (score - 1) * typical, score * typical * np.sqrt(MEDIAN_WORTH / len(step))


def _squares(noise: Image, full: Mask, differences: Differences) -> tuple[Image, Image]:
    """Return the mean square that second differences have, in units of the variance, and how many there are."""
    if differences == "mixed":
        rows, there = _second(noise, full, 0)
        both, there = _second(rows, there, 1)
        return np.where(there, both**2 / 36, 0.0), there.astype(np.float64)
    squares, seen = np.zeros(noise.shape), np.zeros(noise.shape)
    for axis in (0, 1):
        second, there = _second(noise, full, axis)
        squares += np.where(there, second**2 / 6, 0.0)
        seen += there
    return squares, seen


def _second(values: Image, full: Mask, axis: int) -> tuple[Image, Mask]:
    """Return second differences along an axis at their middle, and where all three values are measured."""
    out, there = np.zeros(values.shape), np.zeros(values.shape, bool)
    if values.shape[axis] < 3:
        return out, there
    v, f = np.moveaxis(values, axis, 0), np.moveaxis(full, axis, 0)
    np.moveaxis(out, axis, 0)[1:-1] = v[:-2] - 2 * v[1:-1] + v[2:]
    np.moveaxis(there, axis, 0)[1:-1] = f[:-2] & f[1:-1] & f[2:]
    return out, there


def _around(levels: Image, pixels: Image, mean: Image) -> Image:
    """Return the mean level of the eight blocks around each, or its own where there is none."""
    window = np.ones((3, 3))
    window[1, 1] = 0
    total, number = (ndimage.convolve(part, window, mode="constant") for part in (levels, pixels))
    return np.where(number > 0, total / np.maximum(number, 1), mean)


def _scaled(first: Image, second: Image, good: Mask) -> tuple[float, float]:
    """Return scale and shift of the second frame, by which it fits the first."""
    number = block_sum(good.astype(np.float64), SCALED)
    full = number >= MEASURED * SCALED**2
    a, b = (block_sum(np.where(good, image, 0.0), SCALED)[full] / number[full] for image in (first, second))
    scale, shift = 1.0, float(np.median(a - b)) if a.size else 0.0
    keep = np.ones(a.shape, bool)
    for _ in range(5):
        if np.count_nonzero(keep) < 3 or np.ptp(b[keep]) <= 0:
            break
        # Both have noise: take the line in the middle between those of either on the other.
        da, db = a[keep] - a[keep].mean(), b[keep] - b[keep].mean()
        product = float((da * db).sum())
        if product <= 0.5 * np.sqrt(float((da**2).sum()) * float((db**2).sum())):
            # The brightness is the same everywhere but for noise: a shift is enough.
            scale = 1.0
        else:
            scale = float(np.sqrt((da**2).sum() / (db**2).sum()))
        rest = a - scale * b
        shift = float(np.median(rest[keep]))
        spread = 1.4826 * np.median(np.abs(rest[keep] - shift))
        keep = np.abs(rest - shift) <= 5 * spread
    return scale, shift
