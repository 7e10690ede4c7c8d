"""Small features that the denoiser keeps, and false ones that it invents, on simulated frames whose truth is known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import erf, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import brentq
from scipy.stats import gamma

from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.physics.symmetry import Symmetry
from bluesky_symdenoise.training.series import textured_rate
from bluesky_symdenoise.training.simulate import Image, View, peakless_rate

#: One measured figure, ready for JSON: a flat dictionary except for lists; `what` names its kind.
Row = dict[str, Any]

LEVELS = (0.1, 1.0, 10.0)
#: Full widths at half maximum in pixels, and matched-filter significances, of the features that are added.
WIDTHS, SIGNIFICANCES = (1.0, 2.0, 4.0, 8.0), (1.0, 2.0, 3.0, 5.0, 10.0, 20.0)
#: Number of its own sigmas by which the denoised frame must exceed the truth without the feature.
THRESHOLDS = (2.0, 3.0, 4.0, 5.0)
DETECTED = 3.0
SIDE, CELL = 256, 64
CENTER = (127.5, 127.5)
_FWHM = 2 * sqrt(2 * np.log(2))


def spot(center: tuple[float, float], width: float, shape: tuple[int, int] = (SIDE, SIDE)) -> Image:
    """Return a Gaussian of full width at half maximum ``width`` that adds up to 1, integrated over each pixel."""
    scale = width / _FWHM * sqrt(2)
    sides = []
    for middle, length in zip(center, shape, strict=True):
        edges = np.array([erf((edge - 0.5 - middle) / scale) for edge in range(length + 1)])
        sides.append(np.diff(edges) / 2)
    return np.outer(*sides)


def amplitude(significance: float, profile: Image, rate: Image) -> float:
    """Return a feature's counts at this significance by a matched filter: S^2 = sum (A p)^2 / (b + A p)."""
    on = profile > 1e-9
    p, b = profile[on], rate[on]

    def excess(log_counts: float) -> float:
        counts = np.exp(log_counts)
        return float(np.sum((counts * p) ** 2 / (b + counts * p)) - significance**2)

    return float(np.exp(brentq(excess, -20, 30)))


