"""Sums of one frame that say how well the denoised input half predicts the held-out half."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.selfcheck.blocks import Table, block_index, fewer, summed, tiles
from bluesky_symdenoise.selfcheck.peers import LEAST, best_gaussian, best_raw, likelihood

#: Expected counts per pixel of the input half between the strata.
EDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
STRATA = len(EDGES) + 1
#: Sides of the boxes whose sums are judged, and number of radii along the frame's diagonal.
BOXES, RADII = (4, 16), 64
#: Fewest expected counts of a ring.
LEAST_RING = 25
#: Distances in pixels of the residuals whose correlation is measured.
LAGS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Halves:
    """One frame (y, x), thinned, and the estimate of the denoiser from its input half.

    Attributes
    ----------
    kept, held
        Counts of the input half and of the held-out half.
    expected, sigma
        Denoised input half and its stated error. Both halves have the same exposure: `expected` predicts `held`.
    valid
        Pixels that were measured and have an estimate.
    exposure
        Relative exposure of each pixel.
    alone
        The estimate without borrowed photons; None where nothing was borrowed.
    center
        Beam centre (y, x) in pixels, if it is known.
    """

    kept: NDArray[np.float64]
    held: NDArray[np.float64]
    expected: NDArray[np.float64]
    sigma: NDArray[np.float64]
    valid: NDArray[np.bool_]
    exposure: NDArray[np.float64]
    alone: NDArray[np.float64] | None = None
    center: tuple[float, float] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (y, x) of the frame."""
        return self.kept.shape[0], self.kept.shape[1]


def heldout_tables(halves: Halves) -> dict[str, Table]:
    """Return tables of sums over blocks, boxes and rings, by name; those of several frames are appended.

    ``pixels``: number, held-out counts, expected counts, kept counts, and log-likelihood above that of raw counts, of
    the Gaussian filter and, if there is one, of the frame alone. ``radial``: number, sum of the residuals, held-out and
    kept counts by radius. ``lags``: products of residuals for each of `LAGS`, and their number. And `error_tables`, of
    which the expected square of a pixel's residual, E (h - m)^2 = E (rate - m)^2 + E h, gives the error of m.
    """
    valid = halves.valid
    block, number = block_index(halves.shape)
    here = block[valid]
    h, m = halves.held[valid], np.maximum(halves.expected[valid], LEAST)
    k, variance, n = halves.kept[valid], halves.sigma[valid] ** 2, halves.exposure[valid]
    ours = likelihood(m, h)
    gains = [
        ours - likelihood(best_raw(k, n, h)[0], h),
        ours - likelihood(best_gaussian(halves.kept, halves.exposure, valid, h)[0], h),
    ]
    if halves.alone is not None:
        gains.append(ours - likelihood(halves.alone[valid], h))
    tables = {"pixels": summed(here, number, np.ones_like(h), h, m, k, *gains)}
    error = h - m
    tables |= error_tables(error, h, variance, m, valid, halves.center)
    if halves.center is not None:
        sums = summed(radius_index(valid, halves.center), RADII, np.ones_like(h), error, h, k)
        tables["radial"] = sums.reshape(1, -1)
    tables["lags"] = _lagged(halves, block, number, error / np.sqrt(m + variance))
    return tables


def error_tables(
    error: NDArray[np.float64],
    noise: NDArray[np.float64],
    variance: NDArray[np.float64],
    expected: NDArray[np.float64],
    valid: NDArray[np.bool_],
    center: tuple[float, float] | None,
) -> dict[str, Table]:
    """Return sums of squared errors and of stated variances, over pixels, boxes and rings.

    ``strata``: number, squared error beyond its noise, and stated variance, for each stratum of the expected counts.
    ``box 4``, ``box 16``, ``rings``: squared error of the sum beyond its noise, and the sum of the stated variances.

    Parameters
    ----------
    error, noise, variance, expected
        (pixels,) of the valid pixels; `noise` is the variance of the counts that an estimate is compared with.
    valid
        (y, x)
    center
        Beam centre (y, x); without it, there are no rings.
    """
    shape = (valid.shape[0], valid.shape[1])
    block, number = block_index(shape)
    one = np.ones_like(error)
    stratum = np.digitize(expected, EDGES)
    by = summed(block[valid] * STRATA + stratum, number * STRATA, one, error**2 - noise, variance)
    tables = {"strata": by.reshape(number, STRATA * 3)}
    for side in BOXES:
        box, boxes = tiles(shape, side)
        sums = summed(box[valid], boxes, one, error, noise, variance)
        sums = sums[sums[:, 0] >= side**2 / 2]
        tables[f"box {side}"] = fewer(np.stack([sums[:, 1] ** 2 - sums[:, 2], sums[:, 3]], axis=1))
    if center is not None:
        sums = summed(radius_index(valid, center), RADII, one, error, noise, variance, expected)
        lit = sums[sums[:, 4] >= LEAST_RING]
        tables["rings"] = np.stack([lit[:, 1] ** 2 - lit[:, 2], lit[:, 3]], axis=1)
    return tables


def radius_index(valid: NDArray[np.bool_], center: tuple[float, float]) -> NDArray[np.intp]:
    """Return the number of the ring that each valid pixel (pixels,) lies in."""
    y, x = np.nonzero(valid)
    radius = np.hypot(y - center[0], x - center[1])
    # The centre may lie off the detector.
    return np.minimum(radius * RADII / np.hypot(*valid.shape), RADII - 1).astype(np.intp)


def _lagged(halves: Halves, block: NDArray[np.intp], number: int, z: NDArray[np.float64]) -> Table:
    """Return sums over blocks of z(x) z(x + lag) along both axes for each lag, and of z^2, each before its number."""
    valid = halves.valid
    image = np.zeros(halves.shape)
    image[valid] = z
    columns: list[Any] = []
    for lag in LAGS:
        product, pairs = np.zeros(halves.shape), np.zeros(halves.shape)
        for a, b in (
            (np.s_[:-lag, :], np.s_[lag:, :]),
            (np.s_[:, :-lag], np.s_[:, lag:]),
        ):
            product[a] += image[a] * image[b]
            pairs[a] += valid[a] & valid[b]
        columns += [product[valid], pairs[valid]]
    return summed(block[valid], number, *columns, z**2, np.ones_like(z))
