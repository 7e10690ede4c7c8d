"""Gain and read noise of an integrating detector, from its frames."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.fold import block_sum
from bluesky_symdenoise.physics.frame import as_mask, sentinel_mask
from bluesky_symdenoise.physics.integrating.readout import Readout
from bluesky_symdenoise.physics.mates import first_of_pair, mate
from bluesky_symdenoise.physics.symmetry import Symmetry

#: Side, in pixels, of the blocks in which signal and noise are compared, and fewest pairs in a block.
BLOCK, FEWEST_PAIRS = 8, 16
#: Fewest blocks from which a gain is determined.
FEWEST_BLOCKS = 50
#: Blocks whose noise is further from the fitted line, in standard deviations, are taken as not symmetric.
OUTLIER_Z = 4.0


def found_readout(
    frames: Iterable[NDArray[Any]], symmetry: Symmetry, *, mask: ArrayLike | None = None, dark: ArrayLike = 0.0
) -> Readout:
    """Return gain and read noise from symmetry pairs: a photon-transfer curve that needs one frame.

    For a pair of equal rates, Var(a - b) = gain (a + b) + 2 read_noise^2. Neighbouring pairs are subtracted from each
    other, so that smooth differences cancel; blocks whose noise is off the line do not have the symmetry. Smoothing
    in the detector or its software makes neighbours alike and the gain too small.

    Parameters
    ----------
    frames
        (y, x) each, dark-subtracted and not cut at zero, or with the dark given.
    symmetry
        A group with a centre.
    mask
        (y, x), True = bad.
    dark
        (y, x) mean of dark frames, or a number.

    Raises
    ------
    SymDenoiseError
        If there is no symmetry, or there are too few pairs of unequal brightness to find a gain.
    """
    center = symmetry.grid_center
    if center is None or not symmetry.operations:
        raise SymDenoiseError(
            f"symmetry {symmetry.point_group}",
            rule="noise is estimated from pairs of mates",
            remedy="give a group and its centre",
        )
    blocks = [
        block
        for frame in frames
        for operation in symmetry.operations
        for block in _transfer(np.asarray(frame), operation, center, mask, dark)
    ]
    mean, variance, number = (
        (np.array(column) for column in zip(*blocks, strict=True)) if blocks else (np.empty(0),) * 3
    )
    good = np.ones(mean.shape, bool)
    gain = noise = 0.0
    for step in range(20):
        if good.sum() < FEWEST_BLOCKS or np.ptp(mean[good]) <= 0:
            break
        # The first fit weights all blocks equally; the next ones use the variances that the fitted line predicts.
        expected = np.ones(mean.shape) if step == 0 else np.maximum(gain * mean + noise, 1e-3 * variance[good].mean())
        weight = np.sqrt(number / 2) / expected
        design = np.stack([mean, np.ones(mean.shape)], axis=1) * weight[:, None]
        gain, noise = (float(v) for v in np.linalg.lstsq(design[good], (variance * weight)[good], rcond=None)[0])
        if step > 0:
            good = np.abs(variance - gain * mean - noise) * weight < OUTLIER_Z
    if good.sum() < FEWEST_BLOCKS or gain <= 0:
        raise SymDenoiseError(
            f"{int(good.sum())} blocks of pairs, slope {gain:.3g}",
            rule=f"a gain needs {FEWEST_BLOCKS} blocks whose noise grows with their signal",
            remedy="check symmetry and centre, take more frames, or give gain and read noise",
        )
    return Readout(gain=gain, read_noise=float(np.sqrt(max(noise, 0.0) / 2)))


def _transfer(
    frame: NDArray[Any], operation: Any, center: tuple[float, float], mask: ArrayLike | None, dark: ArrayLike
) -> list[tuple[float, float, float]]:
    """Return, for each block, the mean of a + b, the variance of a - b, and the number of pairs."""
    shape = (frame.shape[0], frame.shape[1])
    bad = as_mask(mask, shape) | (~np.isfinite(frame) if frame.dtype.kind == "f" else sentinel_mask(frame))
    signal = np.where(bad, 0.0, frame.astype(np.float64) - np.asarray(dark, np.float64))
    pair = first_of_pair(shape, operation, center) & ~bad & mate(~bad, operation, center)
    other = mate(signal, operation, center)
    both = pair[:, 1:] & pair[:, :-1]
    # Pair each value with its neighbour, so that no value is in two pairs.
    both[:, 1::2] = False
    difference, total = signal - other, signal + other
    beside = (difference[:, 1:] - difference[:, :-1]) ** 2 / 2
    around = (total[:, 1:] + total[:, :-1]) / 2
    number, noise, level = (block_sum(np.where(both, v, 0.0), BLOCK) for v in (np.ones(both.shape), beside, around))
    full = number >= FEWEST_PAIRS
    return list(
        zip(
            (level[full] / number[full]).tolist(),
            (noise[full] / number[full]).tolist(),
            number[full].tolist(),
            strict=True,
        )
    )
