"""Mean counts around the beam, by pyFAI: against q if the geometry is known, else against the radius in pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pyFAI.integrator.azimuthal import AzimuthalIntegrator

#: Maximum number of bins; narrower ones would hold too few pixels.
MOST_BINS = 300


@dataclass(frozen=True)
class Geometry:
    """Position of the detector, in the terms and units (m, rad) of pyFAI's ``.poni`` files; lengths are positive."""

    dist: float
    poni1: float
    poni2: float
    pixel1: float
    pixel2: float
    wavelength: float | None
    rot1: float = 0.0
    rot2: float = 0.0
    rot3: float = 0.0
    orientation: int = 3

    def integrator(self, shape: tuple[int, int] | None) -> AzimuthalIntegrator:
        """Return pyFAI's integrator for images of this shape (y, x)."""
        from pyFAI.detectors import Detector
        from pyFAI.integrator.azimuthal import AzimuthalIntegrator

        detector = Detector(self.pixel1, self.pixel2, max_shape=shape, orientation=self.orientation)
        stands = (self.dist, self.poni1, self.poni2, self.rot1, self.rot2, self.rot3)
        return AzimuthalIntegrator(*stands, detector=detector, wavelength=self.wavelength)


@dataclass(frozen=True)
class Profile:
    """Mean counts of the pixels of each ring.

    Attributes
    ----------
    radial
        q in 1/nm, or the radius in pixels.
    unit
        Label of the unit.
    raw, error
        Mean raw counts per pixel and their Poisson error, sqrt(N) / pixels with N at least 1; None without raw counts.
    denoised
        Mean denoised counts of the same pixels.
    """

    radial: NDArray[np.float64]
    unit: str
    raw: NDArray[np.float64] | None
    error: NDArray[np.float64] | None
    denoised: NDArray[np.float64]


def stated_geometry(start: Mapping[str, Any], configuration: Mapping[str, Any], key: str) -> Geometry | None:
    """Return the geometry that a run's metadata state for an image data key, or None.

    It is looked for in this order:

    - ``start["poni"]``: a dict in pyFAI's terms and SI units, ``dist`` (or ``distance``), ``poni1``, ``poni2``,
      ``rot1``, ``rot2``, ``rot3``, ``wavelength``, ``pixel1``, ``pixel2``, ``orientation`` (or these in
      ``detector_config``); or a dict of such dicts by data key. Names of detectors and files in it are ignored.
    - NeXus terms of NXdetector and NXbeam, ``distance``, ``x_pixel_size``, ``y_pixel_size`` (m), ``beam_center_x``,
      ``beam_center_y`` (pixels, first pixel 0) and ``incident_wavelength`` (angstrom): in ``start["geometry"]``, or in
      the configuration of the raw stream as ``<key>_distance`` and so on.
    """
    stated = start.get("poni")
    if isinstance(stated, Mapping):
        chosen = stated[key] if isinstance(stated.get(key), Mapping) else stated
        sizes = chosen.get("detector_config")
        found = _from_poni({**sizes, **chosen} if isinstance(sizes, Mapping) else chosen)
        if found is not None:
            return found
    written = start.get("geometry")
    if isinstance(written, Mapping) and (found := _from_nexus(written)) is not None:
        return found
    prefix = f"{key}_"
    configured = {
        name.removeprefix(prefix): value
        for device in configuration.values()
        for name, value in device.get("data", {}).items()
        if name.startswith(prefix)
    }
    return _from_nexus(configured)


def _positive(value: float | None) -> float | None:
    return value if value is not None and value > 0 else None


