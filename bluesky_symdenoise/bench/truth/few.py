"""SMAE compared with the other estimates of a ring, on few frames, because it is trained on each of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.table import Table

from bluesky_symdenoise.bench.quality.report import Result
from bluesky_symdenoise.bench.simulated.patterns import QUANTITIES, Pattern
from bluesky_symdenoise.bench.truth.estimators import METHODS, as_it_is, errors, estimates
from bluesky_symdenoise.bench.truth.savings import OURS, RAW
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.training.smae import BUDGET, Budget, both_measured, smae

SMAE = "SMAE, as it is"
#: Mean counts per pixel of the ring.
LEVELS = (0.5, 5.0)
LEGEND = (
    "SMAE: our reimplementation, trained on each frame by itself, zeros included; its image is analysed like counts. "
    "rms: over frames with a result of raw counts, denoised and SMAE, in the units above; few frames say little."
)


def run(
    pattern: Pattern,
    denoiser: Denoiser,
    *,
    frames: int,
    levels: Sequence[float] = LEVELS,
    replicates: int = 8,
    budget: Budget = BUDGET,
    seed: int = 0,
) -> list[Result]:
    """Return errors of every quantity by all methods and by SMAE, on the same frames.

    Parameters
    ----------
    frames
        Number of frames for each level; none for 0.
    levels
        Mean counts per pixel of the ring.

    Returns
    -------
    list of dict
        One for each quantity, level and method; ``rms`` is None where no frame is determined.
    """
    center = pattern.symmetry.beam_center
    assert center is not None
    results: list[Result] = []
    for level in levels if frames else ():
        rng = np.random.default_rng(seed)
        away: dict[tuple[str, str], list[float]] = {}
        for _ in range(frames):
            counts, truth = pattern.draw(rng, level)
            image = smae(counts, pattern.exposure == 0, center, common_mask=both_measured, budget=budget)
            image = np.where(pattern.exposure > 0, np.maximum(image, 0), np.nan)
            made = estimates(pattern, counts, denoiser, replicates, rng) | {SMAE: as_it_is(pattern, image)}
            for method, estimate in made.items():
                for quantity, (error, _) in errors(pattern, estimate, truth).items():
                    away.setdefault((quantity, method), []).append(error)
        for quantity in QUANTITIES:
            columns = {method: np.array(away[quantity, method]) for method in (*METHODS, SMAE)}
            common = np.all([np.isfinite(columns[method]) for method in (RAW, OURS, SMAE)], axis=0)
            for method, column in columns.items():
                unit = level if quantity == "peak_area" else 1.0
                compared = column[common & np.isfinite(column)] / unit
                results.append(
                    {
                        "pattern": pattern.name,
                        "quantity": quantity,
                        "level": level,
                        "method": method,
                        "frames": frames,
                        "determined": int(np.isfinite(column).sum()),
                        "compared": len(compared),
                        "rms": float(np.sqrt(np.mean(compared**2))) if len(compared) else None,
                    }
                )
    return results


def report(results: list[Result]) -> Table:
    """Return the table: a row for each quantity and level, a column for each method."""
    table = Table(
        title=f"rings: {results[0]['pattern']}, {results[0]['frames']} frames, rms error of all methods and SMAE"
    )
    for name in ("quantity", "counts/px", *METHODS, SMAE):
        table.add_column(name, justify="left" if name == "quantity" else "right")
    for quantity in QUANTITIES:
        for level in dict.fromkeys(row["level"] for row in results):
            rows = [row for row in results if (row["quantity"], row["level"]) == (quantity, level)]
            by = {str(row["method"]): row["rms"] for row in rows}
            shown = (by[method] for method in (*METHODS, SMAE))
            table.add_row(quantity, f"{level:g}", *("" if rms is None else f"{float(rms):.3g}" for rms in shown))
        table.add_section()
    return table
