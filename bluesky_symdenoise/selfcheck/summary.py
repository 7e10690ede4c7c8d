"""Figures of a self-check from the sums of its rows, and the verdict that they lead to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import chi2

from bluesky_symdenoise.selfcheck.blocks import LEAST_BLOCKS, Table, resampled
from bluesky_symdenoise.selfcheck.chance import Chance
from bluesky_symdenoise.selfcheck.heldout import BOXES, EDGES, LAGS, RADII
from bluesky_symdenoise.selfcheck.sham import SIZES
from bluesky_symdenoise.selfcheck.values import (
    AGREES,
    DOUBTFUL,
    NOT_TESTABLE,
    ImageCheck,
    Measured,
    Residual,
    Spots,
    Stratum,
    Structure,
    Sums,
)

#: Names of what the gains are over, in the order of the columns.
OVER = ("raw counts", "a Gaussian filter", "the frame alone")
#: Largest standard error of a ratio of errors, relative to the ratio or 1: beyond, the held-out photons do not tell.
MOST_ERROR = 0.3
#: Fewest pixels of a stratum.
LEAST_PIXELS = 200
#: Standard errors by which a figure must be off, and how far, to be doubtful.
SURE, TOO_SMALL, FLUX_OFF, LEAST_GAIN, UNLIKELY = 3.0, 1.2, 0.01, -0.1, 1e-4


def summarised(
    tables: Sequence[Mapping[str, Table]], chance: Chance, *, shape: tuple[int, int], rows: Sequence[int], of_rows: int
) -> ImageCheck:
    """Return the self-check of one image.

    Parameters
    ----------
    tables
        Of each frame that was checked, those of `heldout_tables` and `sham_tables`.
    shape
        Shape (y, x) of the frames.
    """
    joined = {name: np.concatenate([each[name] for each in tables]) for name in tables[0]}
    draw = _Bootstrap(joined, chance)
    pixels, total = joined["pixels"], joined["pixels"].sum(axis=0)
    if len(pixels) < LEAST_BLOCKS or total[1] < 100 or total[3] < 100:
        few = f"{total[1]:.0f} held-out counts"
        return not_testable(chance, f"{few} of {len(pixels)} blocks are too few", rows=rows, of_rows=of_rows)
    gains = {
        name: draw.ratio("pixels", 4 + column, 0, scale=1000.0)
        for column, name in enumerate(OVER[: pixels.shape[1] - 4])
    }
    named = {f"boxes of {side} x {side} pixels": f"box {side}" for side in BOXES} | {"rings": "rings"}
    sums = (Sums(name, draw.errors(table, 0, 1), draw.errors(f"sham {table}", 0, 1)) for name, table in named.items())
    found: dict[str, Any] = {
        "gains": gains,
        "flux": draw.ratio("pixels", 2, 1),
        "strata": _strata(joined, draw),
        "sums": tuple(sums),
        "structure": tuple(
            Structure(size, draw.kept(4 * number), draw.left(4 * number)) for number, size in enumerate(SIZES)
        ),
        "spots": _spots(joined["spots"]),
        "residual": _residual(joined, draw, shape),
    }
    reasons = _doubts(**found)
    return ImageCheck(
        chance.stream,
        chance.data_key,
        DOUBTFUL if reasons else AGREES,
        reasons,
        tuple(rows),
        of_rows,
        pixels=int(total[0]),
        counts=float(total[2] / total[0]),
        **found,
    )


def not_testable(chance: Chance, why: str, *, rows: Sequence[int] = (), of_rows: int = 0) -> ImageCheck:
    """Return the self-check of an image of which nothing can be said."""
    return ImageCheck(chance.stream, chance.data_key, NOT_TESTABLE, (why,), tuple(rows), of_rows)


class _Bootstrap:
    """Ratios of sums, with errors from drawing blocks with replacement."""

    def __init__(self, tables: Mapping[str, Table], chance: Chance) -> None:
        self._tables = tables
        self._drawn = {
            name: resampled(table, chance.generator(f"bootstrap {name}"))
            for name, table in tables.items()
            if len(table) >= LEAST_BLOCKS and name not in ("radial", "spots")
        }

    def ratio(self, name: str, above: int, below: int, *, scale: float = 1.0) -> Measured:
        """Return a ratio of two columns' sums, times a factor."""
        total, drawn = self._tables[name].sum(axis=0), self._drawn[name]
        with np.errstate(all="ignore"):
            value, others = scale * total[above] / total[below], scale * drawn[:, above] / drawn[:, below]
        if not (np.isfinite(value) and np.isfinite(others).all()):
            return Measured.not_testable("too few counts")
        return Measured(float(value), float(others.std()))

    def errors(self, name: str, observed: int, stated: int) -> Measured:
        """Return the observed error over the stated one, from columns of squared errors.

        The observed square may be negative, because the noise of the held-out counts was taken from it.
        """
        if name not in self._tables:
            return Measured.not_testable("the beam centre is not known")
        if name not in self._drawn:
            return Measured.not_testable("too few of them hold counts")
        square = self.ratio(name, observed, stated)
        if not square:
            return square
        # d sqrt(r) = dr / (2 sqrt(r)); below 0.1 the root says nothing any more.
        value = math.sqrt(max(square.value, 0.0))
        error = square.error / (2 * max(value, 0.1))
        if error > MOST_ERROR * max(value, 1.0):
            return Measured.not_testable("the noise of the held-out counts is too large")
        return Measured(value, error)

    def kept(self, first: int) -> Measured:
        """Return the share of a structure that is kept: sum t d / sum t^2."""
        share = self.ratio("structure", first, first + 1)
        if share and share.error > MOST_ERROR:
            return Measured.not_testable("the denoised frame has too little of it")
        return share

    def left(self, first: int) -> Measured:
        """Return the share of the noise that is left: root of sum (d - t)^2 / sum (y - t)^2."""
        square = self.ratio("structure", first + 2, first + 3)
        value = math.sqrt(max(square.value, 0.0)) if square else math.nan
        return Measured(value, square.error / (2 * max(value, 1e-3))) if square else square


