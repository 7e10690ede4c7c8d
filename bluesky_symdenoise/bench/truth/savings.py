"""Exposure saved at equal error, from errors of several methods at several exposures."""

from __future__ import annotations

import numpy as np

from bluesky_symdenoise.bench.quality.report import Result, number

#: Methods: denoised, as the denoiser returns it with Poisson errors; and with the bias subtracted and errors from
#: replicates.
RAW, PLAIN, OURS, FIT = "raw counts", "denoised, as it is", "denoised", "likelihood fit"
#: Methods with which the denoised frame is compared, by their names in JSON.
PEERS = {"raw": RAW, "fit": FIT}
#: One method is said to be better if exposures differ by more than this fraction.
NOTABLE = 0.1


def with_savings(results: list[Result]) -> list[Result]:
    """Return rows with ``saved_against_raw`` and ``saved_against_fit``.

    They are the factors by which the other method must count longer to reach the error of this row.
    """
    curves: dict[tuple[object, ...], list[tuple[float, float]]] = {}
    for row in results:
        if row["rms"] is not None:
            key = (row["pattern"], row["quantity"], row["method"])
            curves.setdefault(key, []).append((number(row["level"]), number(row["rms"])))
    return [
        row
        | {
            f"saved_against_{name}": _saved(row, curves.get((row["pattern"], row["quantity"], peer), []))
            for name, peer in PEERS.items()
        }
        for row in results
    ]


def _saved(row: Result, curve: list[tuple[float, float]]) -> float | None:
    """Return the exposure at which a curve of (level, rms) reaches this row's rms, divided by the row's exposure.

    Beyond its ends the curve continues as 1/sqrt, tenfold at most.
    """
    if row["rms"] is None or len(curve) < 2:
        return None
    level, target = number(row["level"]), np.log(number(row["rms"]))
    levels, errors = np.log(np.array(curve).T)
    # An error that does not fall with exposure is noise of the measured error.
    errors = np.minimum.accumulate(errors)
    if target >= errors[0]:
        found = levels[0] + 2 * (errors[0] - target)
    elif target <= errors[-1]:
        found = levels[-1] + 2 * (errors[-1] - target)
    else:
        found = float(np.interp(-target, -errors, levels))
    return float(np.exp(np.clip(found, levels[0] - np.log(10), levels[-1] + np.log(10))) / level)


def summary(results: list[Result]) -> list[Result]:
    """Return one row for each pattern and quantity, over its exposures.

    ``saved_against_...`` are geometric means, and ``chi2_...`` of each method means over frames, with standard errors.
    """
    found = []
    for pattern, quantity in dict.fromkeys((row["pattern"], row["quantity"]) for row in results):
        rows = [row for row in results if (row["pattern"], row["quantity"]) == (pattern, quantity)]
        methods = {str(row["method"]): [each for each in rows if each["method"] == row["method"]] for row in rows}
        ours = methods.get(OURS) or methods[PLAIN]
        one: Result = {"pattern": pattern, "quantity": quantity}
        for name in (f"saved_against_{peer}" for peer in PEERS):
            factors = [number(row[name]) for row in ours if row[name] is not None]
            one[name] = float(np.exp(np.mean(np.log(factors)))) if factors else None
        for method, column in methods.items():
            one[f"chi2_{method}"], one[f"chi2_error_{method}"] = _pooled(column)
        found.append(one)
    return found


def _pooled(rows: list[Result]) -> tuple[float | None, float | None]:
    known = [row for row in rows if row.get("chi2") is not None]
    if not known:
        return None, None
    chi2, error, weight = (
        np.array([number(row[name]) for row in known]) for name in ("chi2", "chi2_error", "determined")
    )
    return float(np.average(chi2, weights=weight)), float(np.sqrt(((weight * error) ** 2).sum()) / weight.sum())


def verdict(factor: str | int | float | None) -> str:
    """Return, in words, the effect of denoising on the exposure."""
    if factor is None:
        return "not compared"
    if number(factor) > 1 + NOTABLE:
        return "gains"
    return "loses" if number(factor) < 1 / (1 + NOTABLE) else "gains nothing"
