"""Rounding of pixel values to a fraction of their own standard deviation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]


def rounded_to_sigma(value: Image, sigma: Image, *, fraction: float) -> Image:
    """Return values rounded to multiples of 2^floor(log2(fraction * sigma)).

    The error is at most half of ``fraction * sigma``; the last bits of the mantissa become zero, which compresses.

    Parameters
    ----------
    value, sigma
        Arrays of one shape, any unit; NaN stays NaN.
    fraction
        Largest step, in standard deviations.
    """
    known = np.isfinite(sigma) & (sigma > 0)
    _, exponent = np.frexp(np.float32(fraction) * np.where(known, sigma, np.float32(1)))
    rounded = np.ldexp(np.round(np.ldexp(value, 1 - exponent)), exponent - 1)
    return np.where(known, rounded, value)


def rounded_mantissa(value: Image, *, bits: int) -> Image:
    """Return values rounded to ``bits`` bits after the leading one: a relative error of at most 2^-(bits + 1)."""
    mantissa, exponent = np.frexp(value)
    scale = np.float32(2 ** (bits + 1))
    return np.ldexp(np.round(mantissa * scale) / scale, exponent)
