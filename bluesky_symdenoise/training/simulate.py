"""Rates of simulated X-ray patterns: what beamlines see, as a mean image without noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Image = NDArray[np.float64]


@dataclass(frozen=True)
class View:
    """Pixel coordinates of a detector about the beam centre; radius in pixels, azimuth in radians."""

    y: Image
    x: Image
    radius: Image
    azimuth: Image
    reach: float

    @classmethod
    def about(cls, center: tuple[float, float], shape: tuple[int, int], *, scale: float = 1.0) -> View:
        """Return a view of ``shape`` pixels whose beam is at ``center`` (y, x), perhaps off the detector."""
        y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float64)
        y, x = (y - center[0]) * scale, (x - center[1]) * scale
        radius = np.hypot(y, x)
        return cls(y, x, radius, np.arctan2(y, x), float(radius.max()))


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _peak(rng: np.random.Generator, distance: Image, width: float) -> Image:
    """Return a pseudo-Voigt of unit height."""
    mixing = rng.uniform() * rng.integers(0, 2)
    u2 = (distance / width) ** 2
    return mixing / (1 + u2) + (1 - mixing) * np.exp(-np.minimum(0.693 * u2, 60))


def _texture(rng: np.random.Generator, azimuth: Image) -> Image:
    """Return azimuthal intensity of a ring: smooth harmonics, arcs, or grains; symmetric under inversion."""
    kind = rng.integers(0, 4)
    if kind == 0:
        return np.ones_like(azimuth)
    phase = rng.uniform(0, np.pi)
    if kind == 1:
        order = 2 * rng.integers(1, 4)
        return 1 + rng.uniform(0, 1) * np.cos(order * (azimuth - phase))
    if kind == 2:
        sharpness = _log_uniform(rng, 1, 60)
        arcs = np.exp(sharpness * (np.cos(2 * (azimuth - phase)) - 1))
        return rng.uniform(0, 0.3) + arcs * rng.uniform(0.5, 2)
    grains = rng.gamma(_log_uniform(rng, 0.1, 3), size=int(_log_uniform(rng, 60, 1500)))
    grains /= grains.mean() + 1e-12
    return np.interp(azimuth, np.linspace(-np.pi, np.pi, grains.size), grains, period=2 * np.pi)


def _rings(rng: np.random.Generator, view: View) -> Image:
    out = np.zeros_like(view.radius)
    width = _log_uniform(rng, 0.6, 12)
    for _ in range(rng.integers(1, 12)):
        position = rng.uniform(0.02, 1.0) * view.reach
        ring = _peak(rng, view.radius - position, width * rng.uniform(0.7, 1.5))
        out += ring * _log_uniform(rng, 0.03, 3) * _texture(rng, view.azimuth)
    return out


def _haloes(rng: np.random.Generator, view: View) -> Image:
    """Return amorphous rings, broad and hardly textured."""
    out = np.zeros_like(view.radius)
    for _ in range(rng.integers(1, 4)):
        position, width = rng.uniform(0, 1.2) * view.reach, rng.uniform(0.05, 0.6) * view.reach
        phase = rng.uniform(0, np.pi)
        tilt = 1 + rng.uniform(0, 0.5) * np.cos(2 * (view.azimuth - phase))
        out += rng.gamma(1.0) * tilt * np.exp(-(((view.radius - position) / width) ** 2))
    return out


def _saxs(rng: np.random.Generator, view: View) -> Image:
    stretch, phase = rng.uniform(0.5, 1.0), rng.uniform(0, np.pi)
    along = view.x * np.cos(phase) + view.y * np.sin(phase)
    across = view.y * np.cos(phase) - view.x * np.sin(phase)
    q = np.hypot(along, across * stretch)
    guinier = _log_uniform(rng, 2, 150)
    power = rng.uniform(1, 4.2)
    out = (1 + (q / guinier) ** 2) ** (-power / 2)
    if rng.uniform() < 0.4:
        size = _log_uniform(rng, 0.3, 6) / guinier
        u = q * size + 1e-9
        form = (3 * (np.sin(u) - u * np.cos(u)) / np.maximum(u, 1e-3) ** 3) ** 2
        out = rng.uniform(0.02, 0.5) * out + form
    if rng.uniform() < 0.4:
        out *= 1 + rng.uniform(0.2, 3) * _peak(rng, q - guinier * rng.uniform(1, 6), guinier * rng.uniform(0.1, 1))
    return out


def _fibre(rng: np.random.Generator, view: View) -> Image:
    tilt = rng.normal(0, 0.2) if rng.uniform() < 0.5 else rng.uniform(0, np.pi)
    meridian = view.y * np.cos(tilt) - view.x * np.sin(tilt)
    equator = view.x * np.cos(tilt) + view.y * np.sin(tilt)
    out = (
        rng.uniform(0, 2)
        * np.exp(-np.minimum(np.abs(equator) / _log_uniform(rng, 10, 150), 60))
        * _peak(rng, meridian, _log_uniform(rng, 1, 6))
    )
    spacing, width = _log_uniform(rng, 8, 60), _log_uniform(rng, 0.8, 4)
    decay = rng.uniform(2, 8)
    for order in range(1, 9):
        height = np.exp(-order / decay) * rng.gamma(0.7)
        offset = rng.uniform(0, 80) * rng.integers(0, 2)
        spread = _log_uniform(rng, 2, 60)
        line = _peak(rng, np.abs(meridian) - order * spacing, width)
        out += height * line * np.exp(-np.minimum(((np.abs(equator) - offset) / spread) ** 2, 60))
    return out


def _arcs(rng: np.random.Generator, view: View) -> Image:
    out = np.zeros_like(view.radius)
    phase = rng.uniform(0, np.pi)
    for _ in range(rng.integers(1, 6)):
        ring = _peak(rng, view.radius - rng.uniform(0.05, 0.9) * view.reach, _log_uniform(rng, 1, 20))
        sharpness = _log_uniform(rng, 2, 200)
        angle = phase + (np.pi / 2) * rng.integers(0, 2) + rng.normal(0, 0.1)
        out += ring * np.exp(sharpness * (np.cos(2 * (view.azimuth - angle)) - 1)) * rng.gamma(1.0)
    return out


def _gisaxs(rng: np.random.Generator, view: View) -> Image:
    horizon = rng.uniform(5, 60)
    above = -view.y - horizon
    yoneda = _peak(rng, above, _log_uniform(rng, 2, 10)) * np.exp(-np.abs(view.x) / _log_uniform(rng, 20, 300))
    rod = np.exp(-np.minimum(np.abs(above) / _log_uniform(rng, 30, 300), 60)) * _peak(
        rng, view.x, _log_uniform(rng, 1, 5)
    )
    side = _peak(rng, np.abs(view.x) - rng.uniform(10, 100), _log_uniform(rng, 2, 20))
    side *= np.exp(-np.minimum(np.abs(above) / _log_uniform(rng, 20, 200), 60))
    out = rng.gamma(1.0) * yoneda + rng.gamma(1.0) * rod * _log_uniform(rng, 0.3, 30) + rng.gamma(1.0) * side
    return out * np.where(above < 0, rng.uniform(0.02, 0.5), 1.0)


def _spots(rng: np.random.Generator, view: View) -> Image:
    out = np.zeros_like(view.radius)
    height, width = view.radius.shape
    for _ in range(rng.integers(1, 25)):
        y, x, size = rng.uniform(0, height), rng.uniform(0, width), _log_uniform(rng, 0.5, 4)
        reach = int(6 * size + 2)
        rows = slice(max(0, int(y) - reach), min(height, int(y) + reach + 1))
        columns = slice(max(0, int(x) - reach), min(width, int(x) + reach + 1))
        dy = np.arange(rows.start, rows.stop)[:, None] - y
        dx = np.arange(columns.start, columns.stop)[None, :] - x
        out[rows, columns] += _log_uniform(rng, 0.03, 10) * np.exp(-(dy**2 + dx**2) / (2 * size**2))
    return out


def _direct_beam(rng: np.random.Generator, view: View) -> Image:
    size = _log_uniform(rng, 1, 8)
    out = (1 + (view.radius / size) ** 2) ** -rng.uniform(1.2, 3)
    for _ in range(rng.integers(0, 4)):
        angle = rng.uniform(0, 2 * np.pi)
        along = view.x * np.cos(angle) + view.y * np.sin(angle)
        across = view.y * np.cos(angle) - view.x * np.sin(angle)
        streak = np.exp(-np.minimum((across / _log_uniform(rng, 0.7, 4)) ** 2, 60))
        out += (
            _log_uniform(rng, 0.003, 0.3) * streak * np.exp(-np.abs(along) / _log_uniform(rng, 10, 100)) * (along > 0)
        )
    return out * _log_uniform(rng, 3, 300)


def _smooth_field(rng: np.random.Generator, shape: tuple[int, ...], length: float) -> Image:
    field = ndimage.gaussian_filter(rng.normal(size=shape), length, mode="wrap")
    return np.asarray(field / (field.std() + 1e-12))


def _beam_stop(rng: np.random.Generator, view: View) -> Image:
    """Return transmission of a beam stop and its holder."""
    edge = rng.uniform(0.3, 2)
    inside = 1 / (1 + np.exp(np.clip((view.radius - _log_uniform(rng, 5, 40)) / edge, -30, 30)))
    angle = rng.uniform(0, 2 * np.pi)
    along = view.x * np.cos(angle) + view.y * np.sin(angle)
    across = np.abs(view.y * np.cos(angle) - view.x * np.sin(angle))
    holder = (along > 0) / (1 + np.exp(np.clip((across - rng.uniform(2, 10)) / edge, -30, 30)))
    return 1 - (1 - _log_uniform(rng, 0.001, 0.3)) * np.maximum(inside, holder * rng.integers(0, 2))


def straight_shadow(rng: np.random.Generator, shape: tuple[int, int]) -> Image:
    """Return transmission of one to three straight bars anywhere: beam-stop holders, module frames, apertures."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float64)
    through = np.ones(shape)
    for _ in range(rng.integers(1, 4)):
        angle = rng.choice([0.0, np.pi / 2, rng.uniform(0, np.pi)], p=[0.35, 0.25, 0.4])
        across = (y - rng.uniform(0, shape[0])) * np.cos(angle) + (x - rng.uniform(0, shape[1])) * np.sin(angle)
        edge = _log_uniform(rng, 0.05, 1.5)
        bar = 1 / (1 + np.exp(np.clip((np.abs(across) - _log_uniform(rng, 0.6, 25)) / edge, -30, 30)))
        through *= 1 - (1 - _log_uniform(rng, 0.001, 0.7)) * bar
    return through


