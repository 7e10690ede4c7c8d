"""Estimators of the quantities of a ring with their covariance: from counts, by a full fit, from a denoised frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.analysis.annulus import Annulus, Values
from bluesky_symdenoise.analysis.likelihood import PRECISION, poisson_fit, ring_model
from bluesky_symdenoise.analysis.moment import Moment, orientation_and_anisotropy, second_moment
from bluesky_symdenoise.analysis.peak import peak_fit, peak_quantities, radial_profile, start_values

Image = NDArray[np.float64]
#: Function from counts (y, x) to expected counts (y, x), NaN where nothing is known.
Denoise = Callable[[Image], Image]

#: Length of an estimate: g, then the parameters of `bluesky_symdenoise.analysis.likelihood.peak_model`.
SIZE = 8
#: Standard deviations at which a fit is rejected, width in pixels of the cells for the test, and cells in half a turn.
REFUTED, CELL_WIDTH, CELLS_AROUND = 4.0, 3.0, 12
#: Weight of the Poisson error, in replicates, when the spread of replicates of a denoised frame is estimated.
PRIOR_REPLICATES = 8


@dataclass(frozen=True)
class Observed:
    """A frame in the form of the likelihood: counts ~ Poisson(exposure * rate + background), all (y, x).

    Attributes
    ----------
    exposure
        0 where masked.
    background
        Expected counts that do not come from the sample.
    """

    counts: Image
    exposure: Image
    background: Image


@dataclass(frozen=True)
class Estimate:
    """Real and imaginary part of the second moment, and the parameters of `peak_model`.

    Attributes
    ----------
    values
        (8,); NaN where there is none.
    covariance
        (8, 8).
    """

    values: Values
    covariance: NDArray[np.float64]

    def quantities(self, *, inner: float, outer: float) -> dict[str, tuple[float, float]]:
        """Return value and sigma by name; NaN if not determined."""
        moment = orientation_and_anisotropy(complex(*self.values[:2]), self.covariance[:2, :2])
        with np.errstate(invalid="ignore"):
            sigma = np.sqrt(np.diag(self.covariance)[2:])
        return moment | peak_quantities(self.values[2:], sigma, inner=inner, outer=outer)


def from_counts(annulus: Annulus, observed: Observed) -> Estimate:
    """Return the moment of the raw counts, and a Poisson fit to their radial profile.

    Pixels are independent: errors are exact sums of their variances, and the inverse Fisher information.
    """
    y, n, b = (annulus.of(each) for each in (observed.counts, observed.exposure, observed.background))
    return from_sums(annulus, np.where(n > 0, y, 0), n, np.where(n > 0, b, 0))


def from_sums(annulus: Annulus, counts: Values, exposure: Values, background: Values) -> Estimate:
    """Return `from_counts` of the annulus's pixels, (n,) each, which may be sums over frames."""
    moment = second_moment(annulus, counts - background, exposure)
    spread = None if moment is None else moment.covariance(counts)
    return _joined(annulus, counts, exposure, background, moment, spread)


def from_likelihood(annulus: Annulus, observed: Observed) -> Estimate:
    """Return one Poisson fit to the raw counts of all pixels: a textured Gaussian ring on about a power law.

    This is the most precise estimate if the ring has that form. Nothing is returned if the counts refute it, that is if
    the squared differences in cells of radius and azimuth sum up to `REFUTED` standard deviations too many. Few counts
    refute little.
    """
    y, n, b = (annulus.of(each) for each in (observed.counts, observed.exposure, observed.background))
    seen = n > 0
    radius, signal, exposure = radial_profile(annulus, np.where(seen, y - b, 0), n)
    y, n, b = y[seen], n[seen], b[seen]
    middle = (annulus.radius.min() + annulus.radius.max()) / 2
    fit = None
    if len(radius) >= SIZE and signal.sum() > 0:
        start = np.append(start_values(radius, np.maximum(signal, 0), exposure), [0.0, 0.0])
        model = ring_model(annulus.radius[seen], annulus.azimuth[seen], middle)
        fit = poisson_fit(model, y, n, start, precision=np.append(PRECISION, [0.0, 0.0]), background=b)
    if fit is None:
        return _nothing()
    rate, derivatives = ring_model(annulus.radius, annulus.azimuth, middle)(fit.parameters)
    if _misfit(annulus, seen, y, n * rate[seen] + b) > REFUTED:
        return _nothing()
    moment = second_moment(annulus, rate, np.ones_like(rate))
    if moment is None:
        return _nothing()
    slopes = moment.influence @ derivatives.T
    to_values = np.concatenate([[slopes.real, slopes.imag], np.eye(6, SIZE)])
    values = np.concatenate([[moment.value.real, moment.value.imag], fit.parameters[:6]])
    return Estimate(values, to_values @ fit.covariance @ to_values.T)


