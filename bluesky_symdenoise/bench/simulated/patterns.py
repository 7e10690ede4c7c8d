"""Rings for measurements: simulated ones whose truth is known, and thinned ones of real images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter

from bluesky_symdenoise.analysis.annulus import Annulus
from bluesky_symdenoise.analysis.estimate import Observed, from_counts
from bluesky_symdenoise.analysis.moment import second_moment
from bluesky_symdenoise.analysis.peak import FWHM, radial_profile
from bluesky_symdenoise.bench.quality.cases import ImageSet, image_sets
from bluesky_symdenoise.physics.symmetry import Symmetry

Image = NDArray[np.float64]

QUANTITIES = ("orientation", "anisotropy", "peak_position", "peak_width", "peak_area")
SIZE = 128
CENTER = (63.5, 62.5)
INNER, OUTER = 26.0, 54.0
MIDDLE = (INNER + OUTER) / 2
#: For measured frames: largest radius at which rings are searched, and half width of the annulus, in pixels.
REACH, HALF_WIDTH = 110, 12
#: Pixels beyond the annulus that are passed to the denoiser.
MARGIN = 16
#: Fewest counts per pixel of a measured ring: twice the highest level to which it is thinned.
WHOLE = 20.0


@dataclass(frozen=True)
class Pattern:
    """A ring to measure, and where its frames come from.

    Attributes
    ----------
    exposure
        (y, x), 0 where masked.
    draw
        (generator, counts per pixel) -> counts (y, x) and the true quantities.
    """

    name: str
    exposure: Image
    symmetry: Symmetry
    inner: float
    outer: float
    draw: Callable[[np.random.Generator, float], tuple[Image, dict[str, float]]]

    @property
    def annulus(self) -> Annulus:
        """Annulus of the ring."""
        assert self.symmetry.beam_center is not None
        height, width = self.exposure.shape
        return Annulus.about(self.symmetry.beam_center, (height, width), inner=self.inner, outer=self.outer)


@dataclass(frozen=True)
class _Polar:
    radius: Image
    azimuth: Image
    annulus: Annulus

    @classmethod
    def grid(cls) -> _Polar:
        y, x = np.mgrid[:SIZE, :SIZE].astype(np.float64)
        y, x = y - CENTER[0], x - CENTER[1]
        annulus = Annulus.about(CENTER, (SIZE, SIZE), inner=INNER, outer=OUTER)
        return cls(np.hypot(y, x), np.arctan2(y, x), annulus)


def ring_of_the_fit(rng: np.random.Generator, level: float) -> tuple[Image, dict[str, float]]:
    """Return a ring exactly as the likelihood fit assumes it: nothing can beat that fit here."""
    grid = _Polar.grid()
    texture = np.exp(rng.uniform(0.4, 1.0) * np.cos(2 * (grid.azimuth - rng.uniform(0, np.pi))))
    background = (np.maximum(grid.radius, 5) / MIDDLE) ** -rng.uniform(0, 2)
    return _drawn(rng, level, background, texture)


def ring_of_a_sample(rng: np.random.Generator, level: float) -> tuple[Image, dict[str, float]]:
    """Return a ring as real samples have it: sharp texture with a weaker crossed one, on a power law and a constant."""
    grid = _Polar.grid()
    away = grid.azimuth - rng.uniform(0, np.pi)
    sharp = np.exp(rng.uniform(2, 5) * (np.cos(2 * away) - 1))
    crossed = np.exp(8 * (np.cos(2 * (away - np.pi / 2)) - 1))
    background = 0.5 + 0.5 * (np.maximum(grid.radius, 5) / MIDDLE) ** -rng.uniform(1.5, 3)
    return _drawn(rng, level, background, 0.3 + sharp + rng.uniform(0.1, 0.4) * crossed)


def _drawn(rng: np.random.Generator, level: float, background: Image, texture: Image) -> tuple[Image, dict[str, float]]:
    grid = _Polar.grid()
    position, width, height = rng.uniform(MIDDLE - 3, MIDDLE + 3), rng.uniform(1.8, 3.5), rng.uniform(1, 2.5)
    # Divide textures by their azimuthal mean, so that the area is that of the azimuthal average.
    texture = texture / grid.annulus.of(texture).mean()
    rate = background + height * texture * np.exp(-((grid.radius - position) ** 2) / (2 * width**2))
    mean = grid.annulus.of(rate).mean()
    moment = second_moment(grid.annulus, grid.annulus.of(rate), np.ones(grid.annulus.radius.shape))
    assert moment is not None
    truth = {
        "orientation": float(np.rad2deg(np.angle(moment.value)) / 2 % 180),
        "anisotropy": abs(moment.value),
        "peak_position": position,
        "peak_width": FWHM * width,
        "peak_area": height * width * np.sqrt(2 * np.pi) * level / mean,
    }
    return rng.poisson(rate * (level / mean) * gaps()).astype(np.float64), truth


def gaps() -> Image:
    """Return an exposure with two module gaps that do not cover their own mates."""
    n = np.ones((SIZE, SIZE))
    n[38:44] = 0
    n[:, 88:91] = 0
    return n


def simulated() -> list[Pattern]:
    """Return rings whose truth is known."""
    draws = {"as the fit assumes": ring_of_the_fit, "as samples have them": ring_of_a_sample}
    return [Pattern(name, gaps(), Symmetry("2", CENTER), INNER, OUTER, draw) for name, draw in draws.items()]


def measured(data_dir: Path) -> list[Pattern]:
    """Return the strongest ring of each set with a beam centre, thinned; the truth is the estimate from all its counts.

    Only sets of role ``test``, which the model was not trained on.

    Raises
    ------
    SymDenoiseError
        If the folder holds no set.
    """
    found = []
    for image_set in image_sets(data_dir, ("test",)):
        if image_set.symmetry in ("2", "2mm"):
            with h5py.File(image_set.path) as file:
                group = file[image_set.group]
                counts, mask = group["counts"][0].astype(np.float64), group["mask"][()]
            pattern = _thinned(image_set, np.where(mask, 0, counts), (~mask).astype(np.float64))
            found += [] if pattern is None else [pattern]
    return found


def _thinned(image_set: ImageSet, counts: Image, n: Image) -> Pattern | None:
    """Return the strongest ring within `REACH` of the centre, cropped; None for too few counts or quantities that are
    none.
    """
    center = image_set.beam_center
    assert center is not None
    around = Annulus.about(center, (counts.shape[0], counts.shape[1]), inner=HALF_WIDTH, outer=REACH)
    radius, summed, exposure = radial_profile(around, around.of(counts), around.of(n))
    rate = summed / exposure
    excess = (rate - median_filter(rate, 4 * HALF_WIDTH + 1)) / np.sqrt(np.maximum(rate, 1e-9) / exposure)
    position = float(radius[HALF_WIDTH:-HALF_WIDTH][np.argmax(excess[HALF_WIDTH:-HALF_WIDTH])])
    inner, outer = position - HALF_WIDTH, position + HALF_WIDTH
    rows, columns = (slice(max(0, int(each - outer) - MARGIN), int(each + outer) + MARGIN) for each in center)
    counts, n = counts[rows, columns], n[rows, columns]
    # Only the rotation is used: a mirror would fix the orientation by itself, without the photons.
    symmetry = Symmetry("2", (center[0] - rows.start, center[1] - columns.start))
    assert symmetry.beam_center is not None
    annulus = Annulus.about(symmetry.beam_center, (counts.shape[0], counts.shape[1]), inner=inner, outer=outer)
    observed = Observed(counts, n, np.zeros_like(n))
    whole = from_counts(annulus, observed).quantities(inner=inner, outer=outer)
    mean = float(annulus.of(counts).sum() / annulus.of(n).sum())
    if mean < WHOLE or not np.isfinite([whole[name][0] for name in QUANTITIES]).all():
        return None

    def draw(rng: np.random.Generator, level: float) -> tuple[Image, dict[str, float]]:
        truth = {quantity: whole[quantity][0] for quantity in QUANTITIES}
        truth["peak_area"] *= level / mean
        return rng.binomial(counts.astype(np.int64), level / mean).astype(np.float64), truth

    return Pattern(image_set.name, n, symmetry, inner, outer, draw)
