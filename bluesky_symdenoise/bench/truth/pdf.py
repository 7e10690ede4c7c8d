"""Gain of a pair distribution function from denoising: its error against exposure, compared with raw counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.table import Table

from bluesky_symdenoise.bench.quality.report import Result, number
from bluesky_symdenoise.bench.simulated.powders import Powder, Values
from bluesky_symdenoise.bench.truth.savings import PLAIN, RAW, with_savings
from bluesky_symdenoise.denoiser.infer import Denoiser

#: Mean counts per pixel of the detector.
LEVELS = (0.1, 0.3, 1.0, 3.0, 10.0)
#: Upper ends of the transform, per angstrom; for each method, the best one is used.
Q_MAXIMA = (10.0, 12.0, 14.0, 16.0, 18.0, 20.0, 25.0)
LEGEND = (
    "rms: error of G(r) over 1.5 to 20 angstroms, per square angstrom, against an infinite exposure; (q): the end of "
    "the transform for which it is smallest, chosen for each method. Azimuthal integration of raw counts is the "
    "maximum-likelihood estimate of I(q)."
)


def run(
    powders: Sequence[Powder], denoiser: Denoiser, *, levels: Sequence[float] = LEVELS, frames: int = 5, seed: int = 0
) -> list[Result]:
    """Return errors of G(r) from raw and from denoised frames of powders.

    Parameters
    ----------
    levels
        Mean counts per pixel.
    frames
        Number of frames for each powder and level.

    Returns
    -------
    list of dict
        One for each powder, level and method.
    """
    results: list[Result] = []
    for powder in powders:
        truth = powder.pair_distribution(powder.rate)
        for level in levels:
            rng = np.random.default_rng(seed)
            squares: dict[str, list[Values]] = {RAW: [], PLAIN: []}
            for _ in range(frames):
                counts = rng.poisson(np.where(powder.mask, 0, powder.rate * level)).astype(np.float64)
                denoised = denoiser(counts, mask=powder.mask, symmetry=powder.symmetry)["intensity"].values
                for method, image in ((RAW, counts), (PLAIN, denoised)):
                    away = [powder.pair_distribution(image, q_max) - truth for q_max in Q_MAXIMA]
                    squares[method].append((np.array(away) ** 2).mean(axis=1))
            for method, each in squares.items():
                errors = np.sqrt(np.mean(each, axis=0))
                best = int(np.argmin(errors))
                results.append(
                    {
                        "pattern": powder.name,
                        "quantity": "G(r)",
                        "level": level,
                        "method": method,
                        "frames": frames,
                        "rms": float(errors[best]),
                        "q_max": Q_MAXIMA[best],
                        "rms_whole": float(errors[-1]),
                    }
                )
    return with_savings(results)


def report(results: list[Result]) -> Table:
    """Return a row for each powder and exposure."""
    table = Table(title="G(r) of powders")
    table.add_column("powder", no_wrap=True)
    for name in (
        "counts/px",
        "rms raw (q)",
        "denoised (q)",
        f"raw to {Q_MAXIMA[-1]:g}",
        "denoised",
        "saved against raw",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    pairs = zip(
        (row for row in results if row["method"] == RAW),
        (row for row in results if row["method"] == PLAIN),
        strict=True,
    )
    for raw, denoised in pairs:
        table.add_row(
            str(raw["pattern"]),
            f"{raw['level']:g}",
            *(f"{row['rms']:.3g} ({row['q_max']:g})" for row in (raw, denoised)),
            *(f"{row['rms_whole']:.3g}" for row in (raw, denoised)),
            f"{number(denoised['saved_against_raw']):.2f}",
        )
    return table
