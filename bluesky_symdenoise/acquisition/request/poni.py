"""Geometry from a .poni file or a run: where the beam meets the detector, and how the detector is tilted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bluesky_symdenoise.catalog.report.profile import stated_geometry
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.symmetry import noticeable_tilt
from bluesky_symdenoise.physics.tilt import Tilt, met_at

if TYPE_CHECKING:
    from pyFAI.integrator.azimuthal import AzimuthalIntegrator


@dataclass(frozen=True)
class DetectorPosition:
    """Position of a detector in the beam.

    Attributes
    ----------
    beam_center
        (y, x) in pixels, the first pixel's centre is 0.
    tilt
        Tilt of the detector; None if it is too small to move any mate noticeably, or if it cannot be used.
    unused
        Why the tilt cannot be used, in one line.
    """

    beam_center: tuple[float, float]
    tilt: Tilt | None = None
    unused: str | None = None


def detector_position(
    stated: str | Path | Mapping[str, Any], *, key: str, shape: tuple[int, int] | None
) -> DetectorPosition:
    """Return the position of the detector of an image data key.

    Parameters
    ----------
    stated
        A .poni file, or its words as `bluesky_symdenoise.catalog.report.profile.stated_geometry` reads them.
    shape
        (y, x) of the images; None if there are no images, and thus no mates.

    Raises
    ------
    SymDenoiseError
        If the geometry cannot be read, or the beam does not meet the detector's plane.
    """
    geometry = _stated(stated, key, shape) if isinstance(stated, Mapping) else _loaded(stated)
    if geometry.detector.shape is None and shape is not None:
        # A generic detector without max_shape has the size of the images.
        geometry.detector.shape = shape
    center = _center(geometry, "the geometry of the run" if isinstance(stated, Mapping) else str(stated))
    if shape is None:
        return DetectorPosition(center)
    try:
        return DetectorPosition(center, noticeable_tilt(geometry, shape, center))
    except SymDenoiseError as error:
        return DetectorPosition(center, unused=f"{error.value}: {error.rule}")


def check_poni(path: str | Path) -> None:
    """Raise SymDenoiseError if a .poni file cannot be read, or the beam does not meet the detector's plane.

    What depends on the size of the images, which the file may lack, is checked with the first image.
    """
    geometry = _loaded(path)
    if geometry.detector.shape is not None or int(geometry.detector.orientation) not in (1, 2, 4):
        _center(geometry, str(path))


def poni_beam_center(path: str | Path) -> tuple[float, float]:
    """Return where the beam meets the detector of a .poni file: (y, x) in pixels, 0 = centre of the first pixel.

    Parameters
    ----------
    path
        File as pyFAI writes it; the detector's orientation is taken into account.

    Raises
    ------
    SymDenoiseError
        If the geometry cannot be read, or the beam does not meet the detector's plane.
    """
    return detector_position(path, key="", shape=None).beam_center


def _loaded(path: str | Path) -> AzimuthalIntegrator:
    from pyFAI.integrator.azimuthal import AzimuthalIntegrator

    geometry = AzimuthalIntegrator()
    try:
        geometry.load(str(path))
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise _unreadable(str(path), error) from error
    return geometry


def _stated(words: Mapping[str, Any], key: str, shape: tuple[int, int] | None) -> AzimuthalIntegrator:
    found = stated_geometry({"poni": words}, {}, key)
    if found is None:
        raise SymDenoiseError(
            f"poni = {dict(words)!r:.120}",
            rule="a geometry has dist, poni1, poni2, pixel1 and pixel2, numbers in metres",
            remedy="write these into the run, or name a .poni file",
        )
    return found.integrator(shape)


def _center(geometry: AzimuthalIntegrator, name: str) -> tuple[float, float]:
    detector = geometry.detector
    if detector.shape is None and int(detector.orientation) in (1, 2, 4):
        raise SymDenoiseError(
            name,
            rule=f"pixels are counted from another corner (orientation {int(detector.orientation)}), and the detector "
            "has no size",
            remedy="write max_shape into Detector_config, or give a beam centre",
        )
    try:
        y, x = met_at(geometry)
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise _unreadable(name, error) from error
    if not (np.isfinite(y) and np.isfinite(x)):
        raise SymDenoiseError(
            name, rule="the beam does not meet the detector's plane", remedy="use symmetry 1 for this detector"
        )
    return y, x


def _unreadable(name: str, error: Exception) -> SymDenoiseError:
    return SymDenoiseError(
        name,
        rule=f"it cannot be read as a .poni file ({error})",
        remedy="write it with pyFAI-calib2, or name a beam centre",
    )
