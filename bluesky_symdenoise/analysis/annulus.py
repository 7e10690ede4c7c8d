"""Pixels between two radii about the beam centre."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.errors import SymDenoiseError

Values = NDArray[np.float64]

#: Cells for balancing azimuths: the maximum number in half a turn, and the minimum length along the arc in pixels.
CELLS, ARC = 18, 4.0
#: Cells with less than this fraction of the usual exposure are left out: they would add more noise than information.
LEAST = 0.25
#: A cell with more than this fraction of the pixels of its area counts as completely on the detector.
WHOLE = 0.7


@dataclass(frozen=True)
class Annulus:
    """Pixels between two radii.

    Attributes
    ----------
    where
        (y, x) booleans, n of them True.
    radius
        (n,) pixels.
    azimuth
        (n,) radians, from the detector's x axis towards growing y.
    """

    where: NDArray[np.bool_]
    radius: Values
    azimuth: Values

    @classmethod
    def about(cls, beam_center: tuple[float, float], shape: tuple[int, int], *, inner: float, outer: float) -> Annulus:
        """Return the pixels whose centres are at least `inner` and less than `outer` pixels from the beam centre.

        Raises
        ------
        SymDenoiseError
            If there is no such pixel.
        """
        y, x = np.ogrid[: shape[0], : shape[1]]
        y, x = y - beam_center[0], x - beam_center[1]
        radius = np.hypot(y, x)
        where = (radius >= inner) & (radius < outer)
        if not where.any():
            raise SymDenoiseError(
                f"ring of {inner:g} to {outer:g} pixels about {beam_center}",
                rule=f"it contains no pixel of a detector of {shape[0]} x {shape[1]}",
                remedy="give radii in pixels, inner below outer",
            )
        return cls(where, radius[where], np.arctan2(y + 0 * x, x + 0 * y)[where])

    def of(self, image: NDArray[np.generic]) -> Values:
        """Return the annulus's pixels of an image (y, x), as (n,) floats."""
        return image[self.where].astype(np.float64)

    def balance(self, exposure: Values) -> Values:
        """Return weights, (n,), that give all azimuths at a radius equal influence, whatever their exposures.

        A pixel and its mate under inversion count as one azimuth, so that a gap whose mates were measured causes no
        bias. Azimuths without a measured pixel are left out.
        """
        rings = (self.radius - self.radius.min()).astype(int)
        radius = self.radius.min() + rings + 0.5
        around = np.clip(radius * np.pi / ARC, 1, CELLS).astype(int)
        cells = rings * CELLS + (np.mod(self.azimuth, np.pi) / np.pi * around).clip(max=around - 1).astype(int)
        pixels, total = np.bincount(cells)[cells], np.bincount(cells, exposure)[cells]
        # A cell that extends beyond the detector lacks pixels: use the number of pixels that its area would hold.
        area = 2 * np.pi * radius / around
        pixels = np.where(pixels > WHOLE * area, pixels, area)
        usual = pixels * np.median(exposure[exposure > 0]) if (exposure > 0).any() else pixels
        return np.where(total > LEAST * usual, usual / np.maximum(total, 1e-300), 0.0)