_PATTERNS = (_rings, _rings, _haloes, _haloes, _haloes, _saxs, _saxs, _fibre, _arcs, _gisaxs, _spots)


def random_rate(rng: np.random.Generator, shape: tuple[int, int]) -> Image:
    """Return the mean image of a random pattern, (y, x), of mean 1.

    One to three of: powder rings with texture and grains, SAXS with form and structure factor, fibre layer lines,
    arcs, GISAXS, Bragg spots; on a smooth background; perhaps a direct beam with streaks, a beam stop, speckle
    and polarisation.
    """
    size = max(shape)
    inside = rng.uniform() < 0.6
    span = (0.0, 1.0) if inside else (-4.0, 5.0)
    center = (rng.uniform(*span) * size, rng.uniform(*span) * size)
    view = View.about(center, shape)
    background = _log_uniform(rng, 0.003, 1)
    rate = np.full(shape, background)
    if rng.uniform() < 0.7:
        rate += _log_uniform(rng, 0.01, 3) * np.exp(-((view.radius / (view.reach * rng.uniform(0.1, 1))) ** 2))
    for _ in range(rng.integers(1, 4)):
        rate += _PATTERNS[rng.integers(len(_PATTERNS))](rng, view) * _log_uniform(rng, 0.1, 10)
    if rng.uniform() < 0.2:
        rate += _direct_beam(rng, view)
    if rng.uniform() < 0.15:
        real, imaginary = (_smooth_field(rng, shape, _log_uniform(rng, 0.7, 4)) for _ in range(2))
        rate *= 1 + rng.uniform(0.2, 1) * ((real**2 + imaginary**2) / 2 - 1)
    if rng.uniform() < 0.3:
        rate *= np.exp(rng.uniform(0.02, 0.3) * _smooth_field(rng, shape, _log_uniform(rng, 3, 40)))
    if rng.uniform() < 0.5:
        rate *= 1 - rng.uniform(0, 0.6) * (view.x / view.reach) ** 2
    if rng.uniform() < 0.35:
        rate *= _beam_stop(rng, view)
    rate = np.maximum(rate, 1e-9)
    return rate / rate.mean()


