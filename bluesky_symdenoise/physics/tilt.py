"""Tilted flat detectors: from their pixels to scattering directions and back."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.errors import SymDenoiseError

if TYPE_CHECKING:
    from pyFAI.integrator.azimuthal import AzimuthalIntegrator

#: Largest tilt, in degrees: beyond it, too few pixels have a pixel of their own as a mate.
STEEPEST = 60.0
#: Directions with a larger tangent of the scattering angle (89.4 degrees) are not mapped onto the plane.
FURTHEST = 100.0

_WRITTEN = re.compile(r"([0-9]{1,2}(?:\.[0-9]{1,3})?):(-?[0-9]{1,3}(?:\.[0-9]{1,3})?):([0-9]{1,8}(?:\.[0-9]{1,2})?)")


@dataclass(frozen=True)
class Tilt:
    """Tilt of a flat detector of square pixels.

    A pixel at (y, x) from where the beam meets the detector lies at P = (a, b cos t, L + b sin t) from the sample:
    a along the axis of the tilt t, b across, the third along the beam, all in pixels. Its scattering direction meets
    the plane through the same point at a right angle to the beam at u = L (a, b cos t)/(L + b sin t). Point groups
    act there; that plane is the detector turned back by the tilt alone.

    Attributes
    ----------
    degrees
        The tilt t, above 0 and at most 60.
    axis
        Azimuth of its axis in the detector's plane, degrees from x towards y. The side at 90 degrees more is the one
        further away from the sample.
    distance
        Distance from the sample to the detector along the beam, in pixels.
    """

    degrees: float
    axis: float
    distance: float

    def __str__(self) -> str:
        """Return ``TILT:AXIS:DISTANCE``: degrees to a thousandth, pixels to a hundredth."""
        return f"{self.degrees:.3f}:{self.axis:.3f}:{self.distance:.2f}"

    @property
    def turn(self) -> tuple[float, float]:
        """Cosine and sine of the axis."""
        return float(np.cos(np.radians(self.axis))), float(np.sin(np.radians(self.axis)))

    @property
    def cos_sin(self) -> tuple[float, float]:
        """Cosine and sine of the tilt."""
        return float(np.cos(np.radians(self.degrees))), float(np.sin(np.radians(self.degrees)))

    def flattened(self, dy: NDArray[Any], dx: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return where directions of pixels (dy, dx) from the beam meet the plane: (uy, ux), NaN if sideways."""
        (along, across), (cos, sin) = self.components(dy, dx), self.cos_sin
        depth = self.distance + sin * across
        across = cos * across
        # Excludes directions sideways and behind the sample.
        forward = depth * FURTHEST > np.hypot(along, across)
        scale = np.divide(self.distance, depth, out=np.full(depth.shape, np.nan), where=forward)
        return self._joined(along * scale, across * scale)

    def unflattened(self, uy: NDArray[Any], ux: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the place on the detector for one on the plane of `flattened`; NaN if its direction misses it."""
        (along, across), (cos, sin) = self.components(uy, ux), self.cos_sin
        slope = self.distance * cos - across * sin
        across = np.divide(across * self.distance, slope, out=np.full(slope.shape, np.nan), where=slope > 0)
        return self._joined(along * (1 + across * (sin / self.distance)), across)

    def solid_angle(self, shape: tuple[int, int], beam_center: tuple[float, float]) -> NDArray[np.float64]:
        """Return each pixel's solid angle over that where the beam meets the detector, (y, x): L^3/|P|^3."""
        return _solid_angle(self, shape, beam_center)

    def components(self, dy: NDArray[Any], dx: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return components along and across the axis."""
        cos, sin = self.turn
        return dx * cos + dy * sin, dy * cos - dx * sin

    def _joined(self, along: NDArray[Any], across: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return (y, x) of components along and across the axis."""
        cos, sin = self.turn
        return along * sin + across * cos, along * cos - across * sin


@lru_cache(2)
def _solid_angle(tilt: Tilt, shape: tuple[int, int], beam_center: tuple[float, float]) -> NDArray[np.float64]:
    y, x = (np.arange(size) - center for size, center in zip(shape, beam_center, strict=True))
    (along, across), (cos, sin) = tilt.components(y[:, None], x[None, :]), tilt.cos_sin
    square = (along**2 + (cos * across) ** 2 + (tilt.distance + sin * across) ** 2) / tilt.distance**2
    angle = np.asarray(1 / (square * np.sqrt(square)))
    angle.flags.writeable = False
    return angle


@lru_cache(64)
def split_tilt(symbol: str) -> tuple[str, Tilt | None]:
    """Return the point group and the tilt that follows it: ``2mm~15:90:1200`` is ``2mm`` at 15 degrees.

    Raises
    ------
    SymDenoiseError
        If the text after ``~`` is not a tilt.
    """
    group, sign, written = symbol.partition("~")
    if not sign:
        return group, None
    found = _WRITTEN.fullmatch(written)
    values = None if found is None else tuple(float(value) for value in found.groups())
    if values is None or not (0 < values[0] <= STEEPEST and values[2] > 0):
        raise SymDenoiseError(
            f"symmetry {symbol!r}",
            rule="a tilt is GROUP~TILT:AXIS:DISTANCE, more than 0 and at most 60 degrees about an axis at so many "
            "degrees from x towards y, with at most three decimals, and in pixels with at most two",
            remedy=f"give {group or '2mm'}~15:90:1200, or Symmetry.on(geometry, {group or '2mm'!r})",
        )
    return group, Tilt(*values)


def on_tilt(symbol: str, tilt: Tilt | None) -> str:
    """Return the symbol on a tilted detector; ``1``, and a symbol with a tilt already, are unchanged."""
    return symbol if tilt is None or symbol == "1" or "~" in symbol else f"{symbol}~{tilt}"


def met_at(geometry: AzimuthalIntegrator) -> tuple[float, float]:
    """Return where the beam meets a pyFAI detector: (y, x) in pixels, the centre of the first pixel is 0."""
    fit2d = geometry.getFit2D()
    y, x = float(fit2d["centerY"]) - 0.5, float(fit2d["centerX"]) - 0.5
    # pyFAI's Fit2D centre is for orientation 3 (bottom right), whatever the detector's is.
    orientation = int(geometry.detector.orientation)
    if orientation in (1, 2):
        y = geometry.detector.shape[0] - 1 - y
    if orientation in (1, 4):
        x = geometry.detector.shape[1] - 1 - x
    return y, x


def tilt_of(geometry: AzimuthalIntegrator) -> Tilt | None:
    """Return the tilt of a pyFAI detector, rounded as in a symbol; None below half a thousandth.

    Pixels that are not square are treated as squares of the same area.

    Raises
    ------
    SymDenoiseError
        If the detector is not flat, is tilted by more than 60 degrees, or the beam does not meet it.
    """
    detector = geometry.detector
    degrees = float(np.degrees(np.arccos(np.cos(geometry.rot1) * np.cos(geometry.rot2))))
    if degrees < 5e-4:
        return None
    if not (detector.IS_FLAT and detector.uniform_pixel):
        raise unusable(degrees, "its pixels are not on one plane, or not at equal distances")
    # Three pixels give the positions of all; pyFAI takes the detector's orientation into account.
    corners = np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0])
    along, first, second = (np.asarray(each, np.float64) for each in geometry.calc_pos_zyx(None, *corners))
    at = np.stack([first, second, along], axis=1)
    rows, columns = at[1] - at[0], at[2] - at[0]
    # The third component of the point where the beam meets the detector is its distance.
    y, x = np.linalg.solve(np.stack([rows[:2], columns[:2]], axis=1), -at[0, :2])
    height, width = (float(np.linalg.norm(side)) for side in (rows, columns))
    distance = float(at[0, 2] + y * rows[2] + x * columns[2]) / np.sqrt(height * width)
    if degrees > STEEPEST or not 0 < distance < 1e8:
        raise unusable(degrees, "mates are found up to 60 degrees, where the beam meets the detector")
    axis = float(np.degrees(np.arctan2(-columns[2] / width, rows[2] / height))) % 360
    return split_tilt(f"~{Tilt(degrees, axis, distance)}")[1]


def unusable(degrees: float, rule: str) -> SymDenoiseError:
    """Return why a tilt cannot be used."""
    return SymDenoiseError(
        f"detector tilted by {degrees:.3f} degrees", rule=rule, remedy="use symmetry 1 for this detector"
    )
