"""What detectors and programs make of photon counts: some still hold counts, others do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Rate = NDArray[np.float64]
#: (generator, rate) -> frame of counts.
Counting = Callable[[np.random.Generator, Rate], NDArray[Any]]


class Made(NamedTuple):
    """A frame that holds no counts, with the mean and the variance that its pixels have."""

    frame: NDArray[Any]
    mean: Rate
    variance: Rate


#: (generator, rate) -> frame.
Other = Callable[[np.random.Generator, Rate], Made]


def _flat(rng: np.random.Generator, shape: tuple[int, ...], spread: float) -> Rate:
    return np.asarray(np.clip(rng.normal(1, spread, shape), 1 - 3 * spread, 1 + 3 * spread), np.float64)


def counted(rng: np.random.Generator, rate: Rate) -> NDArray[Any]:
    """Return counts in one of the types that detectors write."""
    return rng.poisson(rate).astype(rng.choice(["int32", "uint32", "int64", "float32", "float64"]))


def with_gaps(rng: np.random.Generator, rate: Rate) -> NDArray[Any]:
    """Return counts with codes for gaps between modules and for dead pixels."""
    kind, gap, dead = [(np.int32, -1, -2), (np.uint32, 2**32 - 1, 2**32 - 2)][rng.integers(2)]
    frame = rng.poisson(rate).astype(kind)
    frame[rng.random(rate.shape) < 1e-3] = dead
    frame[100:117], frame[:, 190:198] = gap, gap
    return frame


def with_hot_pixels(rng: np.random.Generator, rate: Rate) -> NDArray[Any]:
    """Return counts with a hot pixel in a thousand."""
    return np.where(rng.random(rate.shape) < 1e-3, rng.integers(10**5, 10**6), rng.poisson(rate)).astype(np.int32)


def with_a_flat_field(rng: np.random.Generator, rate: Rate) -> NDArray[Any]:
    """Return counts that the firmware corrected by pixels that differ by 10 %."""
    flat = _flat(rng, rate.shape, 0.1)
    frame = rng.poisson(rate / flat) * flat
    return frame.astype(np.float32) if rng.random() < 0.5 else np.round(frame).astype(np.int64)


def of_unequal_pixels(rng: np.random.Generator, rate: Rate) -> NDArray[Any]:
    """Return counts of pixels that differ by 5 %."""
    return rng.poisson(rate * _flat(rng, rate.shape, 0.05))


def shared_out(counts: NDArray[Any], *, every: int) -> NDArray[Any]:
    """Return counts with virtual pixels: a wide pixel's counts are shared out between it and the virtual one."""
    out = counts.copy()
    for axis in (0, 1):
        view = np.moveaxis(out, axis, 0)
        wide = view[every - 2 : -1 : every] + view[every - 1 :: every][: len(view[every - 2 : -1 : every])]
        half = wide // 2
        view[every - 2 : -1 : every], view[every - 1 :: every][: len(half)] = half, wide - half
    return out


def with_virtual_pixels(rng: np.random.Generator, rate: Rate) -> NDArray[Any]:
    """Return counts with virtual pixels between chips of 64 pixels."""
    return shared_out(rng.poisson(rate), every=64)


