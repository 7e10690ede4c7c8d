"""Simulated powder patterns, and the way from an image to the pair distribution function G(r)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from pyFAI.detectors import Detector
from pyFAI.integrator.azimuthal import AzimuthalIntegrator

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.symmetry import Symmetry

Values = NDArray[np.float64]

SIZE = 512
CENTER = (253.5, 259.5)
#: All in metres: a flat panel of 41 cm with 512 pixels per side, up to 26 per angstrom at its nearest edge, at 77 keV.
PIXEL, DISTANCE, WAVELENGTH = 0.8e-3, 0.25, 0.1617e-10
Q_RANGE, BINS = (1.0, 25.0), 300
#: Distances in angstroms at which errors of G(r) are evaluated.
R = np.linspace(1.5, 20, 371)
BEAM_STOP = 10
POLARISATION = 0.99
#: Lattice constant of an f.c.c. metal, and radius of the spherical particle, in angstroms.
LATTICE, RADIUS = 3.92, 12.0


@dataclass(frozen=True)
class Powder:
    """A powder on a flat detector.

    Attributes
    ----------
    spread
        Mean square displacement of two atoms in square angstroms: constant part, and part per angstrom of distance.
    """

    name: str
    spread: tuple[float, float]

    @cached_property
    def geometry(self) -> AzimuthalIntegrator:
        """Geometry of the detector."""
        y, x = ((each + 0.5) * PIXEL for each in CENTER)
        detector = Detector(PIXEL, PIXEL, max_shape=(SIZE, SIZE))
        return AzimuthalIntegrator(dist=DISTANCE, poni1=y, poni2=x, detector=detector, wavelength=WAVELENGTH)

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """Bad pixels: the beam stop and its arm."""
        y, x = np.ogrid[:SIZE, :SIZE]
        arm = (np.abs(x - CENTER[1]) < 3) & (y > CENTER[0])
        return np.asarray((np.hypot(y - CENTER[0], x - CENTER[1]) < BEAM_STOP) | arm)

    @property
    def symmetry(self) -> Symmetry:
        """Symmetry of a powder's pattern, as far as polarisation preserves it."""
        return Symmetry("2mm", CENTER)

    @cached_property
    def rate(self) -> Values:
        """Rate (y, x), with mean 1 over the good pixels."""
        geometry = self.geometry
        q = geometry.array_from_unit((SIZE, SIZE), "center", "q_A^-1")
        rate = scattered(q, structure_factor(q, self.spread))
        rate = rate * geometry.solidAngleArray((SIZE, SIZE)) * geometry.polarization((SIZE, SIZE), POLARISATION)
        return np.asarray(rate / rate[~self.mask].mean(), np.float64)

    def pair_distribution(self, image: Values, q_max: float = Q_RANGE[1]) -> Values:
        """Return G(r) at `R`, per square angstrom: azimuthal integration by pyFAI, the sine transform by PyStoG.

        Parameters
        ----------
        image
            (y, x) counts, or expected counts; NaN is masked.
        q_max
            End of the transform, per angstrom.

        Raises
        ------
        SymDenoiseError
            If PyStoG is not installed.
        """
        try:
            from pystog import Transformer
        except ImportError as error:
            raise SymDenoiseError(
                "G(r)", rule="needs PyStoG", remedy="pip install 'bluesky-symdenoise[bench]'"
            ) from error
        integrated = self.geometry.integrate1d(
            np.nan_to_num(image),
            BINS,
            unit="q_A^-1",
            radial_range=Q_RANGE,
            mask=self.mask | ~np.isfinite(image),
            polarization_factor=POLARISATION,
            method=("no", "csr", "cython"),
        )
        q, intensity = (np.asarray(each, np.float64) for each in (integrated.radial, integrated.intensity))
        # At large q there is no interference: scale so that S is 1 there.
        far = q > q[-1] * 0.7
        scale = intensity[far].sum() / scattered(q[far], 1.0).sum()
        factor = (intensity / scale - scattered(q, 0.0)) / (scattered(q, 1.0) - scattered(q, 0.0))
        # Lorch's window: without it the cut at `q_max` ripples through all of G(r).
        known = q <= q_max
        windowed = 1 + (factor - 1) * np.sinc(q / q_max)
        _, found, _ = Transformer().S_to_G(q[known], windowed[known], R)
        return np.asarray(found, np.float64)


def scattered(q: Values, structure: Values | float) -> Values:
    """Return approximate coherent and Compton scattering of a heavy atom, in units of the forward coherent one."""
    form = (1 + (q / 8) ** 2) ** -1.5
    return np.asarray(form * structure + (1 - form) / 78, np.float64)


def structure_factor(q: Values, spread: tuple[float, float]) -> Values:
    """Return Debye's sum over the pairs of a sphere of an f.c.c. metal."""
    span = int(np.ceil(2 * RADIUS / LATTICE))
    cell = np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2
    atoms = (np.stack(np.meshgrid(*[np.arange(-span, span)] * 3), -1).reshape(-1, 1, 3) + cell).reshape(-1, 3) * LATTICE
    atoms = atoms[np.linalg.norm(atoms, axis=1) <= RADIUS]
    squares = ((atoms[:, None] - atoms) ** 2).sum(axis=-1)
    shells, pairs = np.unique(np.round(squares[np.triu_indices(len(atoms), 1)], 6), return_counts=True)
    grid = np.linspace(0, q.max(), 4000)
    structure = np.ones_like(grid)
    for distance, count in zip(np.sqrt(shells), pairs, strict=True):
        damped = np.exp(-(spread[0] + spread[1] * distance) * grid**2 / 2)
        structure += 2 * count / len(atoms) * damped * np.sinc(grid * distance / np.pi)
    return np.interp(q, grid, structure)


def powders() -> list[Powder]:
    """Return a nanocrystal, and a glass with the same nearest neighbours, whose order is lost with distance."""
    return [Powder("nanocrystal", (0.01, 0.0)), Powder("glass", (0.01, 0.02))]
