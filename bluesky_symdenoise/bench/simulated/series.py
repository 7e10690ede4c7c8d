"""Rates of simulated series: scenes that stand still, drift, jump or change for one row, and maps of smooth fields."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from bluesky_symdenoise.analysis.annulus import Annulus
from bluesky_symdenoise.analysis.moment import second_moment
from bluesky_symdenoise.analysis.peak import FWHM
from bluesky_symdenoise.bench.simulated.patterns import CENTER, INNER, MIDDLE, OUTER, SIZE, gaps

Rates = NDArray[np.float64]
#: (generator, rows, shape) -> rates (row, y, x) of any mean.
SeriesOf = Callable[[np.random.Generator, int, tuple[int, int]], Rates]


@dataclass(frozen=True)
class Sample:
    """Sample whose scattering changes along a series.

    Attributes
    ----------
    orientation, texture
        Angle in radians and strength of the rings' texture.
    position, width, height
        Of the inner ring: radius and standard deviation in pixels, and height over the background.
    fade
        Factor of the rings' heights.
    flux
        Factor of everything.
    """

    orientation: float = 0.6
    texture: float = 1.0
    position: float = 28.0
    width: float = 2.2
    height: float = 2.0
    fade: float = 1.0
    flux: float = 1.0

    def rate(self, shape: tuple[int, int], grains: Rates | float = 0.0) -> Rates:
        """Return the rate (y, x): a halo about the beam, a textured ring, a sharp ring, and grains."""
        y, x = np.ogrid[: shape[0], : shape[1]]
        y, x = y - 0.47 * shape[0], x - 0.52 * shape[1]
        radius, azimuth = np.hypot(y, x), np.arctan2(y + 0 * x, x + 0 * y)
        around = np.exp(self.texture * np.cos(2 * (azimuth - self.orientation))) / special.i0(self.texture)
        rings = self.height * around * np.exp(-((radius - self.position) ** 2) / 2 / self.width**2)
        rings += 1.5 * np.exp(-((radius - 1.6 * self.position) ** 2) / 2)
        halo = 0.3 + 3 / (1 + (radius / 8) ** 2) ** 1.2
        return np.asarray(self.flux * (halo + self.fade * (rings + grains)))


def grains(rng: np.random.Generator, shape: tuple[int, int], number: int) -> Rates:
    """Return sharp spots at random places."""
    rate = np.zeros(shape)
    y, x = np.ogrid[: shape[0], : shape[1]]
    for _ in range(number):
        square = (y - rng.uniform(0, shape[0])) ** 2 + (x - rng.uniform(0, shape[1])) ** 2
        rate += rng.uniform(2, 20) * np.exp(-square / 2 / rng.uniform(0.8, 1.6) ** 2)
    return rate


def _drawn(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Sample, Rates]:
    scale = min(shape) / 128
    sample = Sample(
        orientation=rng.uniform(0, np.pi),
        texture=rng.uniform(0.5, 1.5),
        position=scale * rng.uniform(24, 32),
        width=rng.uniform(1.5, 3),
        height=rng.uniform(1, 3),
    )
    return sample, grains(rng, shape, max(3, int(12 * scale**2)))


def _following(rng: np.random.Generator, rows: int, shape: tuple[int, int], change: Callable[[int], object]) -> Rates:
    """Return rates of a sample of which each row changes some values, named with their factor."""
    sample, spots = _drawn(rng, shape)
    rates = []
    for row in range(rows):
        changes: dict[str, float] = change(row)  # type: ignore[assignment]
        turned = changes.pop("turn", 0.0)
        values = {name: getattr(sample, name) * factor for name, factor in changes.items()}
        values["orientation"] = sample.orientation + turned
        rates.append(Sample(**{**vars(sample), **values}).rate(shape, spots))
    return np.stack(rates)


def still(rng: np.random.Generator, rows: int, shape: tuple[int, int]) -> Rates:
    """Return one scene in all rows."""
    return _following(rng, rows, shape, lambda row: {})


def rotating(rng: np.random.Generator, rows: int, shape: tuple[int, int]) -> Rates:
    """Return a texture that turns by 3 degrees a row."""
    return _following(rng, rows, shape, lambda row: {"turn": np.deg2rad(3) * row})


def shifting(rng: np.random.Generator, rows: int, shape: tuple[int, int]) -> Rates:
    """Return rings whose radius grows by 0.4 % and their width by 4 % a row."""
    return _following(rng, rows, shape, lambda row: {"position": 1.004**row, "width": 1.04**row})


def flickering(rng: np.random.Generator, rows: int, shape: tuple[int, int]) -> Rates:
    """Return one scene in a flux that falls by 3 % a row and changes by 20 % from row to row besides."""
    factors = 0.97 ** np.arange(rows) * np.exp(0.2 * rng.standard_normal(rows))
    return _following(rng, rows, shape, lambda row: {"flux": float(factors[row])})


def fading(rng: np.random.Generator, rows: int, shape: tuple[int, int]) -> Rates:
    """Return rings and grains that fade by 5 % a row, as with dose."""
    return _following(rng, rows, shape, lambda row: {"fade": 0.95**row})


def jumping(rng: np.random.Generator, rows: int, shape: tuple[int, int]) -> Rates:
    """Return one scene in the first half of the rows and another in the second."""
    return np.concatenate([still(rng, rows // 2, shape), still(rng, rows - rows // 2, shape)])


def stepping(rng: np.random.Generator, rows: int, shape: tuple[int, int]) -> Rates:
    """Return a scene whose inner ring moves by a pixel in mid-series and turns by 10 degrees: a small jump."""

    def change(row: int) -> dict[str, float]:
        after = row >= rows // 2
        return {"position": 1.035 if after else 1.0, "turn": np.deg2rad(10) * after}

    return _following(rng, rows, shape, change)


def grainy(rng: np.random.Generator, rows: int, shape: tuple[int, int]) -> Rates:
    """Return the same rings in all rows, with other grains in each."""
    sample, _ = _drawn(rng, shape)
    number = max(3, int(12 * (min(shape) / 128) ** 2))
    return np.stack([sample.rate(shape, grains(rng, shape, number)) for _ in range(rows)])


SERIES: dict[str, SeriesOf] = {
    "still": still,
    "rotating texture": rotating,
    "moving, widening rings": shifting,
    "changing flux": flickering,
    "fading": fading,
    "jump": jumping,
    "small jump": stepping,
    "other grains in each row": grainy,
}
"""Series by name."""


def transition(
    rng: np.random.Generator, rows: int, shape: tuple[int, int], middle: float, width: float
) -> tuple[Rates, Rates, Rates]:
    """Return rates of a sample that goes from one state to another about row `middle`, and of the two states.

    The share of the second state is 1 / (1 + exp(-(row - middle) / width)).
    """
    sample, spots = _drawn(rng, shape)
    first = sample.rate(shape, spots)
    second = Sample(**{**vars(sample), "position": 1.15 * sample.position, "height": 0.6 * sample.height}).rate(
        shape, spots
    )
    share = special.expit((np.arange(rows) - middle) / width)[:, None, None]
    return (1 - share) * first + share * second, first, second


@dataclass(frozen=True, eq=False)
class Mapped:
    """A map of a textured ring that is smooth but for a boundary.

    Attributes
    ----------
    shape
        Points along each axis, slowest first; the fast axis runs back and forth.
    rates
        (row, y, x), mean 1 over the ring of the first row.
    truth
        By quantity: (row,).
    beside
        (row,) whether a point is next to the boundary.
    """

    shape: tuple[int, int]
    rates: Rates
    truth: dict[str, Rates]
    beside: NDArray[np.bool_]


def ring_map(
    rng: np.random.Generator, shape: tuple[int, int], *, smooth: float = 1.0, jump: dict[str, float] | None = None
) -> Mapped:
    """Return a snake over fields of orientation, texture and position that vary slowly, with a boundary in the middle.

    Parameters
    ----------
    smooth
        Strength of the slow variation; 0 for the same scene at all points of a side.
    jump
        What orientation (radians), position (pixels) or other values of the ring change by at the boundary.
    """
    jump = jump or {}
    grid_y, grid_x = np.meshgrid(*[np.linspace(0, 1, number) for number in shape], indexing="ij")
    phase = rng.uniform(0, 2 * np.pi, 3)
    fields = {
        "orientation": 0.7 + smooth * 0.25 * np.sin(2.5 * grid_x + 1.5 * grid_y + phase[0]),
        "texture": 0.8 + smooth * 0.2 * np.sin(2 * grid_y - 2 * grid_x + phase[1]),
        "position": MIDDLE + smooth * 0.5 * np.sin(3 * grid_x + 2 * grid_y + phase[2]),
    }
    column = np.tile(np.arange(shape[1]), (shape[0], 1))
    after = column >= shape[1] // 2
    for name, step in jump.items():
        fields[name] = fields[name] + step * after
    beside = (column == shape[1] // 2) | (column == shape[1] // 2 - 1)
    snake = column.copy()
    snake[1::2] = snake[1::2, ::-1]
    order = (np.repeat(np.arange(shape[0]), shape[1]), snake.ravel())
    points = [_textured(*(float(fields[name][y, x]) for name in fields)) for y, x in zip(*order, strict=True)]
    truth = {name: np.array([values[name] for _, values in points]) for name in points[0][1]}
    return Mapped(shape, np.stack([rate for rate, _ in points]), truth, beside[order])


def _textured(orientation: float, texture: float, position: float) -> tuple[Rates, dict[str, float]]:
    width, height = 2.5, 1.8
    y, x = np.ogrid[:SIZE, :SIZE]
    y, x = y - CENTER[0], x - CENTER[1]
    radius, azimuth = np.hypot(y, x), np.arctan2(y + 0 * x, x + 0 * y)
    around = np.exp(texture * np.cos(2 * (azimuth - orientation))) / special.i0(texture)
    background = (np.maximum(radius, 5) / MIDDLE) ** -1.0
    rate = background + height * around * np.exp(-((radius - position) ** 2) / 2 / width**2)
    annulus = Annulus.about(CENTER, (SIZE, SIZE), inner=INNER, outer=OUTER)
    mean = annulus.of(rate).mean()
    moment = second_moment(annulus, annulus.of(rate), np.ones(annulus.radius.shape))
    assert moment is not None
    truth = {
        "orientation": float(np.rad2deg(np.angle(moment.value)) / 2 % 180),
        "anisotropy": abs(moment.value),
        "peak_position": position,
        "peak_width": FWHM * width,
        "peak_area": height * width * np.sqrt(2 * np.pi) / mean,
    }
    return rate / mean * gaps(), truth
