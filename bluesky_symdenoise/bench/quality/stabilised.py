"""Peers for noise of constant width: applied to the Anscombe transform, followed by its exact unbiased inverse."""

from __future__ import annotations

import numpy as np

from bluesky_symdenoise.bench.quality.filters import filled
from bluesky_symdenoise.bench.quality.metrics import FloatArray, Mask
from bluesky_symdenoise.errors import SymDenoiseError


def anscombe(counts: FloatArray) -> FloatArray:
    """Return 2 sqrt(y + 3/8), whose noise is about 1 for Poisson counts of 4 and more."""
    return np.asarray(2 * np.sqrt(counts + 3 / 8))


def unbiased_inverse_anscombe(stabilised: FloatArray) -> FloatArray:
    """Return the mean counts whose Anscombe transform has this expectation.

    D^2/4 + sqrt(3/2)/(4 D) - 11/(8 D^2) + 5 sqrt(3/2)/(8 D^3) - 1/8, the closed form of Makitalo and Foi,
    IEEE Trans. Image Process. 20, 2697 (2011); zero below the transform of zero counts.
    """
    d = np.maximum(stabilised, anscombe(np.zeros(())))
    root = np.sqrt(3 / 2)
    mean = d**2 / 4 + root / (4 * d) - 11 / (8 * d**2) + 5 * root / (8 * d**3) - 1 / 8
    return np.asarray(np.maximum(mean, 0.0))


def nlm(counts: FloatArray, mask: Mask, *, h: float = 0.8, patch_size: int = 7, patch_distance: int = 11) -> FloatArray:
    """Return non-local means of the Anscombe-transformed frame, followed by the exact unbiased inverse.

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
        raise not_installed("nlm", "scikit-image") from error
    smooth = denoise_nl_means(
        anscombe(filled(counts, mask)),
        patch_size=patch_size,
        patch_distance=patch_distance,
        h=h,
        sigma=1.0,
        fast_mode=True,
    )
    return unbiased_inverse_anscombe(smooth)


def bm3d(counts: FloatArray, mask: Mask) -> FloatArray:
    """Return BM3D (both stages, noise of 1) of the Anscombe-transformed frame, followed by the exact unbiased inverse.

    The package `bm3d` of Tampere University is licensed for non-commercial use only: it is an optional extra of the
    benchmark and nothing else here may import it.

    Parameters
    ----------
    counts
        Frame (y, x). Masked pixels are filled with the local mean before.
    mask
        True for bad pixels.

    Raises
    ------
    SymDenoiseError
        If bm3d is not installed.
    """
    try:
        from bm3d import bm3d as block_matching
    except ImportError as error:
        raise not_installed("bm3d", "bm3d") from error
    return unbiased_inverse_anscombe(block_matching(anscombe(filled(counts, mask)), 1.0))


def bm4d(counts: FloatArray, mask: Mask) -> FloatArray:
    """Return BM4D (both stages, noise of 1) of the Anscombe-transformed stack, followed by the exact unbiased inverse.

    The package `bm4d` has the licence of `bm3d`, which needs it.

    Parameters
    ----------
    counts
        Stack (row, y, x). Masked pixels are filled with the local mean of their row before.
    mask
        (y, x), True for bad pixels.

    Raises
    ------
    SymDenoiseError
        If bm4d is not installed.
    """
    try:
        from bm4d import bm4d as block_matching
    except ImportError as error:
        raise not_installed("bm4d", "bm4d") from error
    stack = np.stack([anscombe(filled(row, mask)) for row in counts])
    return unbiased_inverse_anscombe(np.asarray(block_matching(stack, 1.0)))


def not_installed(peer: str, package: str) -> SymDenoiseError:
    """Return the error for a peer whose package is missing."""
    return SymDenoiseError(
        f"peer {peer!r}", rule=f"needs {package}", remedy="pip install 'bluesky-symdenoise[bench]', or leave it out"
    )
