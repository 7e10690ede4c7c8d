"""Relative exposure of a pixel: flat field, solid angle and polarisation, to be given and never divided out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.frame import as_exposure

if TYPE_CHECKING:
    from pyFAI.integrator.azimuthal import AzimuthalIntegrator


def exposure_from_geometry(
    geometry: AzimuthalIntegrator,
    shape: tuple[int, int],
    *,
    flat: ArrayLike | None = None,
    polarization: float | None = None,
    polarization_axis: float = 0.0,
) -> NDArray[np.float64]:
    """Return the relative exposure of each pixel of a detector as pyFAI describes it, tilted or not.

    It is flat field, times solid angle over that at normal incidence, times polarisation factor of the scattered beam.

    Parameters
    ----------
    geometry
        Geometry of pyFAI, such as ``pyFAI.load("detector.poni")``.
    shape
        (y, x) of the frames.
    flat
        (y, x) efficiency of each pixel; 0 where it is dead.
    polarization
        (I_h - I_v)/(I_h + I_v) of the beam, from -1 to 1 (0.99 at most synchrotrons); None leaves it out.
    polarization_axis
        Angle between the plane of polarisation and the detector's rows, radians.

    Returns
    -------
    ndarray
        (y, x) >= 0: the argument ``exposure`` of `bluesky_symdenoise.Denoiser`.

    Raises
    ------
    SymDenoiseError
        If the flat field or the degree of polarisation cannot be used, or the geometry is of another shape.
    """
    degree = _checked(polarization)
    solid_angle = np.asarray(geometry.solidAngleArray(shape), np.float64)
    if solid_angle.shape != shape:
        raise SymDenoiseError(
            f"geometry of a detector of {solid_angle.shape} pixels",
            rule=f"the frames have {shape}",
            remedy="use the .poni file of this detector and its binning",
        )
    exposure = as_exposure(flat, shape) * solid_angle
    if degree is None:
        return exposure
    # Multiply into a new array: pyFAI caches those that it returns.
    factor = np.asarray(geometry.polarization(shape, degree, polarization_axis, path="numpy"), np.float64)
    return exposure * np.maximum(factor, 0.0)


def exposure_of_flat_detector(
    shape: tuple[int, int],
    *,
    beam_center: tuple[float, float],
    distance: float,
    pixel_size: tuple[float, float],
    flat: ArrayLike | None = None,
    polarization: float | None = None,
    polarization_axis: float = 0.0,
) -> NDArray[np.float64]:
    """Return `exposure_from_geometry` for a detector perpendicular to the beam, without pyFAI.

    Solid angle cos^3(t) and polarisation [1 + cos^2(t) - P cos(2 (a + a0)) sin^2(t)]/2 at the scattering angle t and
    azimuth a from the rows.

    Parameters
    ----------
    beam_center
        (y, x) in pixels, the centre of the first pixel is 0.
    distance, pixel_size
        Sample to detector, and (y, x) of a pixel, in one unit.
    """
    degree = _checked(polarization)
    if not (distance > 0 and np.isfinite(distance)):
        raise SymDenoiseError(
            f"distance {distance}", rule="it must be positive", remedy="give it in the unit of pixel_size"
        )
    y, x = (
        (np.arange(size) - center) * pixel / distance
        for size, center, pixel in zip(shape, beam_center, pixel_size, strict=True)
    )
    y, x = y[:, None], x[None, :]
    cosine = 1 / np.sqrt(1 + y**2 + x**2)
    exposure = as_exposure(flat, shape) * cosine**3
    if degree is None:
        return exposure
    azimuth = np.arctan2(y, x) + polarization_axis
    return exposure * np.maximum(0.0, 0.5 * (1 + cosine**2 - degree * np.cos(2 * azimuth) * (1 - cosine**2)))


def _checked(polarization: float | None) -> float | None:
    if polarization is not None and not -1 <= polarization <= 1:
        raise SymDenoiseError(
            f"polarization {polarization}",
            rule="the degree of polarisation is from -1 (vertical) to 1 (horizontal)",
            remedy="give (I_h - I_v)/(I_h + I_v) of the beam, or None",
        )
    return polarization
