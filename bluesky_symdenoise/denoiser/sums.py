"""Correction of the prior's mean from the frame's own sums: boxes and rings add up to the counts measured in them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from bluesky_symdenoise.denoiser.bands import flux_kept
from bluesky_symdenoise.physics.fold import RING_WIDTH

#: Fewest counts, measured or expected, of a window whose sum is corrected.
ENOUGH = 100.0
#: Side of the blocks that boxes are made of, and full widths at half maximum of boxes, in pixels; widest first.
BLOCK, BOXES = 16, (128, 64)
#: Counts that damp the correction of a box, and of a ring.
BOX_DAMPING, RING_DAMPING = 100.0, 30.0
#: Full widths at half maximum of rings in pixels, widest first, and how many times all of them are corrected.
RINGS, ROUNDS = (32, 16, 8, 4, 2), 2
#: Number of times wider a window is from which a ring is told, and square of the sigmas by which it must stand out.
WIDER, STANDS_OUT = 3, 3.0

Values = NDArray[np.float64]


def agreeing(
    counts: Tensor,
    exposure: Tensor,
    own_counts: Tensor,
    own_exposure: Tensor,
    kappa: Tensor,
    mean: Tensor,
    ring: NDArray[np.int64] | None,
) -> Tensor:
    """Return the prior's mean, corrected so that sums of the expected counts agree with sums of the counts.

    In a window (weights h falling linearly to 0) with Y = sum h y measured and X = sum h x expected counts, the prior's
    mean is multiplied by ((Y + k) / (X + k))^s at the window's middle; wide windows come before narrow ones, and those
    of fewer than 100 counts are left out. k is 100 counts for boxes, whose s is 1, and 30 for rings about the beam
    centre. Their s is what the frame shows of a ring there: the larger of 1 - 1/z2 and 1 - 3/c2, or 0. z2 is the mean
    of (Y - X)^2 / sum(h^2 x) nearby, the evidence that sums disagree; c2 that of X log(r / r')^2, the evidence that the
    denoised profile has a ring: its mean rates r in this window and r' in one three times as wide. Where a frame shows
    no ring, its noise is thus not put back. The expected counts of the whole frame stay as they are.

    Parameters
    ----------
    counts, exposure
        (1, 1, y, x), padded with zeros; the sums are those of pixels with exposure.
    own_counts, own_exposure
        What the pixels' own counts add to the prior.
    kappa, mean
        Shape and mean of the prior.
    ring
        (y, x) number of each pixel's ring of half a pixel, from 1, and 0 for none; None where there is no centre.
    """
    expected, change = _expected(exposure, own_counts, own_exposure, kappa, mean)
    total = expected.sum(dtype=torch.float64)
    mean = mean * _of_boxes(counts, expected, change)
    if ring is not None:
        expected, change = _expected(exposure, own_counts, own_exposure, kappa, mean)
        mean = mean * _of_rings(counts, exposure, expected, change, ring)
    return flux_kept(total, exposure, own_counts + kappa, own_exposure, kappa, mean)


def _of_rings(counts: Tensor, exposure: Tensor, expected: Tensor, change: Tensor, ring: NDArray[np.int64]) -> Tensor:
    """Return the factor (1, 1, y, x) that makes rings agree."""
    height, width = ring.shape
    # Count from the innermost ring that the detector has: with the beam far off it, the numbers are large.
    number = np.where(ring > 0, ring - ring[ring > 0].min(initial=np.iinfo(np.int64).max) + 1, 0).ravel()

    def profile(image: Tensor) -> Values:
        sums = np.bincount(number, image[0, 0, :height, :width].cpu().numpy().ravel())
        sums[0] = 0
        return np.asarray(sums, np.float64)

    found = ring_factor(profile(counts), profile(exposure), profile(expected), profile(change))
    found[0] = 1.0
    factor = torch.from_numpy(found.astype(np.float32)[number].reshape(1, 1, height, width)).to(counts.device)
    return F.pad(factor, (0, counts.shape[3] - width, 0, counts.shape[2] - height), value=1.0)


def _expected(
    exposure: Tensor, own_counts: Tensor, own_exposure: Tensor, kappa: Tensor, mean: Tensor
) -> tuple[Tensor, Tensor]:
    """Return expected counts x and their derivative d x / d log(mean)."""
    prior = kappa / mean
    rate = own_exposure + prior
    expected = exposure * (own_counts + kappa) / rate
    return expected, expected * prior / rate


def _of_boxes(counts: Tensor, expected: Tensor, change: Tensor) -> Tensor:
    """Return the factor (1, 1, y, x) that makes boxes agree."""

    def blocks(image: Tensor) -> Values:
        return np.asarray(BLOCK**2 * F.avg_pool2d(image, BLOCK)[0, 0].cpu().numpy(), np.float64)

    measured, predicted = blocks(counts), blocks(expected)
    log, share = np.zeros_like(predicted), _share(blocks(change), predicted)
    for width in BOXES:
        now = predicted * np.exp(share * log)
        y, x = (windowed(image, width / BLOCK) for image in (measured, now))
        log += np.where(np.maximum(y, x) >= ENOUGH, np.log((y + BOX_DAMPING) / (x + BOX_DAMPING)), 0.0)
    small = torch.from_numpy(log.astype(np.float32)).to(counts.device)[None, None]
    return torch.exp(F.interpolate(small, scale_factor=BLOCK, mode="bilinear", align_corners=False))


def ring_factor(measured: Values, exposure: Values, expected: Values, change: Values) -> Values:
    """Return the factor of the prior's mean on each ring.

    Parameters
    ----------
    measured, exposure, expected, change
        Sums over rings of half a pixel: counts, exposure, expected counts and their derivative by log(mean).
    """
    log, share = np.zeros_like(expected), _share(change, expected)
    shown = [_stands_out(expected, exposure, width / RING_WIDTH) for width in RINGS]
    sums = [windowed(measured, width / RING_WIDTH) for width in RINGS]
    for _ in range(ROUNDS):
        for width, ring, y in zip(RINGS, shown, sums, strict=True):
            bins = width / RING_WIDTH
            now = expected * np.exp(share * log)
            x = windowed(now, bins)
            variance = windowed(now, bins, power=2)
            z2 = np.divide((y - x) ** 2, variance, out=np.zeros_like(x), where=variance > 0)
            strength = np.maximum(_certain(_nearby(z2, bins, 2), 1.0), ring)
            damped = np.log((y + RING_DAMPING) / (x + RING_DAMPING))
            log += np.where(np.maximum(y, x) >= ENOUGH, strength * damped, 0.0)
    return np.exp(log)


def _stands_out(expected: Values, exposure: Values, bins: float) -> Values:
    """Return s by the ring that the profile has there, in windows of this width."""
    typical = (expected.sum() + 1.0) / (exposure.sum() + 1.0)
    near, wide = (
        np.log((windowed(expected, each) + 0.5) / (windowed(exposure, each) + 0.5 / typical))
        for each in (bins, WIDER * bins)
    )
    return _certain(_nearby(windowed(expected, bins) * (near - wide) ** 2, bins, 1), STANDS_OUT)


def _certain(evidence: Values, doubt: float) -> Values:
    """Return 1 - doubt / evidence, at least 0."""
    return np.clip(1 - doubt / np.maximum(evidence, doubt), 0, 1)


def _share(change: Values, expected: Values) -> Values:
    """Return d log(expected) / d log(mean): the prior's share in the expected counts."""
    return np.divide(change, expected, out=np.ones_like(expected), where=expected > 0)


def windowed(values: Values, width: float, *, power: int = 1) -> Values:
    """Return sums in windows about each element, along every axis, with weights that fall linearly from 1 to 0.

    Parameters
    ----------
    width
        Full width of the window at half its maximum, in elements.
    power
        Exponent of the weights.
    """
    reach = int(np.ceil(width)) - 1
    weights = (1 - np.abs(np.arange(-reach, reach + 1)) / width) ** power
    for axis in range(values.ndim):
        values = ndimage.convolve1d(values, weights, axis=axis, mode="constant")
    return values


def _nearby(values: Values, bins: float, reach: int) -> Values:
    """Return means over `reach` window widths to either side."""
    size = 2 * reach * int(bins) + 1
    inside = ndimage.uniform_filter1d(np.ones_like(values), size, mode="constant")
    return ndimage.uniform_filter1d(values, size, mode="constant") / inside
