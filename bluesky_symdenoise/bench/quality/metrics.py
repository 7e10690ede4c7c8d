"""Scores of an estimate against held-out counts, in count units, never rescaled per image.

Everywhere ``estimate`` is the expected counts per pixel of the *input* frame, ``target`` are independent
counts of the same scene at ``k`` times the input's exposure, and ``mask`` is True for bad pixels, which are
left out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage, special, stats

FloatArray = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]

FLOORS: npt.NDArray[np.float64] = np.geomspace(1e-5, 10.0, 49)
"""Floors (counts per pixel of the input) that peers may get: eight a decade."""


STRATA = (0.1, 1.0, 10.0, 100.0)
"""Rates, counts per pixel of the input, between the strata of `stratified_errors`."""


_REACH = np.arange(-4, 5)
"""Pixels that a Gaussian window of one pixel reaches."""


LEAST = 1e-6
"""Smallest mean, counts per pixel of the input, of a predictive distribution."""


class BestFloor(NamedTuple):
    """The smallest likelihood loss over a grid of floors and the floor (counts per pixel) that gave it."""

    nll: float
    floor: float


class Psnr(NamedTuple):
    """Peak signal-to-noise ratio and its standard error, both in dB."""

    value: float
    standard_error: float


class FluxError(NamedTuple):
    """Relative error of the total flux, with its statistical error and the two parts that this is made of."""

    value: float
    standard_error: float
    input_error: float
    target_error: float


def poisson_nll(estimate: FloatArray, target: FloatArray, k: float, *, mask: Mask, floor: float = 0.0) -> float:
    """Return the Poisson negative log-likelihood of held-out counts, per valid pixel.

    mean[k e - t log(k e) + log t!] with e = max(estimate, floor). An estimate of zero where a photon arrived
    costs infinity; NaN at a valid pixel gives NaN.

    Parameters
    ----------
    estimate
        Expected counts per pixel of the input frame.
    target
        Independent counts at `k` times the input's exposure.
    k
        Exposure of the target in units of the input's.
    mask
        True for bad pixels.
    floor
        Smallest estimate, counts per pixel of the input.

    Returns
    -------
    float
        Loss in nat per pixel, evaluated in float64.
    """
    e, t = _valid(mask, estimate, target)
    mean = k * np.maximum(e, floor)
    return float(np.mean(mean - special.xlogy(t, mean) + special.gammaln(t + 1)))


def floor_losses(estimate: FloatArray, target: FloatArray, k: float, *, mask: Mask) -> npt.NDArray[np.float64]:
    """Return `poisson_nll` at each of `FLOORS`, in nat per pixel; parameters as there."""
    e, t = _valid(mask, estimate, target)
    first = np.searchsorted(FLOORS, e)  # index of the first floor that clips the pixel; 0: all floors clip it
    own = np.where(first > 0, k * e - special.xlogy(t, k * np.maximum(e, FLOORS[0])), 0.0)
    clipped, clipped_counts, clipped_own = (
        np.cumsum(np.bincount(first, weights, FLOORS.size + 1))[:-1] for weights in (None, t, own)
    )
    loss = own.sum() - clipped_own + k * FLOORS * clipped - clipped_counts * np.log(k * FLOORS)
    return np.asarray((loss + special.gammaln(t + 1).sum()) / t.size)


def best_floor_nll(estimate: FloatArray, target: FloatArray, k: float, *, mask: Mask) -> BestFloor:
    """Return the smallest `poisson_nll` over `FLOORS`; parameters as there.

    An oracle, for methods without a predictive distribution: the floor is the one that suits the method best
    on these very held-out counts, so a comparison with it is generous to them.
    """
    losses = floor_losses(estimate, target, k, mask=mask)
    best = int(np.argmin(losses))
    return BestFloor(float(losses[best]), float(FLOORS[best]))


def robust_peak(target: FloatArray, k: float, *, mask: Mask) -> float:
    """Return the peak of a case: the 99.9th percentile of t/k over valid pixels, in counts of the input."""
    (t,) = _valid(mask, target)
    return float(np.percentile(t, 99.9) / k)


def unbiased_psnr(estimate: FloatArray, target: FloatArray, k: float, *, mask: Mask, peak: float) -> Psnr:
    """Return the peak signal-to-noise ratio against the unknown truth.

    10 log10(peak^2 / mse) with mse = mean[(e - t/k)^2 - t/k^2], whose expectation is the mean square error
    against the true rate because the target is Poisson and independent of the estimate.

    Parameters
    ----------
    estimate, target, k, mask
        See `poisson_nll`.
    peak
        Counts per pixel of the input, see `robust_peak`.

    Returns
    -------
    Psnr
        In dB; the standard error takes pixels as independent. Both NaN where the mean square error is not
        positive by more than two standard errors: the target then is too noisy to tell.
    """
    e, t = _valid(mask, estimate, target)
    square = (e - t / k) ** 2 - t / k**2
    mse, error = float(square.mean()), float(square.std() / np.sqrt(square.size))
    if not mse > 2 * error:
        return Psnr(float("nan"), float("nan"))
    return Psnr(10 * float(np.log10(peak**2 / mse)), 10 / float(np.log(10)) * error / mse)


def stratified_errors(estimate: FloatArray, target: FloatArray, k: float, *, mask: Mask) -> tuple[float, ...]:
    """Return the mean square error in units of the input's Poisson variance, by stratum of the rate.

    Sum of (e - t/k)^2 - t/k^2 over sum of t/k: 1 for raw counts, 0 for the truth. A pixel's stratum is that of the
    target's mean around it under a Gaussian window of one pixel, itself left out: its own noise has no say.

    Parameters
    ----------
    estimate, target, k, mask
        See `poisson_nll`.

    Returns
    -------
    tuple of float
        One for each stratum below, between and above `STRATA`; NaN where fewer than 30 pixels are.
    """
    neighbours = np.exp(-np.add.outer(_REACH**2, _REACH**2) / 2.0) * (np.add.outer(_REACH**2, _REACH**2) > 0)
    around, weight = (
        ndimage.convolve(image, neighbours, mode="constant")
        for image in (np.where(mask, 0.0, target), (~mask).astype(np.float64))
    )
    (rate,) = _valid(mask, around / np.maximum(weight, 1e-12) / k)
    e, t = _valid(mask, estimate, target)
    stratum = np.digitize(rate, STRATA)
    number, error, variance = (
        np.bincount(stratum, weights, len(STRATA) + 1) for weights in (None, (e - t / k) ** 2 - t / k**2, t / k)
    )
    few = (number < 30) | (variance <= 0)
    return tuple(np.where(few, np.nan, error / np.where(few, 1.0, variance)).tolist())


def flux_error(estimate: FloatArray, target: FloatArray, k: float, *, mask: Mask) -> FluxError:
    """Return the relative error of the total flux: k sum(e) / sum(t) - 1.

    The statistical error has two parts, added in quadrature: the photons of the input, sqrt(k / sum(t)),
    which an estimate that conserves flux inherits, and those of the target, 1 / sqrt(sum(t)). They hold where
    `k` is known beforehand. Where it was taken from the total counts, flux errors are relative to the raw
    frame's, which is zero by construction.

    Parameters
    ----------
    estimate, target, k, mask
        See `poisson_nll`.
    """
    e, t = _valid(mask, estimate, target)
    total = t.sum()
    return FluxError(
        float(k * e.sum() / total - 1),
        float(np.sqrt((k + 1) / total)),
        float(np.sqrt(k / total)),
        float(np.sqrt(1 / total)),
    )


def coverage(
    estimate: FloatArray,
    sigma: FloatArray,
    target: FloatArray,
    k: float,
    *,
    mask: Mask,
    levels: tuple[float, ...] = (0.68, 0.95),
) -> tuple[float, ...]:
    """Return the fraction of held-out counts inside the central predictive intervals.

    The predictive distribution is the negative binomial of mean m = k e and variance m + k^2 sigma^2 (Poisson
    counts at a Gamma-distributed rate). Counts are discrete, so a count t stands for the interval
    [F(t-1), F(t)] of the probability integral transform, and the share of it inside the central interval is
    added up: the expectation of the randomised transform (Czado, Gneiting and Held, Biometrics 65, 1254,
    2009), unbiased at any rate and without random numbers. `k` of 50 and more tests the intervals of the
    rate; a small `k` tests mostly Poisson noise.

    Parameters
    ----------
    estimate, target, k, mask
        See `poisson_nll`.
    sigma
        Standard deviation of the estimate, counts per pixel of the input.
    levels
        Nominal coverages.

    Returns
    -------
    tuple of float
        One fraction for each level; NaN if the estimate is NaN at a valid pixel.
    """
    e, s, t = _valid(mask, estimate, sigma, target)
    return tuple(float(share.mean()) for share in _covered(e, s, t, k, levels))


def decile_coverage(
    estimate: FloatArray, sigma: FloatArray, target: FloatArray, k: float, *, mask: Mask
) -> tuple[float, ...]:
    """Return the smallest and the largest `coverage` of the 68 % and of the 95 % interval over deciles of the estimate.

    Pixels of one value are of one decile, so that there may be fewer than ten. Parameters as in `coverage`.
    """
    e, s, t = _valid(mask, estimate, sigma, target)
    decile = np.searchsorted(np.quantile(e, np.arange(1, 10) / 10), e)
    number = np.bincount(decile)
    found = []
    for share in _covered(e, s, t, k, (0.68, 0.95)):
        means = np.bincount(decile, share)[number > 0] / number[number > 0]
        found += [float(means.min()), float(means.max())]
    return tuple(found)


def predictive_nll(estimate: FloatArray, sigma: FloatArray, target: FloatArray, k: float, *, mask: Mask) -> float:
    """Return the held-out counts' negative log-likelihood per pixel under the predictive distribution of `coverage`.

    Parameters as in `coverage`; in nat.
    """
    e, s, t = _valid(mask, np.maximum(estimate, LEAST), sigma, target)
    # Limit sigma to at least 1e-4 of the mean: below that, logarithms of Gamma functions cancel.
    shape = np.minimum(e / np.maximum(s, 1e-300), 1e4) ** 2
    return float(-stats.nbinom.logpmf(t, shape, shape / (shape + k * e)).mean())


def _covered(
    e: FloatArray, s: FloatArray, t: FloatArray, k: float, levels: tuple[float, ...]
) -> list[npt.NDArray[np.float64]]:
    """Return, for each level, the fraction of each held-out count that is inside the interval."""
    mean, extra = k * e, (k * s) ** 2
    upper = _predictive_cdf(t, mean, extra)
    lower = np.where(t > 0, _predictive_cdf(np.maximum(t - 1, 0), mean, extra), 0.0)
    width = upper - lower
    inside = []
    for level in levels:
        overlap = np.minimum(upper, (1 + level) / 2) - np.maximum(lower, (1 - level) / 2)
        # Far out in a tail the width and the overlap underflow to zero: the pixel counts as not covered.
        share = np.divide(np.maximum(overlap, 0), width, out=np.zeros_like(width), where=width != 0)
        inside.append(share)
    return inside


def _predictive_cdf(t: FloatArray, mean: FloatArray, extra: FloatArray) -> FloatArray:
    """Return P(count <= t) for the negative binomial of variance mean + extra; Poisson where extra vanishes."""
    # Below 1e-7 of the mean, the extra variance is invisible and the shape mean^2/extra is too large for betainc.
    narrow = extra <= 1e-7 * mean
    safe = np.where(narrow, mean + 1e-300, extra)
    spread = special.betainc(np.maximum(mean**2 / safe, 1e-300), t + 1, mean / (mean + safe))
    return np.asarray(np.where(narrow, special.pdtr(t, mean), spread))


def _valid(mask: Mask, *images: FloatArray) -> tuple[npt.NDArray[np.float64], ...]:
    """Take the valid pixels of each image as float64."""
    return tuple(np.asarray(image)[~mask].astype(np.float64) for image in images)
