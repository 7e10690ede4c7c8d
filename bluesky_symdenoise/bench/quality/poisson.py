"""Peers made for Poisson noise itself, without a transform."""

from __future__ import annotations

import numpy as np

from bluesky_symdenoise.bench.quality.filters import filled
from bluesky_symdenoise.bench.quality.metrics import FloatArray, Mask
from bluesky_symdenoise.bench.quality.stabilised import not_installed


def bmnd(counts: FloatArray, mask: Mask) -> FloatArray:
    """Return BMND: block matching and collaborative filtering of Poisson counts, in two or three dimensions.

    The package `bmnd` (MIT licence) is by the authors of the method (Duhme, Schiefelbein, Buther and Jiang, 2026); its
    own settings for frames or volumes are used, with Poisson noise.

    Parameters
    ----------
    counts
        Frame (y, x), or stack (row, y, x). Masked pixels are filled with the local mean of their frame before.
    mask
        (y, x), True for bad pixels.

    Raises
    ------
    SymDenoiseError
        If bmnd is not installed.
    """
    try:
        from bmnd import BM3DProfile, BM4DProfile, NoiseModel
        from bmnd import bmnd as block_matching
    except ImportError as error:
        raise not_installed("bmnd", "bmnd") from error
    if counts.ndim == 2:
        whole, profile = filled(counts, mask), BM3DProfile(noise_model=NoiseModel.POISSON)
    else:
        whole = np.stack([filled(row, mask) for row in counts])
        profile = BM4DProfile(noise_model=NoiseModel.POISSON)
    return np.maximum(block_matching(whole.astype(np.float32), profile).astype(np.float64), 0.0)
