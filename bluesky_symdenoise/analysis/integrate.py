"""Azimuthal integration of a denoised frame, with errors that account for correlated pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.frame import as_exposure, as_mask, frame_from_counts
from bluesky_symdenoise.physics.symmetry import Symmetry, center_without

if TYPE_CHECKING:
    import xarray as xr
    from pyFAI.integrator.azimuthal import AzimuthalIntegrator

    from bluesky_symdenoise.denoiser.infer import Denoiser

#: Pixels are not split between bins, so that each count is counted once.
METHOD = ("no", "histogram", "cython")


def integrate(
    denoiser: Denoiser,
    counts: ArrayLike,
    integrator: AzimuthalIntegrator,
    *,
    bins: int,
    unit: str = "q_nm^-1",
    azimuth_range: tuple[float, float] | None = None,
    mask: ArrayLike | None = None,
    exposure: ArrayLike | None = None,
    symmetry: str | Symmetry = "auto",
    beam_center: ArrayLike | None = None,
    replicates: int = 32,
    seed: int = 0,
) -> xr.Dataset:
    """Denoise a frame and integrate it around the beam, with the covariance of the bins.

    The errors are those of a parametric bootstrap: frames are drawn from Poisson laws whose means are the denoised
    frame, and each goes through the same denoiser, with the same symmetry, and the same integration. How far their
    profiles are from the frame's own holds both the noise, correlated from pixel to pixel, and what smoothing does to
    edges. Errors of pixels taken as independent are several times too small. Pixels that were not measured are
    ignored.

    Parameters
    ----------
    counts
        (y, x) counts of one frame.
    integrator
        pyFAI's integrator, for the geometry; its polarisation and solid angle divide the binned sums, not the counts.
    bins
        Number of bins, of equal width.
    unit
        Unit as pyFAI writes it, ``q_nm^-1``, ``2th_deg``, ``r_mm``, ...
    azimuth_range
        Sector in degrees, as pyFAI takes it.
    mask, exposure, symmetry, beam_center
        See `Denoiser`; the exposure divides the binned sums.
    replicates
        Frames drawn, 2 or more: sigma is known to 1 / sqrt(2 replicates). Each takes as long as denoising.
    seed
        Seed of the draws.

    Returns
    -------
    xarray.Dataset
        By bin ``radial`` (coordinate in `unit`): ``intensity``, counts per pixel of unit exposure; ``sigma``, its rms
        error; ``bias``, the part of sigma that smoothing makes, with its sign (not subtracted);
        ``sigma_independent``, what the pixels' sigma would give if their errors were independent, for comparison only;
        ``covariance`` ``(radial, radial_)``, mean products of errors, of rank `replicates` at most; and ``replicates``
        (replicate, radial), to be fitted one by one where a fit's errors are wanted. NaN in bins without pixels.

    Raises
    ------
    SymDenoiseError
        If there are fewer than two replicates, or the frame cannot be used.
    """
    if replicates < 2:
        raise SymDenoiseError(
            f"replicates={replicates}",
            rule="a standard deviation needs at least two replicates",
            remedy="give 2 or more",
        )
    measured = np.asarray(counts)
    if measured.ndim != 2:
        raise SymDenoiseError(
            f"counts of shape {measured.shape}", rule="one frame is integrated at a time", remedy="give counts[i]"
        )
    shape = (measured.shape[0], measured.shape[1])
    bad, relative = as_mask(mask, shape), as_exposure(exposure, shape)
    resolved = denoiser.resolve(measured, mask=bad, exposure=relative, symmetry=symmetry, beam_center=beam_center)
    spare = center_without(resolved, beam_center)
    result = denoiser(measured, mask=bad, exposure=relative, symmetry=resolved, beam_center=spare)
    bad = frame_from_counts(measured, mask=bad, exposure=relative).mask | (result.defect.values > 0)
    intensity = np.where(bad, 0.0, result.intensity.values)

    def profile(
        image: NDArray[np.float64], variance: NDArray[np.float64] | None = None
    ) -> tuple[NDArray[np.float64], ...]:
        """Return centres of the bins, mean of the image, and its error from the variance of independent pixels."""
        done = integrator.integrate1d_ng(
            image,
            bins,
            mask=bad,
            flat=relative,
            variance=variance,
            azimuth_range=azimuth_range,
            unit=unit,
            method=METHOD,
            dummy=np.nan,
        )
        error = np.full(bins, np.nan) if done.sigma is None else done.sigma
        return done.radial, np.where(done.count > 0, done.intensity, np.nan), error

    radial, whole, independent = profile(intensity, np.where(bad, 0.0, result.sigma.values.astype(float) ** 2))
    if not np.isfinite(radial).any():
        raise SymDenoiseError(
            f"unit {unit!r}",
            rule="the integrator cannot compute this unit; q and d need its wavelength",
            remedy="set integrator.wavelength in metres, or use r_mm or 2th_deg",
        )
    rng = np.random.default_rng(seed)
    drawn = np.empty((replicates, bins))
    for row in drawn:
        again = denoiser(rng.poisson(intensity), mask=bad, exposure=relative, symmetry=resolved, beam_center=spare)
        row[:] = profile(np.where(bad, 0.0, again.intensity.values))[1]
    off = drawn - whole
    covariance = off.T @ off / replicates
    import xarray as xr

    return xr.Dataset(
        {
            "intensity": ("radial", whole),
            "sigma": ("radial", np.sqrt(covariance.diagonal())),
            "bias": ("radial", off.mean(axis=0)),
            "sigma_independent": ("radial", independent),
            "covariance": (("radial", "radial_"), covariance),
            "replicates": (("replicate", "radial"), drawn),
        },
        coords={"radial": ("radial", radial, {"units": unit})},
        attrs=result.attrs | {"replicates": replicates, "seed": seed},
    )