def stopped_rate(rng: np.random.Generator, shape: tuple[int, int]) -> Image:
    """Return the mean image of small-angle scattering around a beam stop, (y, x), of mean 1.

    Over several decades from the stop's edge outwards: parasitic scattering by a power of the radius, round or
    elliptic, with streaks, over a weaker pattern and background. The stop, round or square and not quite in the centre,
    and its holder end within a few pixels or within one.
    """
    size = max(shape)
    center = (rng.uniform(0.1, 0.9) * size, rng.uniform(0.1, 0.9) * size)
    view = View.about(center, shape)
    stretch, phase = rng.uniform(0.5, 1.0), rng.uniform(0, np.pi)
    along = view.x * np.cos(phase) + view.y * np.sin(phase)
    across = view.y * np.cos(phase) - view.x * np.sin(phase)
    q = np.hypot(along, across * stretch)
    rate = (1 + (q / _log_uniform(rng, 1.5, 40)) ** 2) ** (-rng.uniform(2, 5) / 2) + _log_uniform(rng, 1e-5, 1e-2)
    rate += _log_uniform(rng, 1e-3, 0.3) * _saxs(rng, view)
    if rng.uniform() < 0.4:
        rate += _log_uniform(rng, 1e-4, 0.1) * _PATTERNS[rng.integers(len(_PATTERNS))](rng, view)
    if rng.uniform() < 0.4:
        rate += _log_uniform(rng, 1e-3, 0.1) * _direct_beam(rng, view)
    stop = View.about((center[0] + rng.normal(0, 3), center[1] + rng.normal(0, 3)), shape)
    edge, reach = _log_uniform(rng, 0.05, 2), _log_uniform(rng, 4, 40)
    distance = stop.radius if rng.uniform() < 0.6 else np.maximum(np.abs(stop.y), np.abs(stop.x) * rng.uniform(0.5, 2))
    inside = 1 / (1 + np.exp(np.clip((distance - reach) / edge, -30, 30)))
    rate *= 1 - (1 - _log_uniform(rng, 1e-4, 0.3)) * inside
    if rng.uniform() < 0.5:
        rate *= straight_shadow(rng, shape)
    if rng.uniform() < 0.5:
        rate = ndimage.gaussian_filter(rate, rng.uniform(0.3, 1), mode="nearest")
    rate = np.maximum(rate, 1e-9)
    return rate / rate.mean()


