"""Peers: the methods that a user would reach for instead, on the same counts and mask."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from scipy import ndimage

from bluesky_symdenoise.bench.metrics import FloatArray, Mask
from bluesky_symdenoise.errors import SymDenoiseError

Peer = Callable[[FloatArray, Mask], FloatArray]


def raw(counts: FloatArray, mask: Mask) -> FloatArray:
    """Give the counts themselves, NaN where masked."""
    return np.where(mask, np.nan, counts)


def gaussian(counts: FloatArray, mask: Mask, *, sigma: float) -> FloatArray:
    """Give the local mean under a Gaussian window, over valid pixels only.

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


def nlm(counts: FloatArray, mask: Mask, *, h: float = 0.8, patch_size: int = 7, patch_distance: int = 11) -> FloatArray:
    """Give non-local means on the Anscombe-transformed frame, returned by the exact unbiased inverse.

    Parameters
    ----------
    counts
        Frame (y, x). Masked pixels are filled with the local mean before.
    mask
        True for bad pixels.
    h
        Cut-off of the patch distance in units of the noise, which is 1 after the transform.
    patch_size, patch_distance
        Pixels, as in `skimage.restoration.denoise_nl_means`. The defaults are the best compromise of twelve
        settings tried on crops of the test images at 0.1 to 10 counts per pixel, which favours this peer.

    Raises
    ------
    SymDenoiseError
        If scikit-image is not installed.
    """
    try:
        from skimage.restoration import denoise_nl_means
    except ImportError as error:
        raise SymDenoiseError(
            "peer 'nlm'", rule="needs scikit-image", remedy="pip install 'bluesky-symdenoise[bench]'"
        ) from error
    stabilised = anscombe(_filled(counts, mask))
    smooth = denoise_nl_means(
        stabilised, patch_size=patch_size, patch_distance=patch_distance, h=h, sigma=1.0, fast_mode=True
    )
    return unbiased_inverse_anscombe(smooth)


def anscombe(counts: FloatArray) -> FloatArray:
    """Give 2 sqrt(y + 3/8), whose noise is about 1 for Poisson counts of 4 and more."""
    return np.asarray(2 * np.sqrt(counts + 3 / 8))


def unbiased_inverse_anscombe(stabilised: FloatArray) -> FloatArray:
    """Give the mean counts whose Anscombe transform has this expectation.

    D^2/4 + sqrt(3/2)/(4 D) - 11/(8 D^2) + 5 sqrt(3/2)/(8 D^3) - 1/8, the closed form of Makitalo and Foi,
    IEEE Trans. Image Process. 20, 2697 (2011); zero below the transform of zero counts.
    """
    d = np.maximum(stabilised, anscombe(np.zeros(())))
    root = np.sqrt(3 / 2)
    mean = d**2 / 4 + root / (4 * d) - 11 / (8 * d**2) + 5 * root / (8 * d**3) - 1 / 8
    return np.asarray(np.maximum(mean, 0.0))


def _filled(counts: FloatArray, mask: Mask) -> FloatArray:
    """Fill masked pixels with the mean of the valid ones nearby, or of all of them amid wide gaps."""
    filled = np.where(mask, np.nan, counts)
    for sigma in (1.0, 4.0, 16.0):
        if not np.isnan(filled).any():
            return filled
        filled = np.where(np.isnan(filled), gaussian(counts, mask, sigma=sigma), filled)
    return np.where(np.isnan(filled), counts[~mask].mean(), filled)


PEERS: dict[str, Peer] = {
    "raw": raw,
    "gaussian_1": partial(gaussian, sigma=1.0),
    "gaussian_2": partial(gaussian, sigma=2.0),
    "nlm": nlm,
}
"""Name -> (counts, mask) -> estimate of the expected counts per pixel; all of (y, x), mask True = bad."""
