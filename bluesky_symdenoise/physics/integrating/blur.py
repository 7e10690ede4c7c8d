"""How the spread of light between pixels makes the noise of sums over blocks of pixels smaller."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

#: Along rows and along columns, or both one after the other, which sees no structure of rows or columns.
Differences = Literal["along", "mixed"]


def seen_noise(binning: int, blur: float, differences: Differences) -> float:
    """Return the share of the photon noise that second differences of sums over blocks of pixels see.

    Photons fall anywhere in a pixel, each spreads its light as a Gaussian, and each pixel collects what falls onto it.
    Without blur the share is 1, for wide blocks it tends to 1.

    Parameters
    ----------
    binning
        Side of the blocks in pixels.
    blur
        Standard deviation of the Gaussian in pixels.
    """
    own, beside, further = (_covariance(k, binning, blur) / binning for k in range(3))
    differenced = own - 4 / 3 * beside + 1 / 3 * further
    return differenced**2 if differences == "mixed" else differenced * own


def _covariance(distance: int, binning: int, blur: float) -> float:
    """Return the covariance of sums over segments of a line of pixels, so many segments apart, per photon and pixel."""
    steps = np.arange(1 - binning, binning)
    return float(((binning - np.abs(steps)) * _between_pixels(binning * distance + steps, blur)).sum())


def _between_pixels(distance: NDArray[np.int64], blur: float) -> NDArray[np.float64]:
    """Return the covariance of two pixels of a line: a triangle of width 2 under a Gaussian of sqrt(2) blur."""
    if blur < 1e-3:
        return np.where(distance == 0, 1.0, 0.0)
    sigma = np.sqrt(2) * blur
    # The triangle is the second integral of the Gaussian, differenced twice.
    before, here, after = (_second_integral((distance + step) / sigma) * sigma for step in (-1, 0, 1))
    return np.asarray(before - 2 * here + after)


def _second_integral(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the integral of the integral of the normal distribution."""
    return np.asarray(x * (1 + erf(x / np.sqrt(2))) / 2 + np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi))