def peakless_rate(rng: np.random.Generator, shape: tuple[int, int]) -> Image:
    """Return the mean image (y, x), of mean 1, of a pattern without features: flat, or the exponential of a wide
    parabola.
    """
    if rng.uniform() < 0.5:
        return np.ones(shape)
    y, x = np.mgrid[-1 : 1 : 1j * shape[0], -1 : 1 : 1j * shape[1]]
    slope, bend = rng.normal(0, 0.5, size=2), rng.normal(0, 0.5, size=3)
    rate = np.exp(slope[0] * y + slope[1] * x + bend[0] * y * y + bend[1] * x * y + bend[2] * x * x)
    return np.asarray(rate / rate.mean())


def narrow_rate(rng: np.random.Generator, shape: tuple[int, int]) -> Image:
    """Return the mean image (y, x), of mean 1, of bright powder rings of one to three pixels on a weak background."""
    size = max(shape)
    span = (0.0, 1.0) if rng.uniform() < 0.6 else (-3.0, 4.0)
    view = View.about((rng.uniform(*span) * size, rng.uniform(*span) * size), shape)
    halo = np.exp(-((view.radius / (view.reach * rng.uniform(0.1, 1))) ** 2))
    rate = np.full(shape, 1.0) + rng.gamma(1.0) * halo
    width = _log_uniform(rng, 0.4, 1.6)
    first = rng.uniform(0.02, 0.5) * view.reach
    for order in range(1, rng.integers(2, 10)):
        # A lamellar series, or rings anywhere.
        position = order * first if rng.uniform() < 0.5 else rng.uniform(0.02, 1.0) * view.reach
        ring = _peak(rng, view.radius - position, width * rng.uniform(0.8, 1.5))
        rate += ring * _log_uniform(rng, 0.3, 300) * _texture(rng, view.azimuth)
    return rate / rate.mean()


def random_spots(rng: np.random.Generator, rate: Image) -> Image:
    """Return one to six lone spots of 0.4 to 2 pixels (standard deviation) on a rate (y, x), from weak to bright."""
    out = np.zeros_like(rate)
    height, width = rate.shape
    for _ in range(rng.integers(1, 7)):
        y, x, size = rng.uniform(0, height), rng.uniform(0, width), _log_uniform(rng, 0.4, 2)
        rows, columns = np.arange(height)[:, None] - y, np.arange(width)[None] - x
        level = rate[int(y), int(x)] + 0.1 * rate.mean()
        out += level * _log_uniform(rng, 0.5, 300) * np.exp(-(rows**2 + columns**2) / (2 * size**2))
    return out


def random_mask(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return module gaps, dead pixels and the area beyond the detector's edge, True = bad; often nothing."""
    mask = np.zeros(shape, bool)
    if rng.uniform() < 0.15:
        mask[int(rng.uniform(0.4, 1) * shape[0]) :] = True
    if rng.uniform() < 0.15:
        mask[:, int(rng.uniform(0.4, 1) * shape[1]) :] = True
    if rng.uniform() < 0.5:
        return mask
    if rng.uniform() < 0.6:
        width, start = int(rng.integers(2, 20)), int(rng.integers(0, shape[0]))
        mask[start : start + width] = True
    if rng.uniform() < 0.4:
        width, start = int(rng.integers(2, 12)), int(rng.integers(0, shape[1]))
        mask[:, start : start + width] = True
    if rng.uniform() < 0.5:
        mask |= rng.uniform(size=shape) < _log_uniform(rng, 1e-4, 1e-2)
    return mask
