"""Calibration of sigma, sums and peaks: simulated frames of known rate, and pyFAI's profiles of their rings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from pyFAI.integrator.azimuthal import AzimuthalIntegrator
from scipy.optimize import curve_fit

from bluesky_symdenoise.analysis.integrate import METHOD
from bluesky_symdenoise.bench.truth.features import CENTER, SIDE, Row, outside
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.physics.symmetry import Symmetry
from bluesky_symdenoise.training.series import textured_rate
from bluesky_symdenoise.training.simulate import Image, View, random_rate

LEVELS = (0.1, 1.0, 10.0, 100.0)
SHARES = (0.68, 0.95)
DECILES = 10
#: Rings of `textured_rate` that are narrow enough to be fitted: radius and standard deviation, in pixels.
RINGS = ((74.0, 3.0), (118.0, 4.0))
#: Half width of the fitted part of a profile, in standard deviations of the ring, and width of a bin in pixels.
REACH, BIN = 4.0, 0.5
_PIXEL = 1e-4

Draw = Callable[[np.random.Generator], Image]


def _textured(rng: np.random.Generator) -> Image:
    return textured_rate(View.about(CENTER, (SIDE, SIDE)), orientation=float(rng.uniform()))


def _random(rng: np.random.Generator) -> Image:
    return random_rate(rng, (SIDE, SIDE))


#: True rates: the rings of the examples, which are not in the training data, and draws of the training simulator.
PATTERNS: dict[str, tuple[Draw, str]] = {"rings": (_textured, "2mm"), "as trained on": (_random, "1")}


def intervals(denoiser: Denoiser, rng: np.random.Generator, *, frames: int) -> Iterator[Row]:
    """Yield how often the true rate is within the 68 and 95 % intervals, over all pixels and by decile of the rate."""
    for (name, (draw, group)), level in product(PATTERNS.items(), LEVELS):
        covered = {share: np.zeros(DECILES) for share in SHARES}
        for _ in range(frames):
            rate = draw(rng)
            rate *= level / rate.mean()
            mean, sigma = _denoised(denoiser, rng.poisson(rate), group)
            order = np.argsort(rate, axis=None)
            for share, decile in product(SHARES, range(DECILES)):
                at = order[decile * order.size // DECILES : (decile + 1) * order.size // DECILES]
                covered[share][decile] += 1 - outside(mean.flat[at], sigma.flat[at], rate.flat[at], share)
        for share, found in covered.items():
            found /= frames
            yield {
                "what": "interval",
                "pattern": name,
                "level": level,
                "share": share,
                "covered": float(found.mean()),
                "least": float(found.min()),
                "most": float(found.max()),
                "deciles": found.tolist(),
            }


def sums(denoiser: Denoiser, rng: np.random.Generator, *, frames: int) -> Iterator[Row]:
    """Yield total flux, and flux of rings and sectors around the centre, against the truth.

    ``worst`` is the largest mean relative error of any part over the frames, and ``worst_in_sigma`` the largest in
    units of the statistical error of its photons in one frame.
    """
    grid = View.about(CENTER, (SIDE, SIDE))
    parts = {
        "total": np.zeros((SIDE, SIDE), int),
        "rings": np.minimum(grid.radius / 16, 7).astype(int),
        "sectors": ((grid.azimuth + np.pi) / (2 * np.pi) * 12).astype(int) % 12,
    }
    for level in LEVELS:
        off: dict[str, list[NDArray[np.float64]]] = {name: [] for name in parts}
        noise: dict[str, NDArray[np.float64]] = {}
        for _ in range(frames):
            rate = _textured(rng)
            rate *= level / rate.mean()
            mean, _ = _denoised(denoiser, rng.poisson(rate), "2mm")
            for name, part in parts.items():
                true, found = (np.bincount(part.ravel(), image.ravel()) for image in (rate, mean))
                off[name].append(found / true - 1)
                noise[name] = 1 / np.sqrt(true)
        for name, errors in off.items():
            bias = np.mean(errors, axis=0)
            error = np.std(errors, axis=0) / sqrt(frames)
            at = int(np.argmax(np.abs(bias)))
            yield {
                "what": "flux",
                "of": name,
                "level": level,
                "frames": frames,
                "worst": float(bias[at]),
                "standard_error": float(error[at]),
                "worst_in_sigma": float(np.max(np.abs(bias) / noise[name])),
            }


def peaks(denoiser: Denoiser, rng: np.random.Generator, *, frames: int) -> Iterator[Row]:
    """Yield area, centroid and width of rings after pyFAI's integration: a Gaussian on a line, fitted to mean profiles.

    The truth is the same fit to the profile of the rate; ``sigma`` is the spread of the fits to single raw frames.
    Profiles are averaged over the frames, so that the fit's own noise is not taken for a bias.
    """
    integrator = AzimuthalIntegrator(
        dist=1.0, poni1=(CENTER[0] + 0.5) * _PIXEL, poni2=(CENTER[1] + 0.5) * _PIXEL, pixel1=_PIXEL, pixel2=_PIXEL
    )
    for level, (radius, width) in product(LEVELS, RINGS):
        reach = REACH * width
        edges = (radius - reach, radius + reach)
        bins = round(2 * reach / BIN)

        def profile(
            image: Image, edges: tuple[float, float] = edges, bins: int = bins
        ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            millimetres = tuple(1e3 * _PIXEL * edge for edge in edges)
            done = integrator.integrate1d_ng(
                image, bins, unit="r_mm", radial_range=millimetres, method=METHOD, correctSolidAngle=False
            )
            return done.radial / (1e3 * _PIXEL), done.intensity

        rate = textured_rate(View.about(CENTER, (SIDE, SIDE)), orientation=0.5)
        rate *= level / rate.mean()
        x, true = profile(rate)
        guess = (float(true.max() - true.min()) * width * sqrt(2 * np.pi), radius, width, float(true.min()), 0.0)
        truth = _fitted(x, true, guess)
        raw, denoised = [], []
        for _ in range(frames):
            counts = rng.poisson(rate)
            raw.append(_fitted(*profile(counts.astype(float)), guess=tuple(truth)))
            denoised.append(profile(_denoised(denoiser, counts, "2mm")[0])[1])
        found = _fitted(x, np.mean(denoised, axis=0), tuple(truth))
        spread = np.nanstd(raw, axis=0)
        for index, name in enumerate(("area", "centroid", "width")):
            unit = 1.0 if name == "centroid" else truth[index]
            yield {
                "what": "peak",
                "radius": radius,
                "level": level,
                "quantity": name,
                "frames": frames,
                "bias": float((found[index] - truth[index]) / unit),
                "sigma": float(spread[index] / unit),
            }


def _fitted(x: NDArray[np.float64], y: NDArray[np.float64], guess: tuple[float, ...]) -> NDArray[np.float64]:
    """Return area, centroid, standard deviation, height and slope of the line; NaN where the fit does not end."""

    def model(
        x: NDArray[np.float64], area: float, centroid: float, width: float, height: float, slope: float
    ) -> NDArray[np.float64]:
        peak = area / (abs(width) * sqrt(2 * np.pi)) * np.exp(-(((x - centroid) / width) ** 2) / 2)
        return np.asarray(peak + height + slope * (x - guess[1]))

    try:
        found, _ = curve_fit(model, x, y, p0=guess, maxfev=2000)
    except RuntimeError:
        return np.full(5, np.nan)
    return np.asarray(np.concatenate([found[:2], np.abs(found[2:3]), found[3:]]))


def _denoised(denoiser: Denoiser, counts: NDArray[np.int64], group: str) -> tuple[Image, Image]:
    result = denoiser(counts, symmetry=Symmetry(group, CENTER) if group != "1" else Symmetry())
    return result["intensity"].values.astype(np.float64), result["sigma"].values.astype(np.float64)
