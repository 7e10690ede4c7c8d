"""Gain of sums over pixels, and spread of light, from the slopes of photon transfer curves at several binnings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.integrating.blur import Differences, seen_noise
from bluesky_symdenoise.physics.integrating.line import Line, jackknife_error

#: Spreads that are tried, in pixels.
BLURS = np.concatenate([[0.0], np.linspace(0.1, 4.0, 196)])
#: Probability by chance at which slopes do not fit, and share of the slope by which the models may be wrong.
CHANCE, MODEL = 1e-3, {"plain": 0.015, "spread": 0.03}
#: Largest standard error of the gain, as a share of it.
KNOWN = 0.06


@dataclass(frozen=True)
class Spread:
    """Gain of sums over many pixels, and spread of light between pixels in pixels, with standard errors."""

    gain: float
    gain_error: float
    blur: float
    blur_error: float


def spread_of(lines: Mapping[int, Line], differences: Differences) -> Spread:
    """Return gain and spread of light from the slopes at each binning.

    Scaled or averaged frames have one slope at all binnings. Where light spreads between pixels, slopes grow with the
    binning, and tend to the gain.

    Raises
    ------
    SymDenoiseError
        If slopes are not known well enough, or neither agree with each other nor grow as spread light makes them.
    """
    binnings = tuple(b for b, line in lines.items() if np.isfinite(line.gain) and np.isfinite(line.gain_error))
    slopes, errors = (np.array([getattr(lines[b], name) for b in binnings]) for name in ("gain", "gain_error"))
    said = ", ".join(f"{s:.3g} +/- {e:.1g} at binning {b}" for b, s, e in zip(binnings, slopes, errors, strict=True))
    if not binnings or binnings[0] != 1 or np.all(slopes <= 0) or not np.any(slopes > errors / KNOWN):
        raise SymDenoiseError(
            f"slope of noise against signal {said or 'unknown'}",
            rule=f"a gain is found if it is known to {KNOWN:.0%}",
            remedy="give more frames, frames of unequal brightness, or darks",
        )
    plain = _fitted(slopes, errors, binnings, differences, plain=True)
    if _misfit(plain, slopes, errors, binnings, differences) < chdtri(max(1, len(binnings) - 1), CHANCE):
        gain, blur = plain
    elif differences == "mixed":
        raise SymDenoiseError(
            f"slope of noise against signal {said}",
            rule="it grows with the binning, because light spreads between pixels or the frame has fine structure, "
            "and one frame does not tell which",
            remedy="give several frames of one scene, flat fields for instance",
        )
    else:
        gain, blur = _fitted(slopes, errors, binnings, differences, plain=False)
        if len(binnings) < 3 or _misfit((gain, blur), slopes, errors, binnings, differences) > chdtri(
            len(binnings) - 2, CHANCE
        ):
            raise SymDenoiseError(
                f"slope of noise against signal {said}",
                rule="it neither stays the same nor tends to a gain as light that spreads between pixels makes it",
                remedy="give repeats of one scene as the detector wrote them, or gain and read noise",
            )
    groups = min(len(lines[b].gains) for b in binnings)
    without = np.array([lines[b].gains[:groups] for b in binnings]).T
    again = np.array([_fitted(each, errors, binnings, differences, plain=blur == 0) for each in without])
    gain_error, blur_error = (jackknife_error(column) for column in again.reshape(-1, 2).T)
    seen = np.array([seen_noise(b, blur, differences) for b in binnings])
    gain_error = max(gain_error, float(1 / np.sqrt((seen**2 / errors**2).sum())))
    if not gain_error < KNOWN * gain:
        raise SymDenoiseError(
            f"gain {gain:.3g} +/- {gain_error:.1g}",
            rule=f"a gain is found if it is known to {KNOWN:.0%}",
            remedy="give more frames, frames of unequal brightness, or darks",
        )
    return Spread(gain, gain_error, blur, blur_error)


@lru_cache(16)
def _table(binnings: tuple[int, ...], differences: Differences) -> NDArray[np.float64]:
    return np.array([[seen_noise(b, float(s), differences) for b in binnings] for s in BLURS])


def _weights(
    gain: float, seen: NDArray[np.float64], errors: NDArray[np.float64], *, plain: bool
) -> NDArray[np.float64]:
    model = MODEL["plain" if plain else "spread"]
    return 1 / (errors**2 + (model * gain * seen) ** 2 + 1e-300)


def _fitted(
    slopes: NDArray[np.float64],
    errors: NDArray[np.float64],
    binnings: tuple[int, ...],
    differences: Differences,
    *,
    plain: bool,
) -> tuple[float, float]:
    """Return gain and blur that fit the slopes best."""
    table = _table(binnings, differences)[: 1 if plain else None]
    gain = np.full(len(table), float(slopes.max()))
    for _ in range(3):
        weight = _weights(gain[:, None], table, errors, plain=plain)  # type: ignore[arg-type]
        gain = (weight * table * slopes).sum(axis=1) / (weight * table**2).sum(axis=1)
    misfit = (weight * (slopes - gain[:, None] * table) ** 2 - np.log(weight)).sum(axis=1)
    best = int(np.argmin(misfit))
    if 1 < best < len(table) - 1:
        before, here, after = misfit[best - 1 : best + 2]
        curved = before - 2 * here + after
        step = float(np.clip((before - after) / (2 * curved), -1, 1)) if curved > 0 else 0.0
        index = best + step
        at = np.arange(len(table))
        return float(np.interp(index, at, gain)), float(np.interp(index, at, BLURS))
    return float(gain[best]), float(BLURS[best])


def _misfit(
    found: tuple[float, float],
    slopes: NDArray[np.float64],
    errors: NDArray[np.float64],
    binnings: tuple[int, ...],
    differences: Differences,
) -> float:
    gain, blur = found
    seen = np.array([seen_noise(b, blur, differences) for b in binnings])
    return float((_weights(gain, seen, errors, plain=blur == 0) * (slopes - gain * seen) ** 2).sum())
