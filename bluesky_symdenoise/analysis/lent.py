"""Quantities of a ring from a frame and from those neighbours of it whose ring is alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bluesky_symdenoise.analysis.annulus import Annulus, Values
from bluesky_symdenoise.analysis.estimate import SIZE, Estimate, Observed, from_counts, from_sums
from bluesky_symdenoise.analysis.likelihood import PRECISION, peak_model
from bluesky_symdenoise.analysis.moment import second_moment
from bluesky_symdenoise.analysis.peak import radial_profile
from bluesky_symdenoise.analysis.series import values_at_own

#: Radial width in pixels (0: all radii) and number of sectors of the cells in which two rows are compared.
CELLS = ((2.0, 1), (6.0, 1), (0.0, 36), (0.0, 12), (0.0, 4), (4.0, 12), (0.0, 1))
#: Fewest counts of a pair in a cell, and probability that two rows that are alike are told apart.
FEWEST, FALSE_ALARM = 20.0, 0.003
#: Standard deviations by which a quantity of another row may differ; what is less, the series is weighed by.
DIFFERENT_Z = 4.0
#: Indices, in an `Estimate`, of what is reported: g, and the peak's area, position and log width.
REPORTED = (0, 1, 4, 5, 6)
LEVEL, AREA = 2, 4
#: Counts outside the ring, as a multiple of those in it, from which the flux of two frames is compared by them.
OUTSIDE = 0.5


@dataclass(frozen=True)
class Neighbour:
    """A frame of another row, and the steps to it along each scan axis."""

    observed: Observed
    offset: tuple[float, ...]


@dataclass(frozen=True)
class Shared:
    """An estimate with borrowed counts.

    Attributes
    ----------
    estimate
        Values and covariance.
    alike
        For each neighbour, whether its ring is alike and its counts were used.
    borrowed
        Exposures of the own frame that neighbours were worth: own variance over variance, less 1; the median over
        the reported quantities.
    """

    estimate: Estimate
    alike: tuple[bool, ...]
    borrowed: float


@dataclass(frozen=True)
class _Row:
    """Counts, exposure in units of the own row's flux, and background of one row in the annulus."""

    counts: Values
    exposure: Values
    background: Values
    offset: tuple[float, ...]
    #: Relative variance of the flux by which the exposure was scaled, of this row alone.
    flux_variance: float


def from_lent(annulus: Annulus, observed: Observed, lent: Sequence[Neighbour]) -> Shared:
    """Return the estimate of `from_counts` from the counts of a row and of its neighbours where they agree.

    A neighbour is left out if its ring differs from the own one in cells of radius and azimuth at several scales
    (differences conditional on the sums of both, exact at any count), or in a quantity by more than `DIFFERENT_Z`
    standard deviations. The others' counts and exposures are added up, and a model is fitted to the sums. About it,
    each row's quantities are linear in its counts, with exact variances; how much each row counts for a quantity
    follows from how that quantity changes from row to row (`bluesky_symdenoise.analysis.series.values_at_own`).

    The flux of a neighbour is the ratio of its counts outside the ring to the own ones. Where there are too few, the
    area is that of the own row.

    Parameters
    ----------
    lent
        Frames of other rows, exposures in the same unit.
    """
    own = _row(annulus, observed, (0.0,) * len(lent[0].offset) if lent else (0.0,), 1.0, 0.0)
    alone = from_counts(annulus, observed)
    rows, numbers, own_flux = _scaled(annulus, observed, own, lent)
    kept = [at for at, row in enumerate(rows) if _cells_agree(annulus, own, row)]
    for _ in range(3):
        if not kept:
            break
        used = [own, *(rows[at] for at in kept)]
        found = _quantities(annulus, used)
        if found is None:
            kept = []
            break
        estimate, values, variances = found
        with np.errstate(invalid="ignore"):
            away = np.abs(values[1:] - values[0]) / np.sqrt(variances[1:] + variances[0])
        # A flux that is not known says nothing about the area.
        away[:, REPORTED.index(AREA)] *= own_flux is not None
        same = [at for at, z in zip(kept, away, strict=True) if not (z > DIFFERENT_Z).any()]
        if same == kept:
            joined = _joined(estimate, used, values, variances, own_flux)
            alike = [False] * len(lent)
            for at in kept:
                alike[numbers[at]] = True
            return Shared(joined[0], tuple(alike), joined[1])
        kept = same
    return Shared(alone, (False,) * len(lent), 0.0)


def _row(annulus: Annulus, observed: Observed, offset: tuple[float, ...], flux: float, variance: float) -> _Row:
    y, n, b = (annulus.of(each) for each in (observed.counts, observed.exposure, observed.background))
    seen = n > 0
    return _Row(np.where(seen, y, 0), flux * n, np.where(seen, b, 0), offset, variance)


def _scaled(
    annulus: Annulus, observed: Observed, own: _Row, lent: Sequence[Neighbour]
) -> tuple[list[_Row], list[int], float | None]:
    """Return the neighbours with counts, their numbers, and the relative variance of the own flux; None if unknown."""
    rows, numbers = [], []
    outside = ~annulus.where & (observed.exposure > 0)
    ring = (own.counts - own.background).sum()
    total = float((observed.counts - observed.background)[outside].sum())
    known = total > OUTSIDE * ring and total > 0
    for number, each in enumerate(lent):
        other = each.observed
        both = (~annulus.where if known else annulus.where) & (observed.exposure > 0) & (other.exposure > 0)
        mine, theirs = (float((part.counts - part.background)[both].sum()) for part in (observed, other))
        mine_n, theirs_n = (float(part.exposure[both].sum()) for part in (observed, other))
        if min(mine, theirs) <= 0:
            continue
        flux = theirs / theirs_n / (mine / mine_n)
        noise = float(other.counts[both].sum()) / theirs**2
        rows.append(_row(annulus, other, each.offset, flux, noise))
        numbers.append(number)
    own_variance = float(observed.counts[outside].sum()) / total**2 if known else None
    return rows, numbers, own_variance


