"""What sharing photons does in time: the lag of a transition, and a feature that is in one row only."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import special
from scipy.optimize import curve_fit

from bluesky_symdenoise.bench.quality.metrics import FloatArray
from bluesky_symdenoise.bench.series.borrowing import OURS, denoised
from bluesky_symdenoise.bench.series.compared import Row
from bluesky_symdenoise.bench.simulated.series import grains, still, transition
from bluesky_symdenoise.bench.truth.features import amplitude, spot
from bluesky_symdenoise.denoiser.infer import Denoiser

#: Rows of a series, and widths of the transition in rows.
ROWS, WIDTHS = 17, (0.5, 1.5)
#: Significances of the spots that are in one row only, and their full width in pixels.
SIGNIFICANCES, SPOT = (5.0, 10.0, 20.0), 2.5
#: Distance in pixels within which a spot's counts are added up.
_NEAR = 7


def transitions(denoiser: Denoiser, *, levels: tuple[float, ...], frames: int, side: int, seed: int) -> Iterator[Row]:
    """Yield, by level, width and method, the lag of a transition's midpoint in rows, mean over series.

    The share of the second state in a row is the projection of its intensity onto the difference of the two states,
    each pixel weighted by its Poisson variance; a logistic curve through the shares has the midpoint. Raw counts are
    the control: their projection is unbiased.
    """
    for level in levels:
        for width in WIDTHS:
            found: dict[str, list[float]] = {}
            widths: dict[str, list[float]] = {}
            for series in range(frames):
                rng = np.random.default_rng((seed, series))
                middle = (ROWS - 1) / 2 + rng.uniform(-0.5, 0.5)
                rates, first, second = transition(rng, ROWS, (side, side), middle, width)
                scale = level / rates.mean()
                counts = rng.poisson(rates * scale).astype(np.float64)
                images = {"raw": counts}
                for name, borrow in OURS.items():
                    images[name] = denoised(denoiser, counts, np.zeros((side, side), bool), borrow).intensity
                for name, image in images.items():
                    fitted = _midpoint(_shares(image / scale, first, second), middle, width)
                    found.setdefault(name, []).append(fitted[0] - middle)
                    widths.setdefault(name, []).append(fitted[1])
            for name, lags in found.items():
                yield {
                    "what": "transition",
                    "level": level,
                    "width": width,
                    "method": name,
                    "series": frames,
                    "lag": float(np.mean(lags)),
                    "lag_error": float(np.std(lags) / np.sqrt(max(1, frames - 1))),
                    "over_raw": float(np.mean(np.subtract(lags, found["raw"]))),
                    "over_raw_error": float(np.std(np.subtract(lags, found["raw"])) / np.sqrt(max(1, frames - 1))),
                    "fitted_width": float(np.mean(widths[name])),
                }


def in_one_row(denoiser: Denoiser, *, levels: tuple[float, ...], frames: int, side: int, seed: int) -> Iterator[Row]:
    """Yield, by level and significance, how much of spots in one row is kept there, and shows in the rows beside it.

    Each series is denoised with and without the photons of the spots, so that the difference is due to them alone.
    ``kept`` is what is left of their counts; ``beside`` what shows in either row next to it, over the same counts.
    """
    rows, mask = ROWS, np.zeros((side, side), bool)
    here = rows // 2
    for level in levels:
        for significance in SIGNIFICANCES:
            put: list[float] = []
            kept: dict[str, list[float]] = {name: [] for name in OURS}
            beside: dict[str, list[float]] = {name: [] for name in OURS}
            for series in range(frames):
                rng = np.random.default_rng((seed, 1, series))
                rates = still(rng, rows, (side, side)) + grains(rng, (side, side), 2)
                rates *= level / rates.mean()
                counts = rng.poisson(rates).astype(np.float64)
                added = counts.copy()
                places = _places(rng, side)
                for place in places:
                    profile = spot(place, SPOT, (side, side))
                    added[here] += rng.poisson(amplitude(significance, profile, rates[here]) * profile)
                near = _near(places, side)
                put.append(float((added - counts)[here][near].sum()))
                for name, borrow in OURS.items():
                    change = (
                        denoised(denoiser, added, mask, borrow).intensity
                        - denoised(denoiser, counts, mask, borrow).intensity
                    )
                    kept[name].append(float(change[here][near].sum()))
                    beside[name].append(float(change[[here - 1, here + 1]][:, near].sum() / 2))
            total = float(np.sum(put))
            for name in OURS:
                alone = float(np.sum(kept["alone"]))
                yield {
                    "what": "one row",
                    "level": level,
                    "significance": significance,
                    "method": name,
                    "spots": frames * len(places),
                    "kept": float(np.sum(kept[name])) / total,
                    "kept_error": float(np.std(np.subtract(kept[name], put))) * np.sqrt(frames) / total,
                    "of_alone": float(np.sum(kept[name])) / alone if alone > 0 else None,
                    "beside": float(np.sum(beside[name])) / total,
                    "beside_error": float(np.std(beside[name])) * np.sqrt(frames) / total,
                }


def _shares(rates: FloatArray, first: FloatArray, second: FloatArray) -> FloatArray:
    """Return the share of the second state in each row."""
    weighted = (second - first) / (first + second)
    return np.asarray(((rates - first) * weighted).sum(axis=(1, 2)) / ((second - first) * weighted).sum())


def _midpoint(shares: FloatArray, middle: float, width: float) -> tuple[float, float]:
    def curve(row: FloatArray, middle: float, width: float, start: float, height: float) -> FloatArray:
        return np.asarray(start + height * special.expit((row - middle) / max(abs(width), 1e-3)))

    rows = len(shares)
    # A transition that was washed out has no midpoint: it is kept within the series.
    bounds = ([0, 1e-3, -2, 0], [rows - 1, rows, 2, 4])
    fitted, _ = curve_fit(curve, np.arange(rows), shares, p0=(middle, width, 0.0, 1.0), bounds=bounds, maxfev=20000)
    return float(fitted[0]), abs(float(fitted[1]))


def _places(rng: np.random.Generator, side: int) -> list[tuple[float, float]]:
    """Return a place for a spot in each quarter of the frame."""
    quarters = [(y, x) for y in (0.25, 0.75) for x in (0.25, 0.75)]
    return [(y * side + rng.uniform(-4, 4), x * side + rng.uniform(-4, 4)) for y, x in quarters]


def _near(places: list[tuple[float, float]], side: int) -> FloatArray:
    y, x = np.ogrid[:side, :side]
    return np.any([(y - place[0]) ** 2 + (x - place[1]) ** 2 <= _NEAR**2 for place in places], axis=0)