def _from_poni(stated: Mapping[str, Any]) -> Geometry | None:
    given = {str(name).lower(): _number(value) for name, value in stated.items()}
    dist = _positive(given.get("dist") or given.get("distance"))
    pixel1, pixel2 = _positive(given.get("pixel1")), _positive(given.get("pixel2"))
    poni1, poni2 = given.get("poni1"), given.get("poni2")
    # pyFAI's number for the corner with the first pixel; 3 is bottom right.
    orientation = given.get("orientation", 3.0)
    if dist is None or poni1 is None or poni2 is None or pixel1 is None or pixel2 is None:
        return None
    if orientation not in (1, 2, 3, 4):
        return None
    return Geometry(
        dist=dist,
        poni1=poni1,
        poni2=poni2,
        pixel1=pixel1,
        pixel2=pixel2,
        wavelength=_positive(given.get("wavelength")),
        rot1=given.get("rot1") or 0.0,
        rot2=given.get("rot2") or 0.0,
        rot3=given.get("rot3") or 0.0,
        orientation=int(orientation),
    )


def _from_nexus(stated: Mapping[str, Any]) -> Geometry | None:
    given = {str(name): _number(value) for name, value in stated.items()}
    dist, pixel1, pixel2 = (_positive(given.get(name)) for name in ("distance", "y_pixel_size", "x_pixel_size"))
    y, x = given.get("beam_center_y"), given.get("beam_center_x")
    if dist is None or y is None or x is None or pixel1 is None or pixel2 is None:
        return None
    angstrom = _positive(given.get("incident_wavelength"))
    return Geometry(
        dist=dist,
        # pyFAI counts from the edge of the first pixel.
        poni1=(y + 0.5) * pixel1,
        poni2=(x + 0.5) * pixel2,
        pixel1=pixel1,
        pixel2=pixel2,
        wavelength=None if angstrom is None else angstrom * 1e-10,
    )


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        return None
    return float(value)


def profile(
    counts: NDArray[Any] | None,
    intensity: NDArray[Any],
    measured: NDArray[np.bool_],
    *,
    geometry: Geometry | None,
    beam_center: tuple[float, float] | None,
    lift: NDArray[np.float32] | None = None,
) -> Profile | None:
    """Return mean counts in rings around the beam, uncorrected; None without geometry and beam centre.

    Parameters
    ----------
    counts, intensity
        (y, x) of one frame.
    measured
        (y, x), True where the frame has a count: raw and denoised are averaged over these pixels only.
    geometry, beam_center
        The geometry, with a wavelength, gives q; else the beam centre (y, x) gives the radius in pixels.
    lift
        (y, x) variance of an integrating detector's read noise, which `counts` holds beside the photons.
    """
    use = measured & np.isfinite(intensity)
    if not use.any():
        return None
    if geometry is not None and geometry.wavelength is not None:
        stands, unit, label = geometry, "q_nm^-1", "q (1/nm)"
    elif beam_center is not None:
        # With pixels of one millimetre, pyFAI's radius in mm is the radius in pixels.
        y, x = ((center + 0.5) * 1e-3 for center in beam_center)
        stands, unit, label = Geometry(1.0, y, x, 1e-3, 1e-3, 1e-10), "r_mm", "radius (pixels)"
    else:
        return None
    integrator = stands.integrator((intensity.shape[0], intensity.shape[1]))
    bins = min(MOST_BINS, max(10, max(intensity.shape) // 4))

    def integrated(image: NDArray[Any]) -> Any:
        return integrator.integrate1d_ng(
            np.where(use, image, 0).astype(np.float32),
            bins,
            mask=~use,
            unit=unit,
            correctSolidAngle=False,
            method=("no", "histogram", "cython"),
        )

    smooth = integrated(intensity)
    pixels = np.asarray(smooth.count, float)
    some = pixels > 0
    raw = error = None
    if counts is not None:
        total = np.asarray(integrated(counts).sum_signal, float)[some]
        noise = 0.0 if lift is None else np.asarray(integrated(lift).sum_signal, float)[some]
        raw, error = (total - noise) / pixels[some], np.sqrt(np.maximum(total, 1)) / pixels[some]
    return Profile(
        radial=np.asarray(smooth.radial, float)[some],
        unit=label,
        raw=raw,
        error=error,
        denoised=np.asarray(smooth.sum_signal, float)[some] / pixels[some],
    )
