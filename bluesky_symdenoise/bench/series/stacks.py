"""Rows of a series with what they are scored against: thinned photons of real frames, or the true rate."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.bench.quality.cases import ImageSet, opened, pair_statistic
from bluesky_symdenoise.bench.quality.metrics import FloatArray, Mask
from bluesky_symdenoise.physics.neighbours.window import Scan

#: Counts per pixel of the rows, mean over the series.
LEVELS = (0.05, 0.2, 1.0, 5.0)
#: Exposures of a lone frame, in units of the row's, at which its error is measured.
EXPOSURES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
#: Largest share of the photons that the inputs may have; the others score them.
MOST_GIVEN = 2 / 3
#: Fewest rows of a series.
FEWEST = 5
#: Limit of the pair statistic below which rows are taken for repeats of one scene, beside three standard errors.
_STILL = 1.05


@dataclass(frozen=True, eq=False)
class Stack:
    """Rows of a series to denoise, and what they are scored against.

    Attributes
    ----------
    name
        Name of the series.
    level
        Mean counts per pixel of the rows.
    counts
        (row, y, x), 0 where masked.
    target, k
        (row, y, x) independent counts, or true rates, at `k` (row,) times each row's exposure.
    exact
        Whether the target is a rate, without noise.
    mask
        (y, x), True = bad.
    scan
        Scan whose points the rows are; None where they are a series.
    longer
        By exposure in units of the row's: the same rows, (row, y, x).
    """

    name: str
    level: float
    counts: FloatArray
    target: FloatArray
    k: FloatArray
    exact: bool
    mask: Mask
    scan: Scan | None = None
    longer: Mapping[float, FloatArray] = field(default_factory=dict)


def known(
    name: str,
    rates: FloatArray,
    *,
    level: float,
    seed: int,
    mask: Mask | None = None,
    scan: Scan | None = None,
    exposures: Sequence[float] = (),
) -> Stack:
    """Return counts drawn from rates (row, y, x), scaled to a mean of `level`, and the rates as what they are scored
    against.
    """
    mask = np.zeros(rates.shape[1:], bool) if mask is None else mask
    rates = np.where(mask, 0.0, rates * (level / rates[:, ~mask].mean()))
    rng = generator(seed, name, level)
    counts = rng.poisson(rates).astype(np.float64)
    longer = {each: counts if each == 1 else rng.poisson(rates * each).astype(np.float64) for each in exposures}
    return Stack(name, level, counts, rates, np.ones(len(rates)), True, mask, scan, longer)


def thinned(
    image_set: ImageSet,
    levels: Sequence[float],
    *,
    rows: int,
    crop: int,
    seed: int,
    exposures: Sequence[float] = EXPOSURES,
) -> Iterator[Stack]:
    """Yield the first rows of a set at each level that their counts allow.

    All rows are thinned by the same share, so that their fluxes stay in proportion. The photons of the rows and of all
    longer exposures come from one part of the counts, and the other part scores them: it is independent of all.
    """
    raw, mask, _ = opened(image_set, rows, crop)
    counted: NDArray[np.int64] = np.where(mask, 0.0, raw).astype(np.int64)
    mean = float(counted[:, ~mask].mean())
    for level in levels:
        share = level / mean
        if share > MOST_GIVEN or len(counted) < FEWEST:
            continue
        rng = generator(seed, image_set.name, level)
        most = min(MOST_GIVEN, max(exposures, default=1.0) * share)
        given = rng.binomial(counted, most)
        allowed = [each for each in exposures if each * share <= most]
        if allowed and most / share > 1.2 * allowed[-1]:
            allowed.append(most / share)
        longer = {each: rng.binomial(given, each * share / most).astype(np.float64) for each in allowed}
        counts = longer[1.0] if 1.0 in longer else rng.binomial(given, share / most).astype(np.float64)
        k = np.full(len(counted), (1 - most) / share)
        yield Stack(image_set.name, level, counts, (counted - given).astype(np.float64), k, False, mask, None, longer)


def repeats(image_set: ImageSet, levels: Sequence[float], *, rows: int, crop: int, seed: int) -> Iterator[Stack]:
    """Yield the rows of a set, thinned, if all of them repeat the first one.

    A row is scored against the photons left over of all of them, and a lone frame of m exposures is the sum of m rows.
    """
    raw, mask, _ = opened(image_set, rows, crop)
    counted: NDArray[np.int64] = np.where(mask, 0.0, raw).astype(np.int64)
    limit = _STILL + 3 * np.sqrt(2 / (~mask).sum())
    if len(counted) < FEWEST or any(pair_statistic(raw[0], other, mask) > limit for other in raw[1:]):
        return
    mean = float(counted[:, ~mask].mean())
    totals = counted.sum(axis=(1, 2)).astype(np.float64)
    for level in levels:
        share = level / mean
        if share > MOST_GIVEN:
            continue
        counts = generator(seed, image_set.name, level).binomial(counted, share)
        target = (counted - counts).sum(axis=0).astype(np.float64)
        # The rates of repeats are in proportion to their counts, of which there are many before they are thinned.
        k = (1 - share) * totals.sum() / (share * totals)
        held_out = np.broadcast_to(target, counted.shape)
        yield Stack(f"{image_set.name}, repeats", level, counts.astype(np.float64), held_out, k, False, mask)


def generator(seed: int, name: str, level: float) -> np.random.Generator:
    """Return random numbers of a stack, whichever others are measured."""
    return np.random.default_rng((seed, zlib.crc32(name.encode()), round(level * 1e6)))
