"""Rates of simulated scattering: what detectors see, from flat fields to speckle."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Rate = NDArray[np.float64]
#: (generator, shape) -> rate (y, x) of any mean.
Scene = Callable[[np.random.Generator, tuple[int, int]], Rate]

#: Largest rate of one pixel, in counts.
MOST = 1e9


def _radius(rng: np.random.Generator, shape: tuple[int, int]) -> Rate:
    """Return the distance from a centre that may be off the detector."""
    y, x = np.indices(shape)
    return np.hypot(y - rng.uniform(-0.1, 1.1) * shape[0], x - rng.uniform(-0.1, 1.1) * shape[1])


def flat(rng: np.random.Generator, shape: tuple[int, int]) -> Rate:
    """Return one rate."""
    return np.ones(shape)


def rings(rng: np.random.Generator, shape: tuple[int, int]) -> Rate:
    """Return 4 to 14 rings, 1 to 3 pixels wide, on a background."""
    radius = _radius(rng, shape)
    rate = 0.05 + 0.3 * np.exp(-radius / 300)
    for _ in range(rng.integers(4, 15)):
        away = radius - rng.uniform(20, 1.2 * max(shape))
        rate += rng.uniform(0.1, 4) * np.exp(-(away**2) / 2 / rng.uniform(0.8, 3) ** 2)
    return rate


def halo(rng: np.random.Generator, shape: tuple[int, int]) -> Rate:
    """Return a smooth halo, often with wide rings."""
    radius = _radius(rng, shape)
    rate = rng.uniform(0.05, 1) + rng.uniform(0.5, 20) * np.exp(-radius / rng.uniform(10, 80))
    for _ in range(rng.integers(0, 5)):
        rate += rng.uniform(0.2, 5) * np.exp(-((radius - rng.uniform(10, 150)) ** 2) / rng.uniform(30, 300))
    return rate


def spots(rng: np.random.Generator, shape: tuple[int, int]) -> Rate:
    """Return 50 to 1000 sharp spots, 10 to 100,000 times as bright as the halo."""
    rate = 0.1 + np.exp(-_radius(rng, shape) / 200)
    y, x = np.indices(shape)
    for _ in range(rng.integers(50, 1001)):
        row, column = rng.uniform(0, shape[0]), rng.uniform(0, shape[1])
        near = tuple(slice(max(0, int(at) - 6), int(at) + 7) for at in (row, column))
        square = (y[near] - row) ** 2 + (x[near] - column) ** 2
        rate[near] += 10 ** rng.uniform(0, 4) * np.exp(-square / 2 / rng.uniform(0.6, 1.5) ** 2)
    return rate


def small_angles(rng: np.random.Generator, shape: tuple[int, int]) -> Rate:
    """Return a power law about the beam, with a beam stop and its arm."""
    y, x = np.indices(shape)
    middle = rng.uniform(0.4, 0.6, 2) * shape
    radius = np.hypot(y - middle[0], x - middle[1])
    rate = 10 ** rng.uniform(0, 4) / (1 + (radius / rng.uniform(5, 60)) ** 4) ** rng.uniform(0.5, 1.1)
    rate = np.where(radius < rng.uniform(8, 30), 0, rate) + rng.uniform(0.01, 1)
    rate[int(middle[0]) - 8 : int(middle[0]) + 8, : int(middle[1])] *= 1e-3
    return rate


def grazing(rng: np.random.Generator, shape: tuple[int, int]) -> Rate:
    """Return scattering at grazing incidence: a horizon, a sharp line above it, and a bright rod."""
    y, x = np.indices(shape)
    column = rng.uniform(0.3, 0.7) * shape[1]
    rate = np.exp(-np.abs(x - column) / rng.uniform(20, 60) - np.clip(y - 40, 0, None) / rng.uniform(30, 150))
    rate *= 1 + 4 * np.exp(-((y - 60) ** 2) / 8)
    rate += 10 ** rng.uniform(0, 3) * np.exp(-np.abs(x - column) / 1.5 - np.abs(y - 80) / rng.uniform(5, 20))
    rate[:40] *= 0.01
    return rate + rng.uniform(0, 0.01)


def specular(rng: np.random.Generator, shape: tuple[int, int]) -> Rate:
    """Return one bright spot on a weak background."""
    y, x = np.indices(shape)
    row, column = rng.uniform(0.2, 0.8, 2) * shape
    peak = -((y - row) ** 2) / 2 / rng.uniform(0.8, 3) ** 2 - (x - column) ** 2 / 2 / rng.uniform(1, 60) ** 2
    return rng.uniform(0.005, 0.5) + 10 ** rng.uniform(1, 3) * np.exp(peak)


def half_in_shadow(rng: np.random.Generator, shape: tuple[int, int]) -> Rate:
    """Return rings, half of them behind something that lets nothing to a tenth through."""
    rate = rings(rng, shape)
    rate[:, : shape[1] // 2] *= rng.choice([0, 1e-3, 0.01, 0.1])
    return rate


def map_of_elements(rng: np.random.Generator, shape: tuple[int, int]) -> Rate:
    """Return soft regions with grains of sharp edges, as fluorescence of a sample has them."""
    rate = np.full(shape, 0.05)
    y, x = np.indices(shape)
    for _ in range(30):
        square = (y - rng.uniform(0, shape[0])) ** 2 + (x - rng.uniform(0, shape[1])) ** 2
        rate += rng.uniform(0.1, 5) * np.exp(-square / 2 / rng.uniform(2, 40) ** 2)
    return rate * (1 + (ndimage.gaussian_filter(rng.standard_normal(shape), rng.uniform(0.7, 2)) > 0))


def speckle(rng: np.random.Generator, shape: tuple[int, int]) -> Rate:
    """Return speckle of a full width of 1.5 to 4 pixels and a contrast of 0.3 to 1, in a halo."""
    field = ndimage.gaussian_filter(
        rng.standard_normal((2, *shape)), (0, *[rng.uniform(1.5, 4) / 2.35] * 2), mode="wrap"
    )
    intensity = (field**2).sum(axis=0)
    contrast = rng.uniform(0.3, 1)
    halo = 0.2 + np.exp(-_radius(rng, shape) / 150)
    return halo * (contrast * intensity / intensity.mean() + 1 - contrast)


SCENES: dict[str, Scene] = {
    "flat field": flat,
    "halo": halo,
    "sharp rings": rings,
    "spots": spots,
    "small angles": small_angles,
    "grazing incidence": grazing,
    "specular": specular,
    "half in shadow": half_in_shadow,
    "map with sharp edges": map_of_elements,
    "speckle": speckle,
}


def at_level(rate: Rate, level: float) -> Rate:
    """Return a rate whose mean is `level` counts per pixel."""
    return np.asarray(np.minimum(rate * (level / rate.mean()), MOST), np.float64)
