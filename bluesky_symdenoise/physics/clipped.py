"""Test whether a frame was dark-subtracted and cut at zero: its values are then no counts, and zeros hide the rest."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.frame import frames_of, sentinel_mask

#: Side of the blocks by whose mean pixels are sorted into classes of similar rate.
BLOCK = 8
#: Limits of the classes, in counts per pixel.
CLASSES = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)
#: For Poisson counts of one rate, 2 N0 N2 = N1^2; a spread of rates within a class raises the ratio a little.
RATIO = 2.0
#: A class counts as evidence if its ratio exceeds the limit by this many standard deviations.
EVIDENCE_Z = 6.0
#: Share of values between 0 and 1/2 among the positive ones that counts, flat-fielded or not, never reach.
SMALL_SHARE = 0.01


def zero_excess(counts: NDArray[Any], mask: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the ratio 2 N0 N2 / N1^2 of numbers of pixels with 0, 1 and 2 counts, and how far it is above the limit.

    It is 1 for Poisson counts of any one rate. A frame that was cut at zero has all lower values in N0. The result is
    the median over classes of blocks of similar mean that have enough pixels.

    Parameters
    ----------
    counts
        (y, x).
    mask
        (y, x), True = bad.

    Returns
    -------
    tuple of float
        Ratio, and standard scores above `RATIO`; (nan, -inf) where no class has enough pixels.
    """
    height, width = (size // BLOCK * BLOCK for size in counts.shape)
    if not height or not width:
        return float("nan"), float("-inf")

    def blocks(image: NDArray[Any]) -> NDArray[Any]:
        parts = image[:height, :width].reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK)
        return parts.swapaxes(1, 2).reshape(-1, BLOCK * BLOCK)

    values, good = blocks(np.where(mask, 0, counts).astype(np.float32)), blocks(~mask)
    number = good.sum(axis=1)
    mean = values.sum(axis=1) / np.maximum(number, 1)
    # Leave out blocks with an edge or a peak: the two halves of a block must agree within their noise.
    half = values.shape[1] // 2
    full = number == BLOCK * BLOCK
    smooth = np.abs(values[:, :half].sum(axis=1) - values[:, half:].sum(axis=1)) < 3 * np.sqrt(values.sum(axis=1) + 1)
    scores = []
    for low, high in pairwise(CLASSES):
        held = values[full & smooth & (mean >= low) & (mean < high)]
        zeros = np.count_nonzero(held == 0)
        ones = np.count_nonzero((held > 0) & (held < 1.5))
        twos = np.count_nonzero((held >= 1.5) & (held < 2.5))
        if min(zeros, ones, twos) < 25:
            continue
        log = np.log(2 * zeros * twos / ones**2)
        error = np.sqrt(1 / zeros + 4 / ones + 1 / twos)
        scores.append((float(np.exp(log)), float((log - np.log(RATIO)) / error)))
    if not scores:
        return float("nan"), float("-inf")
    ratios, above = np.median(np.array(scores), axis=0)
    return float(ratios), float(above)


def refuse_clipped(counts: NDArray[Any], mask: NDArray[np.bool_]) -> None:
    """Check that a frame holds counts and not what is left after a dark was subtracted and cut at zero.

    Simulated at 256 x 256 pixels: no alarm in 300 counting frames; fractional darks of 0.3 counts and more are always
    seen, whole ones always from 5 counts on, mostly at 2, and not below 1, where they leave most counts as they were.

    Parameters
    ----------
    counts
        (y, x).
    mask
        (y, x), True = bad: also set where there is no count.

    Raises
    ------
    SymDenoiseError
        If values between 0 and 1/2 are among them, or there are far more zeros than counts can have.
    """
    remedy = "give the frames as the detector wrote them, and the dark by itself"
    if counts.dtype.kind == "f":
        positive = counts[~mask & (counts > 0)]
        if positive.size and np.mean(positive < 0.5) > SMALL_SHARE:
            raise SymDenoiseError(
                f"frame with values down to {positive.min():.3g}",
                rule="counts are whole numbers; this frame looks dark-subtracted and cut at zero",
                remedy=remedy,
            )
    ratio, above = zero_excess(counts, mask)
    if above > EVIDENCE_Z:
        raise SymDenoiseError(
            f"frame with {ratio:.3g} times as many zeros as counts have",
            rule="it looks dark-subtracted and cut at zero",
            remedy=remedy,
        )


def refuse_clipped_image(image: NDArray[Any], mask: NDArray[np.bool_] | None) -> None:
    """Apply `refuse_clipped` to each frame of an image (..., y, x); wrong mask shapes are refused elsewhere."""
    for frame, bad in frames_of(image, mask):
        refuse_clipped(frame, sentinel_mask(frame) | bad)
