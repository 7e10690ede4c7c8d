"""Correction of the prior's mean from the frame's own sums: boxes and rings add up to the counts measured in them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from bluesky_symdenoise.physics.fold import RING_WIDTH

#: Fewest counts, measured or expected, of a window whose sum is corrected.
ENOUGH = 100.0
#: Side of the blocks that boxes are made of, and full widths at half maximum of boxes, in pixels; widest first.
BLOCK, BOXES = 16, (128, 64)
#: Counts that damp the correction of a box, and of a ring.
BOX_DAMPING, RING_DAMPING = 100.0, 30.0
#: Full widths at half maximum of rings in pixels, widest first, and how many times all of them are corrected.
RINGS, ROUNDS = (32, 16, 8, 4, 2), 2
#: Largest inverse of the prior's share in the frame's total for which the total is restored.
SHARES = 10.0
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

    A window has weights h that fall linearly to 0, Y = sum h y measured counts and X = sum h x expected counts. At its
    middle, the prior's mean is multiplied by ((Y + k) / (X + k))^s. Wide windows come first; windows of fewer than 100
    counts are left out.

    - Boxes: k = 100 counts and s = 1.
    - Rings about the beam centre: k = 30 counts, and s is what the frame shows of a ring there, the larger of 1 - 1/z2
      and 1 - 3/c2, at least 0. z2, the evidence that the sums disagree, is the mean of (Y - X)^2 / (2 X / 3) nearby.
      c2, the evidence that the denoised profile has a ring, is that of X log(r / r')^2, with the mean rate r in this
      window and r' in one three times as wide. Where a frame shows no ring, noise is not put back.

    The expected counts of the whole frame stay as they are.

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
    known = exposure, own_counts, own_exposure, kappa
    expected, change = _expected(*known, mean)
    total = expected.sum(dtype=torch.float64)
    mean = mean * _of_boxes(counts, expected, change)
    if ring is not None:
        expected, change = _expected(*known, mean)
        mean = mean * _of_rings(counts, exposure, expected, change, ring)
    expected, change = (each.sum(dtype=torch.float64) for each in _expected(*known, mean))
    # A frame whose prior has no weight cannot be changed by it.
    return mean * ((total / expected) ** (expected / change).clamp(max=SHARES)).float()


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
        y, x = (windowed(windowed(image, width / BLOCK), width / BLOCK, 0) for image in (measured, now))
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
    profiles = np.stack([measured, exposure, expected])
    sums = [windowed(profiles, width / RING_WIDTH) for width in RINGS]
    shown = [
        _stands_out(near[1:], windowed(profiles[1:], WIDER * width / RING_WIDTH), width / RING_WIDTH)
        for width, near in zip(RINGS, sums, strict=True)
    ]
    for _ in range(ROUNDS):
        for width, (y, _, _), ring in zip(RINGS, sums, shown, strict=True):
            bins = width / RING_WIDTH
            x = windowed(expected * np.exp(share * log), bins)
            # The sum of h^2 x is two thirds of that of h x where x is even.
            z2 = np.divide(1.5 * (y - x) ** 2, x, out=np.zeros_like(x), where=x > 0)
            strength = np.maximum(_certain(_nearby(z2, bins, 2), 1.0), ring)
            damped = np.log((y + RING_DAMPING) / (x + RING_DAMPING))
            log += np.where(np.maximum(y, x) >= ENOUGH, strength * damped, 0.0)
    return np.exp(log)


def _stands_out(near: Values, wide: Values, bins: float) -> Values:
    """Return s by the ring that the profile has there, from sums (exposure, expected) in windows and in wider ones."""
    typical = (wide[1].sum() + 1.0) / (wide[0].sum() + 1.0)
    here, around = (np.log((expected + 0.5) / (exposure + 0.5 / typical)) for exposure, expected in (near, wide))
    return _certain(_nearby(near[1] * (here - around) ** 2, bins, 1), STANDS_OUT)


def _certain(evidence: Values, doubt: float) -> Values:
    """Return 1 - doubt / evidence, at least 0."""
    return np.clip(1 - doubt / np.maximum(evidence, doubt), 0, 1)


def _share(change: Values, expected: Values) -> Values:
    """Return d log(expected) / d log(mean): the prior's share in the expected counts."""
    return np.divide(change, expected, out=np.ones_like(expected), where=expected > 0)


def windowed(values: Values, width: float, axis: int = -1) -> Values:
    """Return sums in windows about each element, along an axis, with weights that fall linearly from 1 to 0.

    Parameters
    ----------
    width
        Full width of the window at half its maximum, in elements; it is rounded.
    """
    size, values = round(width), np.moveaxis(values, axis, -1)
    length = values.shape[-1]
    sums = np.zeros((*values.shape[:-1], length + 2 * size))
    sums[..., size : size + length] = values
    # The running mean of a running mean; if their width is even, they are half an element off, to either side.
    for origin in (0, size % 2 - 1):
        sums = ndimage.uniform_filter1d(sums, size, mode="constant", origin=origin)
    return np.moveaxis(size * sums[..., size : size + length], -1, axis)


def _nearby(values: Values, bins: float, reach: int) -> Values:
    """Return means over `reach` window widths to either side."""
    size = 2 * reach * int(bins) + 1
    inside = ndimage.uniform_filter1d(np.ones_like(values), size, mode="constant")
    return ndimage.uniform_filter1d(values, size, mode="constant") / inside
