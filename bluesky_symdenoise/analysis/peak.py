"""Position, width and area of the one peak in a range of radii."""

from __future__ import annotations

import math

import numpy as np

from bluesky_symdenoise.analysis.annulus import Annulus, Values
from bluesky_symdenoise.analysis.likelihood import PRECISION, Fit, peak_model, poisson_fit

#: Names of the quantities of a peak fit.
PEAK = ("peak_position", "peak_width", "peak_area")
#: A quantity is not determined unless the area is this many sigma above zero.
SIGNIFICANT = 3.5
FWHM = 2 * math.sqrt(2 * math.log(2))


def radial_profile(annulus: Annulus, intensity: Values, exposure: Values) -> tuple[Values, Values, Values]:
    """Return radius (mean of the pixels'), summed intensity and summed exposure in bins of one pixel, empty ones left
    out.

    All azimuths have equal influence, by weights of `Annulus.balance`; the sums are scaled to those with the same
    error.
    """
    weight = annulus.balance(exposure)
    bins = (annulus.radius - annulus.radius.min()).astype(int)
    parts = (exposure * weight, exposure * weight**2, exposure * weight * annulus.radius, intensity * weight)
    balanced, squared, weighted, summed = (np.bincount(bins, part).astype(np.float64) for part in parts)
    seen = balanced > 0
    balanced, squared, weighted, summed = (part[seen] for part in (balanced, squared, weighted, summed))
    return weighted / balanced, summed * balanced / squared, balanced**2 / squared


def start_values(radius: Values, summed: Values, exposure: Values) -> Values:
    """Return a guess at `peak_model`: a power law through the ends, and the peak where most rises above it."""
    rate = summed / exposure
    ends, middle, span = max(2, len(rate) // 5), (radius[0] + radius[-1]) / 2, radius[-1] - radius[0]
    floor = 1e-3 * max(rate.mean(), 1e-9)
    low, high = (
        max(summed[part].sum() / exposure[part].sum(), floor) for part in (slice(None, ends), slice(-ends, None))
    )
    inner, outer = max(radius[:ends].mean(), 0.5), radius[-ends:].mean()
    exponent = np.log(high / low) / np.log(outer / inner)
    level = low * (middle / inner) ** exponent
    excess = rate - level * (np.maximum(radius, 0.5) / middle) ** exponent
    width = max(span / 8, 1.0)
    kernel = np.exp(-((radius[:, None] - radius) ** 2) / (2 * width**2)) * exposure
    smooth = kernel @ excess / kernel.sum(axis=1)
    inside = slice(ends // 2, len(rate) - ends // 2)
    best = int(np.argmax(smooth[inside])) + inside.start
    height = max(smooth[best], 50 * floor)
    return np.array([level, exponent, height * width * np.sqrt(2 * np.pi), radius[best], np.log(width), 0.0])


def peak_fit(radius: Values, summed: Values, exposure: Values, background: Values | None = None) -> Fit | None:
    """Return the Poisson fit of a `peak_model` to a radial profile; see `radial_profile`."""
    signal = summed if background is None else np.maximum(summed - background, 0)
    if len(radius) < 7 or signal.sum() <= 0:
        return None
    start = start_values(radius, signal, exposure)
    # The pixels of a bin are spread over its width of one pixel: a variance of 1/12.
    model = peak_model(radius, (radius[0] + radius[-1]) / 2, blur=1 / 12)
    return poisson_fit(model, summed, exposure, start, precision=PRECISION, background=background)


def peak_quantities(parameters: Values, sigma: Values, *, inner: float, outer: float) -> dict[str, tuple[float, float]]:
    """Return position (pixels), full width at half maximum (pixels) and area (counts per pixel times pixels) with
    sigma.

    They are NaN where the area is below `SIGNIFICANT` sigma, or the fit left the range.

    Parameters
    ----------
    parameters, sigma
        See `bluesky_symdenoise.analysis.likelihood.peak_model`.
    """
    area, position = float(parameters[2]), float(parameters[3])
    width = FWHM * math.exp(min(float(parameters[4]), 20.0))
    determined = area > SIGNIFICANT * sigma[2] and inner < position < outer and 0.5 < width < outer - inner
    if not determined or not sigma[3] < (outer - inner) / 4:
        return dict.fromkeys(PEAK, (float("nan"), float("nan")))
    return {
        "peak_position": (position, float(sigma[3])),
        "peak_width": (width, width * float(sigma[4])),
        "peak_area": (area, float(sigma[2])),
    }