def rate_corrected(counts: NDArray[Any], mask: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """Return counts that were corrected for their rate, by up to 30 % at the brightest percent of the pixels."""
    most = np.quantile(counts if mask is None else counts[~mask], 0.99) + 1
    return np.asarray(np.round(counts / (1 - 0.23 * np.minimum(counts / most, 1))), np.float64)


def with_corrected_rates(rng: np.random.Generator, rate: Rate) -> NDArray[Any]:
    """Return counts after a count-rate correction."""
    return rate_corrected(rng.poisson(rate))


def counted_twice(rng: np.random.Generator, rate: Rate) -> NDArray[Any]:
    """Return counts of which up to a half were counted in a neighbouring pixel too."""
    share = rng.uniform(0.1, 0.5)
    counts = rng.poisson(rate / (1 + share))
    twice = rng.binomial(counts, share)
    left = rng.binomial(twice, 0.5)
    return np.asarray(counts + np.roll(left, 1, 1) + np.roll(twice - left, 1, 0))


def clusters(rng: np.random.Generator, rate: Rate) -> NDArray[Any]:
    """Return counts of photons that are each counted in 1 to 4 pixels: a low threshold and small pixels."""
    counts = rng.poisson(np.minimum(rate, 100) / 2.5)
    out = counts.copy()
    for shift, share in (((0, 1), 0.6), ((1, 0), 0.5), ((1, 1), 0.4)):
        out += np.roll(rng.binomial(counts, share), shift, (0, 1))
    return out


COUNTING: dict[str, Counting] = {
    "as they are": counted,
    "gaps": with_gaps,
    "hot pixels": with_hot_pixels,
    "flat field of 10 %": with_a_flat_field,
    "unequal pixels, 5 %": of_unequal_pixels,
    "virtual pixels": with_virtual_pixels,
    "rates corrected by up to 30 %": with_corrected_rates,
    "photons counted twice": counted_twice,
    "photons counted in clusters": clusters,
}


def _log(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def offset(rng: np.random.Generator, rate: Rate) -> Made:
    """Return counts on an offset of 3 to 1000."""
    level = round(_log(rng, 3, 1000))
    return Made((rng.poisson(rate) + level).astype(np.int32), rate + level, rate)


def camera(rng: np.random.Generator, rate: Rate) -> Made:
    """Return a CCD's frame: gain 0.2 to 20, read noise 0.5 to 30, offset 10 to 1000."""
    gain, noise, level = _log(rng, 0.2, 20), _log(rng, 0.5, 30), _log(rng, 10, 1000)
    frame = np.round(gain * rng.poisson(rate) + rng.normal(level, noise, rate.shape)).clip(0)
    return Made(frame.astype(np.int32), gain * rate + level, gain**2 * rate + noise**2 + 1 / 12)


def read_noise(rng: np.random.Generator, rate: Rate) -> Made:
    """Return a frame in photons, less its dark: read noise of 0.5 to 30 photons."""
    noise = _log(rng, 0.5, 30)
    frame = (rng.poisson(rate) + rng.normal(0, noise, rate.shape)).astype(np.float32)
    return Made(frame, rate, rate + noise**2)


def read_noise_cut(rng: np.random.Generator, rate: Rate) -> Made:
    """Return such a frame in whole numbers, cut at zero."""
    noise = _log(rng, 0.5, 30)
    return _moments(lambda: np.round(rng.poisson(rate) + rng.normal(0, noise, rate.shape)).clip(0))


def gain(rng: np.random.Generator, rate: Rate) -> Made:
    """Return counts times 0.2 to 20, as whole numbers."""
    factor = _log(rng, 0.2, 20)
    return Made(np.round(factor * rng.poisson(rate)).astype(np.int32), factor * rate, factor**2 * rate + 1 / 12)


def scaled(rng: np.random.Generator, rate: Rate) -> Made:
    """Return counts times 0.2 to 20, as fractions."""
    factor = _log(rng, 0.2, 20)
    return Made((factor * rng.poisson(rate)).astype(np.float32), factor * rate, factor**2 * rate)


def normalised(rng: np.random.Generator, rate: Rate) -> Made:
    """Return counts over a flat field of 5 % and a monitor."""
    flat, monitor = _flat(rng, rate.shape, 0.05), _log(rng, 2, 1e5)
    frame = (rng.poisson(rate * flat) / flat / monitor).astype(np.float32)
    return Made(frame, rate / monitor, rate / flat / monitor**2)


def _background(rate: Rate) -> Rate:
    """Return the smooth part of a rate."""
    return np.asarray(np.minimum(ndimage.gaussian_filter(ndimage.minimum_filter(rate, 15), 5), rate), np.float64)


def less_background(rng: np.random.Generator, rate: Rate) -> Made:
    """Return counts less a smooth background that is known without noise."""
    below = rng.uniform(0.3, 0.9) * _background(rate)
    return Made((rng.poisson(rate) - below).astype(np.float32), rate - below, rate)


def less_counted_background(rng: np.random.Generator, rate: Rate) -> Made:
    """Return counts less those of an empty exposure, cut at zero."""
    below = rng.uniform(0.3, 0.9) * _background(rate)
    return _moments(lambda: (rng.poisson(rate) - rng.poisson(below)).clip(0))


def _moments(draw: Callable[[], NDArray[Any]], repeats: int = 16) -> Made:
    """Return a frame, with mean and variance of repeats."""
    frames = np.stack([draw() for _ in range(repeats)]).astype(np.float64)
    return Made(frames[0].astype(np.int32), frames.mean(axis=0), frames.var(axis=0, ddof=1))


def _linear(rate: Rate, frame: NDArray[Any], kernel: Rate) -> Made:
    filtered = [ndimage.correlate(np.asarray(each, np.float64), k) for each, k in ((frame, kernel), (rate, kernel))]
    return Made(filtered[0].astype(np.float32), filtered[1], ndimage.correlate(rate, kernel**2))


def interpolated(rng: np.random.Generator, rate: Rate) -> Made:
    """Return counts moved by parts of a pixel, linearly."""
    y, x = rng.uniform(0.2, 0.8, 2)
    kernel = np.zeros((3, 3))
    kernel[1:, 1:] = np.outer([1 - y, y], [1 - x, x])
    return _linear(rate, rng.poisson(rate), kernel)


def smoothed(rng: np.random.Generator, rate: Rate) -> Made:
    """Return counts after a Gaussian filter of 0.5 to 1.5 pixels."""
    kernel = np.zeros((13, 13))
    kernel[6, 6] = 1
    return _linear(rate, rng.poisson(rate), ndimage.gaussian_filter(kernel, rng.uniform(0.5, 1.5)))


def smoothed_and_rounded(rng: np.random.Generator, rate: Rate) -> Made:
    """Return smoothed counts in whole numbers."""
    made = smoothed(rng, rate)
    return Made(np.round(made.frame).astype(np.int32), made.mean, made.variance + 1 / 12)


def flat_panel(rng: np.random.Generator, rate: Rate) -> Made:
    """Return a flat panel's frame: 2 to 10 units a photon, spread over its neighbours, and noise of 3 units."""
    kernel = np.zeros((13, 13))
    kernel[6, 6] = _log(rng, 2, 10)
    made = _linear(rate, rng.poisson(rate), ndimage.gaussian_filter(kernel, rng.uniform(0.5, 0.9)))
    frame = np.round(made.frame + rng.normal(0, 3, rate.shape)).clip(0)
    return Made(frame.astype(np.int32), made.mean, made.variance + 9)


OTHERS: dict[str, Other] = {
    "offset": offset,
    "camera (offset, gain, read noise)": camera,
    "read noise, dark subtracted": read_noise,
    "... cut at zero": read_noise_cut,
    "gain, whole numbers": gain,
    "scaled fractions": scaled,
    "normalised to a monitor": normalised,
    "background subtracted": less_background,
    "empty exposure subtracted": less_counted_background,
    "interpolated": interpolated,
    "smoothed": smoothed,
    "smoothed and rounded": smoothed_and_rounded,
    "flat panel": flat_panel,
}


def averaged(rng: np.random.Generator, rate: Rate, number: int) -> Made:
    """Return the mean of so many exposures."""
    total = rng.poisson(number * rate)
    return Made((total / number).astype(np.float32), rate, rate / number)
