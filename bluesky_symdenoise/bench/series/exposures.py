"""Effective exposure: how long a lone frame must be exposed to have the same squared error."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bluesky_symdenoise.bench.quality.metrics import FloatArray
from bluesky_symdenoise.bench.series.scores import Scored, resampled

#: Farthest that a curve is continued beyond its ends, as a factor.
BEYOND = 4.0
#: Steepest and flattest slope with which it is continued, in log(error) over log(exposure).
_SLOPES = (-1.0, -0.2)


def effective_exposure(method: Scored, lone: Mapping[float, Scored]) -> dict[str, float | bool | None]:
    """Return the exposure at which a lone frame has the squared error of a method, in units of the row's.

    Parameters
    ----------
    lone
        By exposure: scores of lone frames, divided by their exposure.

    Returns
    -------
    dict
        ``value``, ``low`` and ``high`` (16th and 84th percentile over resampled blocks), ``beyond``: whether the curve
        had to be continued beyond its last point. None where the errors can't be told from zero.
    """
    exposures = np.array(sorted(lone))
    drawn = resampled(len(method.pixels))
    curve = np.stack([_mean_square(lone[each], drawn) for each in exposures])
    values = np.array(
        [_exposure(target, exposures, curve[:, each]) for each, target in enumerate(_mean_square(method, drawn))]
    )
    known = values[1:][np.isfinite(values[1:])]
    if not np.isfinite(values[0]) or len(known) < 0.9 * (len(values) - 1):
        return {"value": None, "low": None, "high": None, "beyond": None}
    low, high = np.percentile(known, [16, 84])
    return {
        "value": float(values[0]),
        "low": float(low),
        "high": float(high),
        "beyond": bool(values[0] > exposures[-1]),
    }


def _mean_square(scored: Scored, drawn: FloatArray) -> FloatArray:
    return np.asarray(drawn @ scored.square.mean(axis=0) / np.maximum(drawn @ scored.pixels, 1e-12))


def _exposure(target: float, exposures: FloatArray, errors: FloatArray) -> float:
    """Return where a curve of squared errors reaches a target; NaN where one of them is not positive."""
    if not (target > 0 and (errors > 0).all()) or len(errors) < 2:
        return float("nan")
    x, y, wanted = np.log(exposures), np.minimum.accumulate(np.log(errors)), np.log(target)
    if wanted >= y[0]:
        found = x[0] - min((wanted - y[0]) / -_slope(x[:2], y[:2]), np.log(BEYOND))
    elif wanted <= y[-1]:
        found = x[-1] + min((y[-1] - wanted) / -_slope(x[-2:], y[-2:]), np.log(BEYOND))
    else:
        found = float(np.interp(-wanted, -y, x))
    return float(np.exp(found))


def _slope(x: FloatArray, y: FloatArray) -> float:
    return float(np.clip((y[1] - y[0]) / (x[1] - x[0]), *_SLOPES))
