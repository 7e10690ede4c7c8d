"""Detector counts without a beam: a background of the likelihood, never subtracted from counts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import pdtrc

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.frame import sentinel_mask

#: A pixel is hot if its dark counts exceed three times the local mean with at most this probability by chance.
HOT_PROBABILITY = 1e-9
#: Side of the square over which the local mean is taken, without the pixel itself.
HOT_WINDOW = 9


@dataclass(frozen=True)
class Dark:
    """Frames taken without a beam, summed.

    Attributes
    ----------
    counts
        (y, x) float64 sum over the frames, 0 where masked.
    mask
        (y, x), True where some frame has no count, or the pixel is hot.
    frames
        Number of frames.
    seconds
        Exposure time of each frame; None if it is not known.
    averaged
        Number of exposures of which each frame is the mean, for integrating detectors.
    """

    counts: NDArray[np.float64]
    mask: NDArray[np.bool_]
    frames: int
    seconds: float | None = None
    averaged: int = 1

    def exposures(self, seconds: float | None) -> float:
        """Return how many exposures of `seconds` the dark is worth: its number of frames if no time is known.

        Raises
        ------
        SymDenoiseError
            If only one of the two times is known.
        """
        if (seconds is None) != (self.seconds is None):
            known, lacking = ("frame", "dark") if self.seconds is None else ("dark", "frame")
            raise SymDenoiseError(
                f"dark of {self.seconds} s for a frame of {seconds} s",
                rule=f"the exposure time of the {known} is known and that of the {lacking} is not",
                remedy="name the exposure times of both, or of neither if they are equal",
            )
        if seconds is None or self.seconds is None:
            return float(self.frames)
        if not (seconds > 0 and self.seconds > 0):
            raise SymDenoiseError(
                f"dark of {self.seconds} s for a frame of {seconds} s",
                rule="an exposure time is positive",
                remedy="check the names of the exposure times",
            )
        return self.frames * self.seconds / seconds


@dataclass(frozen=True)
class Background:
    """Expected dark counts of one frame and their standard deviation, (y, x); NaN where not known.

    The deviation is that of one dark, so that it is common to all frames that share it: their mean has it too.
    """

    expected: NDArray[np.float32]
    sigma: NDArray[np.float32]


def summed_dark(frames: Iterable[NDArray[Any]], *, seconds: float | None = None) -> Dark:
    """Return dark frames (y, x) as one `Dark`; hot pixels are masked.

    Raises
    ------
    SymDenoiseError
        If there is no frame, or a frame holds values that are not counts.
    """
    counts: NDArray[np.float64] | None = None
    bad: NDArray[np.bool_] = np.zeros((0, 0), bool)
    number = 0
    for frame in frames:
        here = sentinel_mask(frame)
        y = np.where(here, 0, frame).astype(np.float64)
        if np.any(y != np.floor(y)):
            raise SymDenoiseError(
                "dark frame with fractions",
                rule="a dark is counts; this one was averaged or scaled",
                remedy="give the dark frames as the detector wrote them",
            )
        counts, bad = (y, here) if counts is None else (counts + y, bad | here)
        number += 1
    if counts is None:
        raise SymDenoiseError("dark without frames", rule="it needs at least one", remedy="check where it comes from")
    bad = bad | hot_pixels(counts, bad)
    return Dark(counts=np.where(bad, 0.0, counts), mask=bad, frames=number, seconds=seconds)


def summed_signal(frames: Iterable[NDArray[Any]], *, seconds: float | None = None, averaged: int = 1) -> Dark:
    """Return frames (y, x) that an integrating detector took without a beam as one `Dark`, an offset of its signal.

    A hot pixel has more dark signal, which the offset takes away, so that only codes of the detector are masked.

    Parameters
    ----------
    averaged
        Number of exposures of which each frame is the mean.

    Raises
    ------
    SymDenoiseError
        If there is no frame.
    """
    total: NDArray[np.float64] | None = None
    number = 0
    for frame in frames:
        coded = sentinel_mask(np.where(frame < 0, frame.dtype.type(0), frame))
        total = np.where(coded, np.nan, frame).astype(np.float64) + (0 if total is None else total)
        number += 1
    if total is None:
        raise SymDenoiseError("dark without frames", rule="it needs at least one", remedy="check where it comes from")
    bad = ~np.isfinite(total)
    return Dark(counts=np.where(bad, 0.0, total), mask=bad, frames=number, seconds=seconds, averaged=averaged)


def hot_pixels(counts: NDArray[np.float64], mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels with far more dark counts than those around them.

    A pixel of y counts is hot where P(Y >= y) < 10^-9 for Y ~ Poisson(3 m + 3/n), with m the mean of the n measured
    pixels in a square of 9 x 9 around it, itself left out.

    Parameters
    ----------
    counts, mask
        (y, x); mask True = bad.
    """
    good = (~mask).astype(np.float64)
    area = HOT_WINDOW**2
    total = ndimage.uniform_filter(counts * good, HOT_WINDOW, mode="constant") * area - counts * good
    number = ndimage.uniform_filter(good, HOT_WINDOW, mode="constant") * area - good
    mean = (np.maximum(total, 0) + 1) / np.maximum(number, 1)
    hot: NDArray[np.bool_] = (pdtrc(counts - 1, 3 * mean) < HOT_PROBABILITY) & ~mask & (counts > 0)
    return hot


def stored_dark(dark: Dark) -> NDArray[np.float64]:
    """Return the dark as one array, NaN where masked."""
    return np.where(dark.mask, np.nan, dark.counts)


def dark_from_stored(array: NDArray[np.float64], *, frames: int, seconds: float | None, averaged: int = 1) -> Dark:
    """Return the dark that `stored_dark` made into an array."""
    return Dark(np.nan_to_num(array), np.isnan(array), frames, seconds, averaged)


def signal(
    intensity: NDArray[np.float32], sigma: NDArray[np.float32], background: Background
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return expected counts of the signal alone, from those of the total y ~ Poisson(signal + background).

    s = t - b, sigma_s^2 = sigma_t^2 + sigma_b^2: the best linear estimate of s from y under the same prior mean and
    variance. It may be negative within noise, and is kept so: cut at zero, sums over dark regions would grow with
    their area.

    Parameters
    ----------
    intensity, sigma
        (..., y, x) posterior mean and standard deviation of the total.
    """
    return intensity - background.expected, np.hypot(sigma, background.sigma)
