"""Orientation and degree of anisotropy from the second Fourier moment of a ring's azimuthal intensity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.analysis.annulus import Annulus, Values

#: Width, in pixels, of the radial bins, in each of which the azimuthal harmonics are fitted separately.
WIDTH = 2.0
#: A quantity is not determined if an isotropic ring would give as large a value with more than this probability.
CHANCE = 1e-3
#: Largest condition number, because of gaps, at which a radial bin still separates the harmonics.
CONDITION = 1e3


@dataclass(frozen=True)
class Moment:
    """The second moment g = 2 <I exp(2i phi)> / <I> of a ring, its mean over the whole area being <>.

    Attributes
    ----------
    value
        g; its modulus is the degree of anisotropy and half its argument the orientation.
    influence
        (n,) d g / d I of each pixel of the annulus.
    """

    value: complex
    influence: NDArray[np.complex128]

    def covariance(self, variance: Values) -> NDArray[np.float64]:
        """Return the covariance of real and imaginary part, (2, 2), for independent pixels of this variance, (n,)."""
        parts = np.stack([self.influence.real, self.influence.imag])
        return (parts * variance) @ parts.T


def second_moment(annulus: Annulus, intensity: Values, exposure: Values) -> Moment | None:
    """Return the moment of intensities and their exposure, (n,) each; None if too little was measured or counted.

    In radial bins, 1, cos 2phi, sin 2phi, cos 4phi, sin 4phi and a parabola in the radius are fitted by least squares,
    so that gaps and the grid of pixels are accounted for. The weights of `Annulus.balance` keep higher harmonics
    from leaking in. The bins are added by their area.
    """
    bins = ((annulus.radius - annulus.radius.min()) / WIDTH).astype(int)
    design = np.stack(
        [np.ones_like(annulus.azimuth), *(f(k * annulus.azimuth) for k in (2, 4) for f in (np.cos, np.sin))]
    )
    weight = annulus.balance(exposure)
    mean, moment = np.zeros_like(intensity), np.zeros(intensity.shape, np.complex128)
    used = 0
    for index in range(bins.max() + 1):
        here = bins == index
        away = (annulus.radius[here] - annulus.radius[here].mean()) / WIDTH
        x = np.vstack([design[:, here], away, away**2])
        normal = (x * (exposure * weight)[here]) @ x.T
        if not normal[0, 0] > 0 or np.linalg.cond(normal) > CONDITION:
            continue
        used += 1
        solved = np.linalg.solve(normal, x * weight[here]) * annulus.radius[here].mean()
        mean[here], moment[here] = solved[0], solved[1] + 1j * solved[2]
    level = float(mean @ intensity)
    if used <= bins.max() / 2 or level <= 0:
        return None
    value = complex(moment @ intensity) / level
    return Moment(value, np.asarray((moment - value * mean) / level, np.complex128))


def orientation_and_anisotropy(value: complex, covariance: NDArray[np.float64]) -> dict[str, tuple[float, float]]:
    """Return orientation (degrees, [0, 180), from the detector's x axis towards growing y) and degree of anisotropy.

    Each has its sigma. Noise alone lengthens g: |g| is taken as sqrt(|g|^2 - variance across), unbiased to second
    order.
    They are NaN where an isotropic ring would give as large a g by chance more often than `CHANCE`.

    Parameters
    ----------
    value, covariance
        Second moment g, and that of its real and imaginary part, (2, 2).
    """
    nothing = {name: (float("nan"), float("nan")) for name in ("orientation", "anisotropy")}
    if not (np.isfinite(value) and np.isfinite(covariance).all() and np.linalg.det(covariance) > 0):
        return nothing
    g = np.array([value.real, value.imag])
    if g @ np.linalg.solve(covariance, g) < -2 * np.log(CHANCE):
        return nothing
    unit = g / abs(value)
    normal = np.array([-unit[1], unit[0]])
    along, across = unit @ covariance @ unit, normal @ covariance @ normal
    degree = np.sqrt(max(abs(value) ** 2 - across, along))
    return {
        "orientation": (
            float(np.rad2deg(np.angle(value)) / 2 % 180),
            float(np.rad2deg(np.sqrt(across)) / (2 * degree)),
        ),
        "anisotropy": (float(degree), float(np.sqrt(along))),
    }
