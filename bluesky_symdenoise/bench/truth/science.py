"""Gain of measured quantities from denoising: errors against exposure, beside raw counts and a likelihood fit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isfinite
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bluesky_symdenoise.bench.options import JsonPath, ModelName
from bluesky_symdenoise.bench.quality.report import Result
from bluesky_symdenoise.bench.record import header, write
from bluesky_symdenoise.bench.simulated.patterns import QUANTITIES, Pattern, measured, simulated
from bluesky_symdenoise.bench.simulated.powders import powders
from bluesky_symdenoise.bench.truth import few, pdf
from bluesky_symdenoise.bench.truth.estimators import METHODS, errors, estimates
from bluesky_symdenoise.bench.truth.savings import OURS, PEERS, RAW, summary, verdict, with_savings
from bluesky_symdenoise.denoiser.identity import model_file
from bluesky_symdenoise.denoiser.infer import Denoiser

#: Mean counts per pixel of the ring.
LEVELS = (0.05, 0.15, 0.5, 1.5, 5.0, 10.0)
#: Fewest frames, determined by both raw counts and the denoised frame, for which figures are given.
ENOUGH = 10
LEGEND = (
    "determined: number of frames with a result, for raw counts, denoised as it is, denoised, and the fit (no result "
    "where counts refute its form). rms: over frames with a result of both raw counts and denoised, in degrees, 1, "
    "pixels, or pixels times the ring's mean. chi2: reduced chi-squared of the stated errors. "
    "saved: how many times longer the other method must count to reach the error of the denoised frame."
)


def run(
    patterns: Sequence[Pattern],
    denoiser: Denoiser,
    *,
    levels: Sequence[float] = LEVELS,
    frames: int = 60,
    replicates: int = 8,
    seed: int = 0,
) -> list[Result]:
    """Estimate every quantity of frames of patterns by all methods.

    Parameters
    ----------
    levels
        Mean counts per pixel of the ring.
    frames
        Number of frames for each pattern and level.
    replicates
        Number of denoised replicates from which the errors of one frame are estimated.

    Returns
    -------
    list of dict
        One for each pattern, quantity, level and method; None where too few frames are determined.
    """
    results: list[Result] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(patterns) * len(levels) * frames)
        for pattern in patterns:
            for level in levels:
                rng = np.random.default_rng(seed)
                away: dict[tuple[str, str], list[tuple[float, float]]] = {}
                for _ in range(frames):
                    progress.update(task, description=f"{pattern.name} {level:g}", advance=1)
                    counts, truth = pattern.draw(rng, level)
                    for method, estimate in estimates(pattern, counts, denoiser, replicates, rng).items():
                        for quantity, error in errors(pattern, estimate, truth).items():
                            away.setdefault((quantity, method), []).append(error)
                results += _rows(pattern.name, level, {key: np.array(column) for key, column in away.items()})
    return with_savings(results)


def _rows(pattern: str, level: float, away: dict[tuple[str, str], NDArray[np.float64]]) -> Iterable[Result]:
    for quantity in QUANTITIES:
        columns = {method: away[quantity, method] for method in METHODS}
        common = np.all([np.isfinite(columns[method]).all(axis=1) for method in (RAW, OURS)], axis=0)
        unit = level if quantity == "peak_area" else 1.0
        for method, column in columns.items():
            own = column[np.isfinite(column).all(axis=1)]
            compared = column[common & np.isfinite(column).all(axis=1)]
            squares = (own[:, 0] / own[:, 1]) ** 2
            enough = len(compared) >= ENOUGH
            yield {
                "pattern": pattern,
                "quantity": quantity,
                "level": level,
                "method": method,
                "frames": len(column),
                "determined": len(own),
                "compared": len(compared),
                "rms": float(np.sqrt(np.mean(compared[:, 0] ** 2)) / unit) if enough else None,
                "bias": float(np.mean(compared[:, 0]) / unit) if enough else None,
                "chi2": float(squares.mean()) if len(own) >= ENOUGH else None,
                "chi2_error": float(squares.std() / np.sqrt(len(own))) if len(own) >= ENOUGH else None,
            }


def report(results: list[Result], pattern: str) -> Table:
    """Return the table of one pattern: a section for each quantity."""
    table = Table(title=f"rings: {pattern}")
    for name in ("quantity", "counts/px", "determined"):
        table.add_column(name, no_wrap=True, justify="left" if name == "quantity" else "right")
    for name in ("rms raw", "as it is", "denoised", "fit"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("chi2 raw", "as it is", "denoised", "fit"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("saved against raw", "against the fit"):
        table.add_column(name, justify="right")
    last = None
    for quantity in QUANTITIES:
        rows = [row for row in results if row["pattern"] == pattern and row["quantity"] == quantity]
        for level in dict.fromkeys(row["level"] for row in rows):
            by = {str(row["method"]): row for row in rows if row["level"] == level}
            if quantity != last:
                table.add_section()
            table.add_row(
                quantity if quantity != last else "",
                f"{level:g}",
                " ".join(str(by[method]["determined"]) for method in METHODS),
                *(_text(by[method]["rms"], ".3g") for method in METHODS),
                *(_text(by[method]["chi2"], ".2f") for method in METHODS),
                _text(by[OURS]["saved_against_raw"], ".2f"),
                _text(by[OURS]["saved_against_fit"], ".2f"),
            )
            last = quantity
    return table


def summary_table(found: list[Result]) -> Table:
    """Return the table of what denoising changes: the exposure at equal error, and whether error bars are correct."""
    table = Table(title="exposure saved by denoising, and reduced chi-squared of error bars, over all exposures")
    for name in ("pattern", "quantity"):
        table.add_column(name, no_wrap=True)
    for name in ("against raw counts", "against the likelihood fit"):
        table.add_column(name, justify="right")
    for method in METHODS:
        table.add_column(f"chi2 {method}", justify="right", no_wrap=True)
    last = None
    for row in found:
        if row["pattern"] != last:
            table.add_section()
        saved = [row[f"saved_against_{peer}"] for peer in PEERS]
        chi2 = [(row.get(f"chi2_{method}"), row.get(f"chi2_error_{method}")) for method in METHODS]
        table.add_row(
            str(row["pattern"]) if row["pattern"] != last else "",
            str(row["quantity"]),
            *("" if factor is None else f"{verdict(factor)} (x {factor:.2f})" for factor in saved),
            *("" if value is None else f"{value:.2f} ± {error:.2f}" for value, error in chi2),
        )
        last = row["pattern"]
    return table


def _text(value: str | int | float | None, form: str) -> str:
    return format(float(value), form) if value is not None and isfinite(float(value)) else ""


def main(
    data: Annotated[Path | None, typer.Option(help="Folder with real frames (HDF5 with counts, mask, role).")] = None,
    json_path: JsonPath = None,
    frames: Annotated[int, typer.Option(min=2, help="Frames for each ring and exposure.")] = 60,
    replicates: Annotated[int, typer.Option(min=2, help="Denoised frames behind the error bars of one.")] = 8,
    smae_frames: Annotated[
        int, typer.Option(min=0, help="Frames of a simulated ring on which SMAE is trained too; half a minute each.")
    ] = 0,
    model: ModelName = None,
) -> None:
    """Measure rings and G(r) of powders: exposure saved against raw counts and a likelihood fit; error bars."""
    patterns = simulated() + ([] if data is None else measured(data))
    denoiser = Denoiser.pretrained(model, threads=1)
    about = header(model_file(model), device=denoiser.environment()["device"])
    # First, for it says so if a package is missing.
    pairs = pdf.run(powders(), denoiser)
    rings = run(patterns, denoiser, frames=frames, replicates=replicates)
    found = summary([*rings, *pairs])
    beside_smae = few.run(simulated()[-1], denoiser, frames=smae_frames, replicates=replicates)
    console = Console()
    if not console.is_terminal:
        console.width = 170
    for pattern in patterns:
        console.print(report(rings, pattern.name))
    console.print(LEGEND)
    console.print(pdf.report(pairs))
    console.print(pdf.LEGEND)
    console.print(summary_table(found))
    if beside_smae:
        console.print(few.report(beside_smae))
        console.print(few.LEGEND)
    write(json_path, about, {"summary": found, "rings": rings, "pdf": pairs, "smae": beside_smae})
