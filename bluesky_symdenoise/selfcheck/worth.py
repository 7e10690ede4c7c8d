"""What denoising is worth on frames, as an exposure and a likelihood, from photons that were held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.selfcheck.peers import LEAST, best_gaussian, best_raw, likelihood

Image = NDArray[np.float64]
#: Function from the number of a row to its expected counts (y, x).
Estimate = Callable[[int], Image]


@dataclass(frozen=True)
class Worth:
    """Worth of estimates of the rate of thinned frames.

    Attributes
    ----------
    exposure
        Exposure, in units of that of the thinned frame, of which raw counts have the same squared error. It is a lower
        limit where the error is not seen below the noise of the held-out counts.
    exposure_error
        Its standard error, from the pixels.
    above_raw, above_gaussian
        Log-likelihood of the held-out counts, in nat per pixel, above that of raw counts shrunk towards their mean, and
        of a Gaussian filter; each with the setting that suits the held-out counts best.
    """

    exposure: float
    exposure_error: float
    above_raw: float
    above_gaussian: float

    @property
    def decibel(self) -> float:
        """The exposure in dB of squared error."""
        return float(10 * np.log10(self.exposure))


def halves(frames: Sequence[NDArray[np.generic]], rng: np.random.Generator) -> tuple[list[Image], list[Image]]:
    """Return two frames of half the exposure for each: every photon falls to one or the other with equal chance."""
    kept = [rng.binomial(np.asarray(frame).astype(np.int64), 0.5).astype(np.float64) for frame in frames]
    return kept, [np.asarray(frame, np.float64) - half for frame, half in zip(frames, kept, strict=True)]


def worth(
    kept: Sequence[Image], held: Sequence[Image], rows: Sequence[int], estimate: Estimate, valid: NDArray[np.bool_]
) -> Worth:
    """Return what an estimate of some rows is worth.

    Parameters
    ----------
    kept, held
        `halves` of frames (y, x) of consecutive rows.
    rows
        Numbers, in `kept`, of the rows that are estimated.
    estimate
        Function that estimates a row from kept counts, its own and those of the others if it likes.
    valid
        (y, x) pixels that were measured.
    """
    squares, noise, raw, gaussian = [], 0.0, [], []
    for row in rows:
        expected = estimate(row)
        seen = valid & np.isfinite(expected)
        k, h, e = kept[row][seen], held[row][seen], np.maximum(expected[seen], LEAST)
        # (e - h)^2 - h has the expectation of the squared error of e, because h is Poisson and independent of it.
        squares.append((e - h) ** 2 - h)
        noise += float(k.sum())
        ours, one = likelihood(e, h), np.ones_like(h)
        raw.append(float((ours - likelihood(best_raw(k, one, h)[0], h)).mean()))
        blurred = best_gaussian(kept[row], np.ones_like(expected), seen, h)[0]
        gaussian.append(float((ours - likelihood(blurred, h)).mean()))
    every = np.concatenate(squares)
    total, spread = float(every.sum()), float(np.sqrt((every**2).sum()))
    error = max(total, spread, 1e-12)
    return Worth(noise / error, noise * spread / error**2, float(np.mean(raw)), float(np.mean(gaussian)))
