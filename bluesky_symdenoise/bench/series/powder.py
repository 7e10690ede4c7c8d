"""Pair distribution functions of a series of powder frames: exposure saved over the raw frame."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.bench.quality.metrics import FloatArray
from bluesky_symdenoise.bench.quality.report import Result
from bluesky_symdenoise.bench.series.borrowing import OURS, denoised
from bluesky_symdenoise.bench.series.compared import Row
from bluesky_symdenoise.bench.simulated.powders import Powder
from bluesky_symdenoise.bench.truth.pdf import Q_MAXIMA
from bluesky_symdenoise.bench.truth.savings import RAW, with_savings
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.physics.neighbours.window import REACH

#: Frames of the series, counts per pixel, and exposures of the raw frames that errors are compared with.
FRAMES, LEVELS, RAW_EXPOSURES = 20, (0.3, 3.0), (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


def run(denoiser: Denoiser, powder: Powder, *, levels: tuple[float, ...], frames: int, seed: int) -> Iterator[Row]:
    """Yield, by level and method, the rms error of G(r) over the frames of a series of one scene.

    ``saved_against_raw`` is how many times longer a raw frame must count for the same error. Each method has the end of
    the transform that suits it best.
    """
    truth = powder.pair_distribution(powder.rate)
    for level in levels:
        rng = np.random.default_rng((seed, round(level * 1e3)))
        rate = np.where(powder.mask, 0.0, powder.rate * level)
        squares: dict[tuple[str, float], FloatArray] = {}
        for exposure in RAW_EXPOSURES:
            few = max(4, frames // 4)
            squares[RAW, exposure] = _squares(powder, rng.poisson(rate * exposure, (few, *rate.shape)), truth)
        counts = rng.poisson(rate, (frames, *rate.shape)).astype(np.float64)
        borrowed = {}
        for name, side in OURS.items():
            found = denoised(denoiser, counts, powder.mask, side)
            squares[name, 1.0] = _squares(powder, found.intensity, truth)
            borrowed[name] = float(found.borrowed.mean())
        results: list[Result] = []
        for (method, exposure), each in squares.items():
            errors = np.sqrt(each.mean(axis=0))
            best = int(np.argmin(errors))
            row: Result = {"pattern": powder.name, "quantity": "G(r)", "level": level * exposure, "method": method}
            results.append(row | {"rms": float(errors[best]), "q_max": Q_MAXIMA[best]})
        reach = np.mean([len(range(max(0, i - REACH), min(frames, i + REACH + 1))) for i in range(frames)])
        for row in with_savings(results):
            if row["level"] == level:
                kept = {name: value for name, value in row.items() if name != "saved_against_fit"}
                yield kept | {"frames": frames, "in_reach": float(reach), "borrowed": borrowed.get(str(row["method"]))}


def _squares(powder: Powder, images: NDArray[Any], truth: FloatArray) -> FloatArray:
    """Return the mean squared error of G(r), (frame, end of the transform)."""
    away = [
        [powder.pair_distribution(image.astype(np.float64), q_max) - truth for q_max in Q_MAXIMA] for image in images
    ]
    return np.asarray((np.array(away) ** 2).mean(axis=-1))