def _misfit(annulus: Annulus, seen: NDArray[np.bool_], counts: Values, expected: Values) -> float:
    """Return Pearson's chi-squared over cells, standardised by mean and standard deviation if the expected is true."""
    radial = ((annulus.radius[seen] - annulus.radius.min()) / CELL_WIDTH).astype(int)
    cells = radial * CELLS_AROUND + (np.mod(annulus.azimuth[seen], np.pi) / np.pi * CELLS_AROUND).astype(int)
    found, right = np.bincount(cells, counts), np.bincount(cells, expected)
    enough = right >= 1
    freedom = enough.sum() - SIZE
    if freedom < 1:
        return 0.0
    squares = (found[enough] - right[enough]) ** 2 / right[enough]
    return float((squares.sum() - freedom) / np.sqrt(2 * freedom + (1 / right[enough]).sum()))


def from_denoised(
    annulus: Annulus,
    intensity: Image,
    observed: Observed,
    denoise: Denoise,
    *,
    replicates: int,
    rng: np.random.Generator,
) -> Estimate:
    """Return the moment and the profile fit of a denoised frame, corrected for bias, with errors from replicates.

    Denoised pixels are correlated and drawn towards their surroundings: rings come out lower and wider, and sigma of a
    pixel does not give that of a sum. Counts are drawn from the denoised frame (posterior-predictive), denoised by the
    same `denoise` and estimated in the same way. Output minus input is the bias, which is subtracted; its
    scatter is averaged with the Poisson error of the same sums, which counts for `PRIOR_REPLICATES` replicates. To the
    variance are added that of the correction, and the square of half of it for the remaining bias.

    Parameters
    ----------
    intensity
        `denoise(observed.counts)`: expected counts less the background.
    replicates
        2 or more; each takes the time of denoising one frame.
    """
    estimated = _from_intensity(annulus, intensity, observed)
    known = observed.exposure > 0
    expected = np.where(known, np.nan_to_num(np.maximum(intensity, 0)) + observed.background, 0)
    drawn = [
        _from_intensity(annulus, denoise(rng.poisson(expected).astype(np.float64)), observed).values - estimated.values
        for _ in range(replicates)
    ]
    parts = [_corrected(estimated, np.array(drawn), part) for part in (slice(0, 2), slice(2, SIZE))]
    covariance = np.zeros((SIZE, SIZE))
    covariance[:2, :2], covariance[2:, 2:] = parts[0][1], parts[1][1]
    return Estimate(np.concatenate([parts[0][0], parts[1][0]]), covariance)


def _corrected(estimated: Estimate, away: NDArray[np.float64], part: slice) -> tuple[Values, NDArray[np.float64]]:
    """Return values corrected for the bias that replicates show, and covariance; NaN if most replicates failed."""
    values, poisson, away = estimated.values[part], estimated.covariance[part, part], away[:, part]
    found = away[np.isfinite(away).all(axis=1)]
    if len(found) < max(2, len(away) / 2):
        return np.full_like(values, np.nan), np.full_like(poisson, np.nan)
    # Use the median: a fit that runs away says nothing about the others.
    bias = np.median(found, axis=0)
    centred = found - bias
    near = centred[(centred**2 <= 25 * np.diag(poisson)).all(axis=1)]
    pooled = (PRIOR_REPLICATES * poisson + near.T @ near) / (PRIOR_REPLICATES + len(near))
    return values - bias, pooled * (1 + 1 / len(found)) + np.outer(bias, bias) / 4


def _from_intensity(annulus: Annulus, intensity: Image, observed: Observed) -> Estimate:
    """Return the moment and the profile fit of expected counts, with the errors of as many photons."""
    values, measured = annulus.of(intensity), annulus.of(observed.exposure)
    known = np.isfinite(values)
    typical = np.median(measured[measured > 0]) if (measured > 0).any() else 0.0
    n = np.where(known, np.where(measured > 0, measured, typical), 0)
    values = np.where(known, np.maximum(values, 0), 0)
    # Pixels seen only by mates add no photons: the variance is that of the sums over measured pixels.
    moment = second_moment(annulus, values, n)
    seen = np.where(measured > 0, values, 0)
    exact = second_moment(annulus, seen, measured)
    spread = (
        None if exact is None else exact.covariance(seen + np.where(measured > 0, annulus.of(observed.background), 0))
    )
    return _joined(annulus, values, n, None, moment, spread)


def _joined(
    annulus: Annulus,
    y: Values,
    n: Values,
    b: Values | None,
    moment: Moment | None,
    spread: NDArray[np.float64] | None,
) -> Estimate:
    estimate = _nothing()
    if moment is not None and spread is not None:
        estimate.values[:2] = moment.value.real, moment.value.imag
        estimate.covariance[:2, :2] = spread
    radius, summed, exposure = radial_profile(annulus, y, n)
    fit = peak_fit(radius, summed, exposure, None if b is None else radial_profile(annulus, b, n)[1])
    if fit is not None:
        estimate.values[2:] = fit.parameters
        estimate.covariance[2:, 2:] = fit.covariance
    return estimate


def _nothing() -> Estimate:
    covariance = np.zeros((SIZE, SIZE))
    np.fill_diagonal(covariance, np.nan)
    return Estimate(np.full(SIZE, np.nan), covariance)
