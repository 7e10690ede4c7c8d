"""The scores of a run as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from math import inf, isfinite

import numpy as np
from rich.table import Table

from bluesky_symdenoise.bench.quality.metrics import STRATA

OURS = "symdenoise"
OURS_FOLDED = "symdenoise+symmetry"

NOT_APPLICABLE = "not applicable"
NOT_TESTABLE = "not testable"
"""Notes instead of scores: the method needs a symmetry or rings; the set has not enough counts for the level."""

#: Names of the strata of the rate, in counts per pixel.
STRATA_NAMES = (
    f"below {STRATA[0]:g}",
    *(f"{low:g} to {high:g}" for low, high in pairwise(STRATA)),
    f"above {STRATA[-1]:g}",
)
#: Scores that are errors by stratum, as returned by `bluesky_symdenoise.bench.quality.metrics.stratified_errors`.
STRATA_SCORES = tuple(f"error {name}" for name in STRATA_NAMES)

#: Names of the scores returned by `bluesky_symdenoise.bench.quality.metrics.decile_coverage`.
DECILE_SCORES = ("decile_68_least", "decile_68_most", "decile_95_least", "decile_95_most")

SCORES = (
    "symmetry",
    "invalid_pixels",
    "k",
    "fraction",
    "nll",
    "nll_excess",
    "predictive_nll",
    "floor",
    "psnr",
    "psnr_error",
    "peak",
    "flux_error",
    "flux_standard_error",
    "coverage_68",
    "coverage_95",
    *DECILE_SCORES,
    *STRATA_SCORES,
    "seconds",
)
"""Scores of a method in a row, beside its names."""

_FLUX_GOAL = 0.01

Result = dict[str, str | int | float | None]
"""Scores of one method on one case, flat and ready for JSON: None where a score is undefined."""


def report(results: Iterable[Result], *, title: str | None = None) -> Table:
    """Return the table of all scores, a section for each case."""
    table = Table(title=title)
    for name in ("set", "kind", "level", "k", "method"):
        table.add_column(name, no_wrap=True)
    for name in ("NLL", "excess", "PSNR/dB", "flux/%", "68 %", "95 %", "s", "bad px"):
        table.add_column(name, justify="right", no_wrap=True)
    last: object = None
    for row in results:
        case = _case_key(row)
        if case != last:
            table.add_section()
        head = (str(row["set"]), str(row["kind"]), _text(row["level"], ".3g"), _text(row["k"], ".3g"))
        table.add_row(
            *(head if case != last else ("",) * len(head)),
            str(row["method"]),
            _text(row["nll"], ".4f") or str(row["note"]),
            _text(row["nll_excess"], ".4f"),
            _with_error(row["psnr"], row["psnr_error"]),
            _with_error(row["flux_error"], row["flux_standard_error"], 100),
            _text(row["coverage_68"], ".3f"),
            _text(row["coverage_95"], ".3f"),
            _text(row["seconds"], ".2f"),
            str(row["invalid_pixels"]) if row["invalid_pixels"] else "",
            style="bold red" if row["invalid_pixels"] else None,
        )
        last = case
    return table


def summary(results: Iterable[Result], *, title: str | None = None) -> Table:
    """Return a line for each method: cases won, worst flux error, and what the symmetry did.

    The caption says whether the worst flux error of ours is within 1 %.
    """
    by_case = scored(results)
    table = Table(title=title)
    table.add_column("method", no_wrap=True)
    for name in ("cases", "beats all peers", "mean excess", "worst flux/%", "seconds", "bad px"):
        table.add_column(name, justify="right")
    table.add_column("with symmetry against without: better, worse, worst loss", justify="right")
    for method in dict.fromkeys(name for rows in by_case.values() for name in rows):
        rows = [case[method] for case in by_case.values() if method in case]
        ours = method in (OURS, OURS_FOLDED)
        won = sum(beats_all_peers(case, method) for case in by_case.values() if method in case)
        flux = max(rows, key=_flux_size)
        table.add_row(
            method,
            str(len(rows)),
            f"{won} of {len(rows)}" if ours else "",
            _text(float(np.mean([number(row["nll_excess"]) for row in rows])), ".4f"),
            f"{_text(flux['flux_error'], '.2f', 100)} ({flux['set']} {_text(flux['level'], '.3g')})",
            _text(float(np.median([number(row["seconds"]) for row in rows])), ".2f"),
            str(sum(int(number(row["invalid_pixels"])) for row in rows)),
            _symmetry_verdict(by_case.values()) if method == OURS_FOLDED else "",
        )
    if own := [case[name] for case in by_case.values() for name in (OURS, OURS_FOLDED) if name in case]:
        table.caption = _flux_verdict(max(own, key=_flux_size))
    return table


def strata_table(results: Iterable[Result], *, title: str | None = None) -> Table:
    """Return, for each method, the error by stratum of the rate: the median over the cases that have the stratum."""
    table = Table(title=f"{title}: mean square error, Poisson variance of the input = 1, by counts/pixel there")
    table.add_column("method", no_wrap=True)
    for name in STRATA_NAMES:
        table.add_column(name, justify="right")
    for method, found in strata(results).items():
        table.add_row(method, *("" if value is None else f"{value:.3f} ({cases})" for value, cases in found.values()))
    return table


def strata(results: Iterable[Result]) -> dict[str, dict[str, tuple[float | None, int]]]:
    """Return, by method and stratum of the rate, the median error over the cases that have the stratum; how many do."""
    by_case = scored(results)
    found: dict[str, dict[str, tuple[float | None, int]]] = {}
    for method in dict.fromkeys(name for rows in by_case.values() for name in rows):
        rows = [case[method] for case in by_case.values() if method in case]
        found[method] = {}
        for name, score in zip(STRATA_NAMES, STRATA_SCORES, strict=True):
            known = [number(row[score]) for row in rows if row.get(score) is not None]
            found[method][name] = (float(np.median(known)) if known else None, len(known))
    return found


def scored(results: Iterable[Result]) -> dict[tuple[object, ...], dict[str, Result]]:
    """Return the rows with scores, by case and method."""
    by_case: dict[tuple[object, ...], dict[str, Result]] = {}
    for row in results:
        if not row["note"]:
            by_case.setdefault(_case_key(row), {})[str(row["method"])] = row
    return by_case


def _case_key(row: Result) -> tuple[object, ...]:
    return tuple(row[name] for name in ("set", "kind", "level", "frame"))


def number(value: str | int | float | None) -> float:
    """Return a score as a number, NaN where it is undefined."""
    return float("nan") if value is None else float(value)


def beats_all_peers(rows: Mapping[str, Result], method: str) -> bool:
    """Return whether a method's held-out likelihood is better than that of every peer on the same case."""
    peers = [number(row["nll"]) for name, row in rows.items() if name not in (OURS, OURS_FOLDED)]
    return all(number(rows[method]["nll"]) < peer for peer in peers)  # NaN never wins