def _strata(tables: Mapping[str, Table], draw: _Bootstrap) -> tuple[Stratum, ...]:
    found = []
    for number, (low, high) in enumerate(zip((0.0, *EDGES), (*EDGES, math.inf), strict=True)):
        pixels, sham_pixels = (int(tables[name][:, 3 * number].sum()) for name in ("strata", "sham strata"))
        if pixels or sham_pixels >= LEAST_PIXELS:
            ratio, sham = (_ratio(name, tables[name], 3 * number, draw) for name in ("strata", "sham strata"))
            found.append(Stratum(low, high, pixels, ratio, sham))
    return tuple(found)


def _ratio(name: str, table: Table, first: int, draw: _Bootstrap) -> Measured:
    pixels = table[:, first]
    if pixels.sum() < LEAST_PIXELS or np.count_nonzero(pixels) < LEAST_BLOCKS:
        return Measured.not_testable(f"{pixels.sum():.0f} pixels are too few")
    return draw.errors(name, first + 1, first + 2)


def _spots(table: Table) -> Spots:
    there, true, kept, lost, invented, by_noise = table.sum(axis=0)
    share = Measured.not_testable("the denoised frame has no spot")
    if there:
        # The counts of the spots were drawn anew: their Poisson error.
        share = Measured(float(kept / true), float(1 / math.sqrt(true)))
    return Spots(int(there), share, int(lost), int(invented), int(by_noise))


def _residual(tables: Mapping[str, Table], draw: _Bootstrap, shape: tuple[int, int]) -> Residual:
    correlation = []
    last = 2 * len(LAGS)
    lags = tables["lags"].sum(axis=0)
    for number, lag in enumerate(LAGS):
        product = draw.ratio("lags", 2 * number, 2 * number + 1)
        spread = lags[last] / lags[last + 1]
        said = Measured(product.value / spread, product.error / spread) if product and spread > 0 else product
        correlation.append((lag, said))
    if "radial" not in tables:
        return Residual((), (), None, tuple(correlation))
    frames = tables["radial"].reshape(-1, RADII, 4)
    lit = frames[..., 2] + frames[..., 3] >= 50
    squares = frames[..., 1][lit] ** 2 / (frames[..., 2] + frames[..., 3])[lit]
    _, error, held, kept = np.moveaxis(frames.sum(axis=0), -1, 0)
    shown = np.flatnonzero(held + kept >= 50)
    step = math.hypot(*shape) / RADII
    return Residual(
        tuple(float((each + 0.5) * step) for each in shown),
        tuple(float(each) for each in error[shown] / np.sqrt((held + kept)[shown])),
        float(chi2.sf(squares.sum(), squares.size)) if squares.size else None,
        tuple(correlation),
    )


def _doubts(
    *,
    gains: Mapping[str, Measured],
    flux: Measured,
    strata: Sequence[Stratum],
    sums: Sequence[Sums],
    structure: Sequence[Structure],
    spots: Spots,
    residual: Residual,
) -> tuple[str, ...]:
    """Return what contradicts the denoised frames or their errors, in sentences."""
    said = [
        f"held-out photons are predicted worse than by {name}: {gain} millinat per pixel"
        for name, gain in gains.items()
        if gain and gain.value < LEAST_GAIN and gain.value + SURE * gain.error < 0
    ]
    if flux and abs(flux.value - 1) > max(FLUX_OFF, SURE * flux.error):
        said.append(f"the sum of all pixels is {flux} of the held-out counts")
    said += [
        f"errors are too small at {each.name} counts per pixel: observed over stated is {each.ratio}"
        for each in strata
        if each.ratio and each.ratio.value - SURE * each.ratio.error > TOO_SMALL
    ]
    if spots.invented > 2 and spots.invented > spots.by_noise + 3 * math.sqrt(spots.by_noise):
        said.append(f"{spots.invented} spots were invented in a sham test, {spots.by_noise} are made by noise alone")
    if spots.lost > 2 and spots.lost > 0.25 * spots.there:
        said.append(f"{spots.lost} of {spots.there} spots were lost in a sham test")
    if residual.p is not None and residual.p < UNLIKELY:
        said.append(f"sums over rings differ from held-out counts by more than noise: p = {residual.p:.1g}")
    return tuple(said)
