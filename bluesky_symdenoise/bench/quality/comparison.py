"""Our denoiser against the peers in a few figures with targets; what a set cannot support reads 'not testable'."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table

from bluesky_symdenoise.bench.quality.report import (
    DECILE_SCORES,
    NOT_APPLICABLE,
    NOT_TESTABLE,
    OURS,
    OURS_FOLDED,
    Result,
    beats_all_peers,
    number,
    scored,
    strata,
)

EVERY = "every peer"
#: Counts per pixel up to which folding must improve the result, and SMAE is compared.
_SPARSE = 1.0
#: Exposure of the held-out counts, relative to the input's, from which on they test the interval of the rate.
_RATE_EXPOSURE = 50.0
_BM3D = ("bm3d", "bm3d_on_fold")

Rows = Mapping[str, Result]


@dataclass(frozen=True)
class Figure:
    """One figure of the comparison.

    Attributes
    ----------
    name, target
        What is measured, and what is wanted.
    value
        What was found.
    cases, left_out
        How many cases it is made of, and how many have an undefined score.
    met
        Whether the target is met; None where nothing here can test it.
    """

    name: str
    target: str
    value: str
    cases: int
    left_out: int
    met: bool | None


def compared(results: Iterable[Result]) -> dict[str, Any]:
    """Return, as plain JSON values, wins in held-out likelihood by peer and level, and all figures.

    Ours is the denoiser with the recorded symmetry where a set has one, else without. ``likelihood`` maps a peer, or
    `EVERY`, and a level, or ``repeats``, to [cases won, cases]; [0, 0] is not testable. ``psnr`` maps a set to the
    least and the largest gain over the better of BM3D and BM3D on the fold, in dB, and ``strata`` is that of `strata`.
    """
    rows = list(results)
    by_case = list(scored(rows).values())
    levels = list(dict.fromkeys(_level(row) for row in rows))
    levels.sort(key=lambda level: (level == "repeats", 0.0 if level == "repeats" else float(level)))
    peers = [name for name in dict.fromkeys(str(row["method"]) for row in rows) if name not in ("", OURS, OURS_FOLDED)]
    won = {
        name: {level: _won([case for case in by_case if _level(_ours(case)) == level], name) for level in levels}
        for name in (EVERY, *peers)
    }
    predicted = {level: _predicted([case for case in by_case if _level(_ours(case)) == level]) for level in levels}
    figures = [
        _likelihood("held-out likelihood better than every peer's", won[EVERY]),
        _likelihood("the same of its own predictive distribution, peers' Poisson", predicted),
        _over_bm3d(by_case),
    ]
    figures += [_over(by_case, name) for name in ("smae", "smae_mended")]
    figures += [*_folding(by_case), _flux(by_case), _coverage(by_case), _deciles(by_case)]
    sets = dict.fromkeys(str(row["set"]) for row in rows)
    gains = {name: _gains(by_case, _BM3D, lambda case, name=name: _ours(case)["set"] == name)[0] for name in sets}  # type: ignore[misc]
    return {
        "likelihood": won,
        "figures": [asdict(figure) for figure in figures],
        "psnr": {name: [min(found), max(found)] for name, found in gains.items() if found},
        "strata": strata(rows),
    }


def likelihood_table(comparison: Mapping[str, Any], *, title: str) -> Table:
    """Return the table of cases won in held-out likelihood, by peer and level."""
    won = comparison["likelihood"]
    table = Table(title=f"{title}: held-out likelihood better than the peer's, cases")
    table.add_column("peer", no_wrap=True)
    for level in won[EVERY]:
        table.add_column(level if level == "repeats" else f"{level} counts/pixel", justify="right")
    for name, of_level in won.items():
        shown = []
        for level, (wins, cases) in of_level.items():
            absent = NOT_APPLICABLE if won[EVERY][level][1] else NOT_TESTABLE
            shown.append(f"{wins} of {cases}" if cases else absent)
        table.add_row(name, *shown)
    return table


def figures_table(comparison: Mapping[str, Any], *, title: str) -> Table:
    """Return the table of the figures with their targets."""
    table = Table(title=title)
    for name in ("figure", "target", "found", "cases", "left out", "met"):
        table.add_column(name)
    for figure in comparison["figures"]:
        met = {True: "yes", False: "no", None: NOT_TESTABLE}[figure["met"]]
        counts = (str(figure["cases"]), str(figure["left_out"]))
        table.add_row(figure["name"], figure["target"], figure["value"], *counts, met)
    return table


def _level(row: Result) -> str:
    return "repeats" if row["kind"] == "repeats" else f"{number(row['level']):g}"


def _ours(case: Rows) -> Result:
    return case[OURS_FOLDED] if OURS_FOLDED in case else case[OURS]


def _won(cases: list[Rows], peer: str) -> tuple[int, int]:
    tried = [case for case in cases if peer == EVERY or peer in case]
    if peer == EVERY:
        return sum(beats_all_peers(case, str(_ours(case)["method"])) for case in tried), len(tried)
    return sum(number(_ours(case)["nll"]) < number(case[peer]["nll"]) for case in tried), len(tried)


def _predicted(cases: list[Rows]) -> tuple[int, int]:
    """Return cases won with sigma counting: peers have none, their estimates are Poisson means."""
    as_nll: list[Rows] = []
    for case in cases:
        ours = _ours(case)
        if ours.get("predictive_nll") is not None:
            as_nll.append({**case, str(ours["method"]): ours | {"nll": ours["predictive_nll"]}})
    return _won(as_nll, EVERY)


def _likelihood(name: str, won: Mapping[str, tuple[int, int]]) -> Figure:
    shares = {level: (wins, cases) for level, (wins, cases) in won.items() if cases}
    return Figure(
        name,
        "95 % of the cases at every level",
        ", ".join(f"{level}: {wins} of {cases}" for level, (wins, cases) in shares.items()),
        sum(cases for _, cases in shares.values()),
        0,
        all(wins >= 0.95 * cases for wins, cases in shares.values()) if shares else None,
    )


def _gains(by_case: Iterable[Rows], peers: tuple[str, ...], wanted: Callable[[Rows], bool]) -> tuple[list[float], int]:
    """Return the PSNR of ours over the best of some peers in dB, by case, and the number of cases without one."""
    gains, left_out = [], 0
    for case in by_case:
        theirs = [number(case[name]["psnr"]) for name in peers if name in case]
        if not theirs or not wanted(case):
            continue
        gain = number(_ours(case)["psnr"]) - float(np.max(theirs))  # undefined if one of them is
        if np.isfinite(gain):
            gains.append(gain)
        else:
            left_out += 1
    return gains, left_out


def _over_bm3d(by_case: Iterable[Rows]) -> Figure:
    gains, left_out = _gains(by_case, _BM3D, lambda case: True)
    return _gain_figure(
        "unbiased PSNR over the best of BM3D and BM3D on the fold",
        "+1.0 dB on average, none below -0.3 dB",
        gains,
        left_out,
        lambda mean, worst: mean >= 1.0 and worst >= -0.3,
    )


def _over(by_case: Iterable[Rows], peer: str) -> Figure:
    gains, left_out = _gains(by_case, (peer,), lambda case: number(_ours(case)["level"]) <= _SPARSE)
    return _gain_figure(
        f"unbiased PSNR over {peer}, up to {_SPARSE:g} count/pixel",
        "+3 dB in every case",
        gains,
        left_out,
        lambda _, worst: worst >= 3.0,
    )


def _gain_figure(
    name: str, target: str, gains: list[float], left_out: int, met: Callable[[float, float], bool]
) -> Figure:
    if not gains:
        return Figure(name, target, "", 0, left_out, None)
    mean, worst = float(np.mean(gains)), min(gains)
    return Figure(
        name, target, f"{mean:+.2f} dB on average, worst {worst:+.2f} dB", len(gains), left_out, met(mean, worst)
    )


def _folding(by_case: Iterable[Rows]) -> list[Figure]:
    change = [
        (number(case[OURS]["level"]), number(case[OURS_FOLDED]["nll"]) - number(case[OURS]["nll"]))
        for case in by_case
        if OURS_FOLDED in case
    ]
    sparse, every = [value for level, value in change if level <= _SPARSE], [value for _, value in change]
    name = "likelihood loss of folding, nat/pixel"
    return [
        _loss_figure(f"{name}, up to {_SPARSE:g} count/pixel", "below 0 on every symmetric set", sparse, 0.0),
        _loss_figure(name, "at most 1e-4 anywhere", every, 1e-4),
    ]


def _loss_figure(name: str, target: str, change: list[float], limit: float) -> Figure:
    if not change:
        return Figure(name, target, "", 0, 0, None)
    worst = float(np.max(change))  # NaN if one of them is
    found = f"worst {worst:+.2g}, better in {sum(value < 0 for value in change)} of {len(change)}"
    return Figure(name, target, found, len(change), 0, worst < limit)


def _flux(by_case: Iterable[Rows]) -> Figure:
    """Compare with held-out counts, thus within two statistical errors of input and target where these are larger."""
    name, target = "total flux", "within 0.3 % (1 % up to 0.1 counts/pixel) or 2 standard errors"
    rows = [_ours(case) for case in by_case]
    if not rows:
        return Figure(name, target, "", 0, 0, None)
    size = np.array([abs(number(row["flux_error"])) for row in rows])
    allowed = [
        max(0.01 if number(row["level"]) <= 0.1 else 0.003, 2 * number(row["flux_standard_error"])) for row in rows
    ]
    excess = float(np.max(size / allowed))
    found = f"worst {100 * size.max():.2f} %, at most {excess:.2f} times what is allowed"
    return Figure(name, target, found, len(rows), 0, excess <= 1)


def _coverage(by_case: Iterable[Rows]) -> Figure:
    return _interval_figure(
        by_case, "coverage of the rate's 68 % and 95 % intervals", 3, {"coverage_68", "coverage_95"}
    )


def _deciles(by_case: Iterable[Rows]) -> Figure:
    return _interval_figure(by_case, "the same in each decile of intensity", 5, set(DECILE_SCORES))


def _interval_figure(by_case: Iterable[Rows], name: str, points: int, scores: set[str]) -> Figure:
    off: dict[str, list[float]] = {}
    for case in by_case:
        row = _ours(case)
        if number(row["k"]) >= _RATE_EXPOSURE:
            off.setdefault(_level(row), []).append(
                max(abs(number(row[score]) - (0.68 if "_68" in score else 0.95)) for score in scores)
            )
    return Figure(
        f"{name}, held-out exposure at least {_RATE_EXPOSURE:g} times",
        f"within {points} points at every level",
        ", ".join(f"{level}: off by up to {100 * max(values):.1f}" for level, values in off.items()),
        sum(map(len, off.values())),
        0,
        max(max(values) for values in off.values()) <= points / 100 if off else None,
    )
