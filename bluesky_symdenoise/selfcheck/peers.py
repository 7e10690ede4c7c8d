"""Estimates that a denoised frame is compared with: raw counts and a Gaussian filter, each with the best setting."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Image = NDArray[np.float64]

#: Weights of the frame's mean rate that raw counts are tried with, and standard deviations of the filter, in pixels.
WEIGHTS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
WIDTHS = (0.5, 0.8, 1.25, 2.0, 3.2, 5.0)
#: Weight of the mean rate in filtered counts, which would otherwise exclude a photon where they are zero.
_LITTLE = 0.003
#: Smallest expected counts of a pixel.
LEAST = 1e-6


def likelihood(expected: NDArray[Any], counts: Image) -> Image:
    """Return the Poisson log-likelihood of counts without the term that depends on the counts alone."""
    mean = np.maximum(expected, LEAST)
    lit = counts > 0
    gained = -mean
    gained[lit] += counts[lit] * np.log(mean[lit])
    return np.asarray(gained)


def best_raw(counts: Image, exposure: Image, held: Image) -> tuple[Image, float]:
    """Return raw counts (pixels,), shrunk towards the mean rate by the weight that suits the held-out counts best."""
    mean = counts.sum() / exposure.sum() * exposure
    return _best({weight: (counts + weight * mean) / (1 + weight) for weight in WEIGHTS}, held)


def best_gaussian(counts: Image, exposure: Image, valid: NDArray[np.bool_], held: Image) -> tuple[Image, float]:
    """Return filtered counts of the valid pixels, of the width that suits the held-out counts best.

    Parameters
    ----------
    counts, exposure
        (y, x)
    held
        (pixels,) held-out counts of the valid pixels.
    """
    known, n = np.where(valid, counts, 0.0), np.where(valid, exposure, 0.0)
    rate = known.sum() / n.sum()
    made = {}
    for width in WIDTHS:
        smooth, weight = (ndimage.gaussian_filter(each, width, mode="constant", truncate=3.0) for each in (known, n))
        filtered = (smooth[valid] + _LITTLE * rate * weight[valid]) / (weight[valid] * (1 + _LITTLE))
        made[width] = filtered * exposure[valid]
    return _best(made, held)


def _best(estimates: dict[float, Image], held: Image) -> tuple[Image, float]:
    lit = held > 0

    def score(setting: float) -> float:
        mean = np.maximum(estimates[setting], LEAST)
        return float(held[lit] @ np.log(mean[lit]) - mean.sum())

    best = max(estimates, key=score)
    return estimates[best], best
