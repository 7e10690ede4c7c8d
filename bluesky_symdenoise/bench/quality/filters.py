"""Local means: the raw frame, Gaussian windows and rebinning."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from bluesky_symdenoise.bench.quality.metrics import FloatArray, Mask
from bluesky_symdenoise.physics.fold import block_sum


def raw(counts: FloatArray, mask: Mask) -> FloatArray:
    """Return the counts themselves, NaN where masked."""
    return np.where(mask, np.nan, counts)


def gaussian(counts: FloatArray, mask: Mask, *, sigma: float) -> FloatArray:
    """Return the local mean under a Gaussian window, over valid pixels only.

    (G * counts) / (G * valid): the normalised convolution, with nothing beyond the edge. NaN further than
    4 sigma from any valid pixel.

    Parameters
    ----------
    counts
        Frame (y, x). Values of masked pixels are never read.
    mask
        True for bad pixels.
    sigma
        Width of the window in pixels.
    """
    total = ndimage.gaussian_filter(np.where(mask, 0.0, counts), sigma, mode="constant")
    weight = ndimage.gaussian_filter((~mask).astype(np.float64), sigma, mode="constant")
    return np.asarray(np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0))


def rebinned(counts: FloatArray, mask: Mask, *, side: int) -> FloatArray:
    """Return the mean of the valid pixels of each block of ``side`` x ``side``, at every pixel.

    NaN in blocks without any. Blocks start at the first pixel; those at the far edges are smaller where ``side`` does
    not divide the frame.
    """
    total, valid = (block_sum(image, side) for image in (np.where(mask, 0.0, counts), (~mask).astype(np.float64)))
    mean = np.divide(total, valid, out=np.full_like(total, np.nan), where=valid > 0)
    return mean.repeat(side, axis=0).repeat(side, axis=1)[: counts.shape[0], : counts.shape[1]]


def filled(counts: FloatArray, mask: Mask) -> FloatArray:
    """Fill masked pixels with the mean of the valid ones nearby, or of all of them amid wide gaps."""
    whole = np.where(mask, np.nan, counts)
    for sigma in (1.0, 4.0, 16.0):
        if not np.isnan(whole).any():
            return whole
        whole = np.where(np.isnan(whole), gaussian(counts, mask, sigma=sigma), whole)
    return np.where(np.isnan(whole), counts[~mask].mean(), whole)