def injected(denoiser: Denoiser, rng: np.random.Generator, *, frames: int) -> Iterator[Row]:
    """Yield, for spots of each width and significance on smooth frames, how much of them is kept and how many are seen.

    Each frame is denoised with and without the photons of its spots, so that the difference is due to them alone.
    ``kept`` is the difference within two widths (and three pixels) over the spots' counts.
    """
    for level in LEVELS:
        smooth = [level * peakless_rate(rng, (SIDE, SIDE)) for _ in range(frames)]
        bases = [rng.poisson(rate) for rate in smooth]
        without = [denoiser(counts, symmetry="1") for counts in bases]
        for width, significance in product(WIDTHS, SIGNIFICANCES):
            kept, put, seen = 0.0, 0.0, []
            for rate, counts, before in zip(smooth, bases, without, strict=True):
                places = [
                    (y + rng.uniform(-8, 8), x + rng.uniform(-8, 8))
                    for y, x in product(range(CELL // 2, SIDE, CELL), repeat=2)
                ]
                added = np.zeros((SIDE, SIDE))
                for place in places:
                    profile = spot(place, width)
                    added += rng.poisson(amplitude(significance, profile, rate) * profile)
                after = denoiser(counts + added, symmetry="1")
                change = after["intensity"].values - before["intensity"].values
                risen = (after["intensity"].values - rate) / after["sigma"].values
                for place in places:
                    near = _within(place, 2 * width + 3)
                    kept, put = kept + float(change[near].sum()), put + float(added[near].sum())
                    seen.append(float(risen[_within(place, width / 2 + 1)].max()) > DETECTED)
            yield {
                "what": "spot",
                "level": level,
                "width": width,
                "significance": significance,
                "number": len(seen),
                "kept": kept / put if put else None,
                "seen": float(np.mean(seen)),
            }


def made_up(denoiser: Denoiser, rng: np.random.Generator, *, frames: int) -> Iterator[Row]:
    """Yield connected regions above each threshold in featureless frames, and pixels off by three sigma, by level.

    ``beyond`` is the share of pixels whose true rate is outside the interval that should hold 99.73 % of them.
    """
    for level, kind in product((0.0, *LEVELS), ("flat", "smooth")):
        if level == 0 and kind == "smooth":
            continue
        found, beyond = np.zeros(len(THRESHOLDS)), []
        for _ in range(frames):
            rate = level * (np.ones((SIDE, SIDE)) if kind == "flat" else peakless_rate(rng, (SIDE, SIDE)))
            result = denoiser(rng.poisson(rate), symmetry="1")
            mean, sigma = (result[name].values.astype(np.float64) for name in ("intensity", "sigma"))
            found += [ndimage.label(mean - rate > limit * sigma)[1] for limit in THRESHOLDS]
            beyond.append(outside(mean, sigma, rate, 0.9973) if level else 0.0)
        yield {
            "what": "nothing",
            "level": level,
            "kind": kind,
            "frames": frames,
            "per_megapixel": dict(zip(map(str, THRESHOLDS), found / (frames * SIDE**2) * 1e6, strict=True)),
            "beyond": float(np.mean(beyond)) if level else None,
        }


def outside(mean: Image, sigma: Image, rate: Image, share: float) -> float:
    """Return the share of pixels whose rate is outside the central interval of the Gamma posterior."""
    positive = np.maximum(mean, 1e-12)
    below = gamma.cdf(rate, (positive / sigma) ** 2, scale=sigma**2 / positive)
    return float(np.mean(np.abs(below - 0.5) > share / 2))


def symmetric(denoiser: Denoiser, rng: np.random.Generator, *, frames: int) -> Iterator[Row]:
    """Yield results for spots that break the symmetry ``2``: one of 5 sigma added, one of a pair of 20 sigma removed.

    ``kept`` is what is left of a spot over its counts; ``copied`` what appears at the mate's place, over the same.
    Both are differences of frames that share all other photons.
    """
    symmetry = Symmetry("2", CENTER)
    grid = View.about(CENTER, (SIDE, SIDE))
    for level, significance in product(LEVELS, (5.0, 20.0)):
        put, kept, copied = [], [], []
        for _ in range(frames):
            rate = textured_rate(grid, orientation=float(rng.uniform()))
            rate *= level / rate.mean()
            counts = rng.poisson(rate)
            before = denoiser(counts, symmetry=symmetry)["intensity"].values
            place = (rng.uniform(20, SIDE - 20), rng.uniform(20, CENTER[1] - 20))
            profile = spot(place, 3.0)
            added = rng.poisson(amplitude(significance, profile, rate) * profile)
            change = denoiser(counts + added, symmetry=symmetry)["intensity"].values - before
            near, there = _within(place, 9), _within((2 * CENTER[0] - place[0], 2 * CENTER[1] - place[1]), 9)
            put.append(float(added[near].sum()))
            kept.append(float(change[near].sum()))
            copied.append(float(change[there].sum()))
        total = float(np.sum(put))
        error = sqrt(frames) / total if total else 0.0
        yield {
            "what": "asymmetric",
            "level": level,
            "significance": significance,
            "number": frames,
            "kept": float(np.sum(kept)) / total,
            "kept_error": float(np.std(np.subtract(kept, put))) * error,
            "copied": float(np.sum(copied)) / total,
            "copied_error": float(np.std(copied)) * error,
        }


def _within(place: Sequence[float], radius: float) -> NDArray[np.bool_]:
    y, x = np.ogrid[:SIDE, :SIDE]
    return np.asarray((y - place[0]) ** 2 + (x - place[1]) ** 2 <= radius**2)
