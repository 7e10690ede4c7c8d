"""All estimators of the quantities of a ring, from one frame of a pattern, and their distance to the truth."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bluesky_symdenoise.analysis.estimate import Estimate, Observed, from_counts, from_denoised, from_likelihood
from bluesky_symdenoise.bench.simulated.patterns import QUANTITIES, Image, Pattern
from bluesky_symdenoise.bench.truth.savings import FIT, OURS, PLAIN, RAW
from bluesky_symdenoise.denoiser.infer import Denoiser

METHODS = (RAW, PLAIN, OURS, FIT)


def estimates(
    pattern: Pattern, counts: Image, denoiser: Denoiser, replicates: int, rng: np.random.Generator
) -> dict[str, Estimate]:
    """Return the estimate of each of `METHODS` from a frame (y, x)."""
    n, annulus = pattern.exposure, pattern.annulus

    def denoise(image: Image) -> Image:
        result = denoiser(image, mask=n == 0, symmetry=pattern.symmetry)
        return result["intensity"].values.astype(np.float64)

    observed = Observed(counts, n, np.zeros_like(n))
    intensity = denoise(counts)
    return {
        RAW: from_counts(annulus, observed),
        PLAIN: as_it_is(pattern, intensity),
        OURS: from_denoised(annulus, intensity, observed, denoise, replicates=replicates, rng=rng),
        FIT: from_likelihood(annulus, observed),
    }


def as_it_is(pattern: Pattern, image: Image) -> Estimate:
    """Return the estimate from a denoised image (y, x), with expected counts taken as counts; NaN is left out."""
    known = np.isfinite(image).astype(np.float64)
    return from_counts(pattern.annulus, Observed(np.nan_to_num(image), known, np.zeros_like(known)))


def errors(pattern: Pattern, estimate: Estimate, truth: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """Return the error of each quantity and the sigma that is claimed; NaN where not determined."""
    found = estimate.quantities(inner=pattern.inner, outer=pattern.outer)
    away: dict[str, tuple[float, float]] = {}
    for quantity in QUANTITIES:
        value, sigma = found[quantity]
        error = value - truth[quantity]
        away[quantity] = ((error + 90) % 180 - 90 if quantity == "orientation" else error, sigma)
    return away
