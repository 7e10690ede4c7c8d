"""What a ring's quantities gain from denoising: errors against exposure, beside raw counts and a likelihood fit."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from math import isfinite
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bluesky_symdenoise.analysis.estimate import Estimate, Observed, from_counts, from_denoised, from_likelihood
from bluesky_symdenoise.bench.patterns import QUANTITIES, Image, Pattern, measured, simulated
from bluesky_symdenoise.bench.report import Result, number
from bluesky_symdenoise.denoiser.infer import Denoiser

#: Mean counts per pixel of the ring.
LEVELS = (0.05, 0.15, 0.5, 1.5, 5.0, 10.0)
#: The frame as it comes from the denoiser, with the errors of as many photons; and less its bias, with replicates.
RAW, PLAIN, OURS, FIT = "raw counts", "denoised, as it is", "denoised", "likelihood fit"
METHODS = (RAW, PLAIN, OURS, FIT)
#: Fewer frames that both raw counts and the denoised frame determine make no figure.
ENOUGH = 10
LEGEND = (
    "determined: frames, by raw counts, denoised as it is, denoised, fit (which is not where counts refute its form). "
    "rms: over frames that raw counts and denoised determine; degrees, 1, pixels, pixels times the ring's mean. "
    "chi2: reduced chi-squared of the claimed errors. "
    "saved: how many times longer the other has to count for the error of the denoised frame."
)
#: Exposures differ by more than this fraction before one method is said to be better.
NOTABLE = 0.1


def run(
    patterns: Sequence[Pattern],
    *,
    levels: Sequence[float] = LEVELS,
    frames: int = 40,
    replicates: int = 8,
    model: str | None = None,
    seed: int = 0,
) -> list[Result]:
    """Estimate every quantity of frames of patterns by all methods.

    Parameters
    ----------
    levels
        Mean counts per pixel of the ring.
    frames
        For each pattern and level.
    replicates
        Denoised frames behind the errors of one.

    Returns
    -------
    list of dict
        One for each pattern, quantity, level and method; None where too few frames are determined.
    """
    results: list[Result] = []
    denoiser = Denoiser.pretrained(model, threads=1)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(patterns) * len(levels) * frames)
        for pattern in patterns:
            for level in levels:
                rng = np.random.default_rng(seed)
                away: dict[tuple[str, str], list[tuple[float, float]]] = {}
                for _ in range(frames):
                    progress.update(task, description=f"{pattern.name} {level:g}", advance=1)
                    counts, truth = pattern.draw(rng, level)
                    for method, estimate in _estimates(pattern, counts, denoiser, replicates, rng).items():
                        found = estimate.quantities(inner=pattern.inner, outer=pattern.outer)
                        for quantity in QUANTITIES:
                            value, sigma = found[quantity]
                            error = value - truth[quantity]
                            error = (error + 90) % 180 - 90 if quantity == "orientation" else error
                            away.setdefault((quantity, method), []).append((error, sigma))
                results += _rows(pattern.name, level, {key: np.array(column) for key, column in away.items()})
    return _with_savings(results)


def _estimates(
    pattern: Pattern, counts: Image, denoiser: Denoiser, replicates: int, rng: np.random.Generator
) -> dict[str, Estimate]:
    n, annulus = pattern.exposure, pattern.annulus

    def denoise(image: Image) -> Image:
        result = denoiser(image, mask=n == 0, symmetry=pattern.symmetry)
        return result["intensity"].values.astype(np.float64)

    observed = Observed(counts, n, np.zeros_like(n))
    intensity = denoise(counts)
    filled = Observed(np.nan_to_num(intensity), np.isfinite(intensity).astype(np.float64), np.zeros_like(n))
    return {
        RAW: from_counts(annulus, observed),
        PLAIN: from_counts(annulus, filled),
        OURS: from_denoised(annulus, intensity, observed, denoise, replicates=replicates, rng=rng),
        FIT: from_likelihood(annulus, observed),
    }


def _rows(pattern: str, level: float, away: dict[tuple[str, str], NDArray[np.float64]]) -> Iterable[Result]:
    for quantity in QUANTITIES:
        columns = {method: away[quantity, method] for method in METHODS}
        common = np.all([np.isfinite(columns[method]).all(axis=1) for method in (RAW, OURS)], axis=0)
        unit = level if quantity == "peak_area" else 1.0
        for method, column in columns.items():
            own = column[np.isfinite(column).all(axis=1)]
            compared = column[common & np.isfinite(column).all(axis=1)]
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
                "chi2": float(np.mean((own[:, 0] / own[:, 1]) ** 2)) if len(own) >= ENOUGH else None,
            }


def _with_savings(results: list[Result]) -> list[Result]:
    """With ``saved_<method>``: how much longer that method has to count for the error of this row."""
    curves: dict[tuple[object, ...], list[tuple[float, float]]] = {}
    for row in results:
        if row["rms"] is not None:
            key = (row["pattern"], row["quantity"], row["method"])
            curves.setdefault(key, []).append((float(row["level"] or 0), float(row["rms"])))
    out = []
    for row in results:
        saved: Result = {
            f"saved_against_{'raw' if other == RAW else 'fit'}": _saved(
                row, curves.get((row["pattern"], row["quantity"], other), [])
            )
            for other in (RAW, FIT)
        }
        out.append(row | saved)
    return out


def _saved(row: Result, curve: list[tuple[float, float]]) -> float | None:
    """Exposure at which a curve of (level, rms) has this row's rms, over the row's.

    Beyond its ends it goes on by 1/sqrt, tenfold at most.
    """
    if row["rms"] is None or len(curve) < 2:
        return None
    level, rms = float(row["level"] or 0), float(row["rms"])
    levels, errors = np.log(np.array(curve).T)
    # Errors that do not fall with exposure are noise of the figure.
    errors = np.minimum.accumulate(errors)
    target = np.log(rms)
    if target >= errors[0]:
        found = levels[0] + 2 * (errors[0] - target)
    elif target <= errors[-1]:
        found = levels[-1] + 2 * (errors[-1] - target)
    else:
        found = float(np.interp(-target, -errors, levels))
    return float(np.exp(np.clip(found, levels[0] - np.log(10), levels[-1] + np.log(10))) / level)


def report(results: list[Result], pattern: str) -> Table:
    """The table of one pattern: a section for each quantity."""
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


def verdicts(results: list[Result]) -> list[str]:
    """A line for each pattern and quantity: what denoising gains, in exposure at equal error."""
    lines = []
    for pattern in dict.fromkeys(str(row["pattern"]) for row in results):
        for quantity in QUANTITIES:
            ours = [
                row
                for row in results
                if (row["pattern"], row["quantity"], row["method"]) == (pattern, quantity, OURS)
                and row["rms"] is not None
            ]
            if not ours:
                lines.append(f"{pattern}, {quantity}: too few frames determine it")
                continue
            raw, fit = (
                _gain([number(row[name]) for row in ours if row[name] is not None])
                for name in ("saved_against_raw", "saved_against_fit")
            )
            lines.append(
                f"{pattern}, {quantity}: denoising {raw} the same estimator on raw counts, {fit} the likelihood fit"
            )
        lines.append(f"{pattern}: chi2 over all quantities and exposures: {_chi2(results, pattern)}")
    return [*lines, "SMAE: not measured"]


def _chi2(results: list[Result], pattern: str) -> str:
    """The mean of each method, weighted by its frames."""
    said = []
    for method in METHODS:
        rows = [row for row in results if (row["pattern"], row["method"]) == (pattern, method)]
        known = np.array([(number(row["chi2"]), number(row["determined"])) for row in rows if row["chi2"] is not None])
        said.append(f"{method} {np.average(known[:, 0], weights=known[:, 1]):.2f}" if len(known) else f"{method} none")
    return ", ".join(said)


def _gain(factors: list[float]) -> str:
    """In words, with the geometric mean over the levels."""
    if not factors:
        return "cannot be compared with"
    factor = float(np.exp(np.mean(np.log(factors))))
    if factor > 1 + NOTABLE:
        said = "gains exposure over"
    elif factor < 1 / (1 + NOTABLE):
        said = "loses to"
    else:
        said = "gains nothing over"
    return f"(x {factor:.2f}) {said}"


def _text(value: str | int | float | None, form: str) -> str:
    return format(float(value), form) if value is not None and isfinite(float(value)) else ""


def main(
    data: Path | None = None,
    *,
    json_path: Path | None = None,
    frames: int = 40,
    replicates: int = 8,
    model: str | None = None,
    seed: int = 0,
) -> list[Result]:
    """Run, print the tables and what they say, and write the figures as JSON if a path is given."""
    patterns = simulated() + ([] if data is None else measured(data))
    results = run(patterns, frames=frames, replicates=replicates, model=model, seed=seed)
    console = Console()
    if not console.is_terminal:
        console.width = 170
    for pattern in patterns:
        console.print(report(results, pattern.name))
    console.print(LEGEND)
    for line in verdicts(results):
        console.print(line, highlight=False)
    if json_path is not None:
        json_path.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    return results