def _cells_agree(annulus: Annulus, own: _Row, other: _Row) -> bool:
    """Return whether no cell at any scale shows a difference of the two rows beyond that of their counts."""
    for width, sectors in CELLS:
        radial = ((annulus.radius - annulus.radius.min()) / width).astype(int) if width else np.zeros(1, int)
        around = ((annulus.azimuth + np.pi) / (2 * np.pi) * sectors).astype(int).clip(max=sectors - 1)
        cells = radial * sectors + around
        both = (own.exposure > 0) & (other.exposure > 0)
        sums = [
            np.bincount(cells, np.where(both, part, 0))
            for row in (own, other)
            for part in (row.counts, row.exposure, row.background)
        ]
        y, n, b, y2, n2, b2 = sums
        enough = (y + y2 >= FEWEST) & (n > 0) & (n2 > 0)
        if not enough.any():
            continue
        y, n, b, y2, n2, b2 = (part[enough] for part in sums)
        # Share of the pair's counts that the own row has, if the rates are the same.
        rate = np.maximum(y + y2 - b - b2, 0) / (n + n2)
        share = (rate * n + b) / np.maximum(rate * (n + n2) + b + b2, 1e-300)
        share = np.clip(share, 1e-9, 1 - 1e-9)
        pairs = y + y2
        difference, variance = y - pairs * share, pairs * share * (1 - share)
        # The flux of the pair is known with an error, which is the same in all cells.
        variance = variance + (pairs * share * (1 - share)) ** 2 * other.flux_variance
        z = np.abs(difference) / np.sqrt(variance)
        chi = float((z**2).sum())
        chance = FALSE_ALARM / len(CELLS) / 2
        if z.max() > stats.norm.isf(chance / 2 / len(z)) or chi > stats.chi2.isf(chance, len(z)):
            return False
    return True


def _quantities(
    annulus: Annulus, rows: Sequence[_Row]
) -> tuple[Estimate, NDArray[np.float64], NDArray[np.float64]] | None:
    """Return the estimate from the sums, and `REPORTED` values and variances of each row about it, (rows, 5) each."""
    y, n, b = (np.sum([getattr(row, name) for row in rows], axis=0) for name in ("counts", "exposure", "background"))
    estimate = from_sums(annulus, y, n, b)
    moment = second_moment(annulus, y - b, n)
    if moment is None or not np.isfinite(estimate.values).all():
        return None
    radius, _, exposure = radial_profile(annulus, y - b, n)
    model = peak_model(radius, (radius[0] + radius[-1]) / 2, blur=1 / 12)
    rate, slopes = model(estimate.values[2:])
    full = rate + radial_profile(annulus, b, n)[1] / exposure
    fisher = (slopes * (exposure / full)) @ slopes.T + np.diag(PRECISION)
    step = np.linalg.solve(fisher, slopes / full)
    exact = step**2 @ (exposure * full)
    influence = np.stack([moment.influence.real, moment.influence.imag])
    values, variances = np.empty((len(rows), len(REPORTED))), np.empty((len(rows), len(REPORTED)))
    for at, row in enumerate(rows):
        seen = row.exposure > 0
        factor = np.where(seen, n / np.where(seen, row.exposure, 1.0), 0.0)
        # Where only this row was not measured, it is as the sums are.
        scaled = np.where(seen, (row.counts - row.background) * factor, y - b)
        expected = np.maximum((y - b) * row.exposure / np.maximum(n, 1e-300) + row.background, 0)
        values[at, :2] = estimate.values[:2] + influence @ scaled
        variances[at, :2] = influence**2 @ (factor**2 * expected)
        profile = radial_profile(annulus, scaled, n)[1]
        moved = estimate.values[2:] + step @ (profile - exposure * rate)
        spread = exact * float(np.sum(n[seen]) / np.sum(row.exposure[seen]))
        values[at, 2:], variances[at, 2:] = moved[[2, 3, 4]], spread[[2, 3, 4]]
    return estimate, values, variances


def _joined(
    estimate: Estimate,
    rows: Sequence[_Row],
    values: NDArray[np.float64],
    variances: NDArray[np.float64],
    own_flux: float | None,
) -> tuple[Estimate, float]:
    """Return the estimate of the own row, and the exposures that it borrowed."""
    offsets = [row.offset for row in rows]
    noise = np.stack([np.diag(each) for each in variances.T])
    area = REPORTED.index(AREA)
    borrowing = np.ones(len(REPORTED), bool)
    if own_flux is None:
        borrowing[area] = False
    else:
        flux = np.diag([row.flux_variance for row in rows])
        flux[1:, 1:] += own_flux
        noise[area] += estimate.values[AREA] ** 2 * flux
    value, variance = values[0].copy(), variances[0].copy()
    value[borrowing], variance[borrowing] = values_at_own(values.T[borrowing], noise[borrowing], offsets)
    result, scale = estimate.values.copy(), np.ones(SIZE)
    result[list(REPORTED)] = value
    for index, each in zip(REPORTED, variance, strict=True):
        scale[index] = np.sqrt(each / estimate.covariance[index, index])
    borrowed = float(np.median(variances[0] / variance - 1))
    return Estimate(result, estimate.covariance * np.outer(scale, scale)), borrowed