def _flux_size(row: Result) -> float:
    """Return the absolute flux error, infinite where it is undefined."""
    return inf if row["flux_error"] is None else abs(number(row["flux_error"]))


def _flux_verdict(worst: Result) -> str:
    size = _flux_size(worst)
    shown = f"{100 * size:.2f} %" if isfinite(size) else "undefined"
    where = f"{worst['method']}, {worst['set']} {worst['kind']} {_text(worst['level'], '.3g')}"
    return f"worst |flux error| of ours: {shown} ({where}), {'' if size <= _FLUX_GOAL else 'not '}within 1 %"


def _symmetry_verdict(by_case: Iterable[Mapping[str, Result]]) -> str:
    both = [rows for rows in by_case if OURS_FOLDED in rows]
    change = np.array([number(rows[OURS_FOLDED]["nll"]) - number(rows[OURS]["nll"]) for rows in both])
    return f"{(change < 0).sum()}, {(change > 0).sum()}, {np.nanmax(change, initial=-np.inf):+.2g}"


def _text(value: str | int | float | None, form: str, scale: float = 1.0) -> str:
    score = scale * number(value)
    return format(score, form) if isfinite(score) else ""


def _with_error(value: str | int | float | None, error: str | int | float | None, scale: float = 1.0) -> str:
    if value is None:
        return ""
    return f"{_text(value, '.2f', scale)} \N{PLUS-MINUS SIGN} {_text(error, '.2f', scale)}"
