"""Weights of neighbouring rows: kriging with Poisson counts, own counts left out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Number of times that rows of negative weight are left out and the others are solved for again.
TRIMS = 3
#: Exposure below which a row has none.
LEAST_EXPOSURE = 1e-9


def kriging(exposure: Floats, mean: Floats, coefficients: Floats, lag: Floats) -> tuple[Floats, Floats]:
    """Return the weights by which rows predict one row's rate, and the variance that their scenes' differences leave.

    Ordinary kriging: minimise Var(sum w_j x_j - z_0) with sum w_j = 1 and w_j >= 0. With x_j = z_j + e_j, relative
    Poisson variances e_j = 1 / (m n_j) and half the structure function, G_jk = S(h_jk) / 2:

        Var / m^2 = sum w_j^2 e_j + 2 sum w_j G_0j - sum w_j w_k G_jk

    Parameters
    ----------
    exposure
        (cell, row) exposure of each lending row; rows without any get no weight.
    mean
        (cell,) rate that is predicted.
    coefficients
        (cell, 3) of `structure_function`.
    lag
        (1 + row, 1 + row) distances between all rows, the borrowing one first.

    Returns
    -------
    tuple of ndarray
        (cell, row) weights, zero everywhere in cells without any row; and (cell,) the relative variance 2 sum w_j G_0j
        - sum w_j w_k G_jk of the prediction beyond the Poisson variance of the rows.
    """
    half = structure_of(coefficients, lag) / 2
    to_own, between = half[:, 0, 1:], half[:, 1:, 1:]
    used = (exposure > LEAST_EXPOSURE) & (mean > 0)[:, None]
    poisson = 1 / np.where(used, exposure * np.where(mean > 0, mean, 1.0)[:, None], 1.0)
    weights = np.zeros_like(exposure)
    pending = np.flatnonzero(used.any(axis=1))
    for _ in range(TRIMS):
        solved = _solved(poisson[pending], to_own[pending], between[pending], used[pending])
        weights[pending] = np.maximum(solved, 0)
        negative = (solved < 0) & used[pending]
        used[pending] &= ~negative
        pending = pending[negative.any(axis=1)]
        if not len(pending):
            break
    total = weights.sum(axis=1, keepdims=True)
    weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    left = 2 * (weights * to_own).sum(axis=1) - np.einsum("cj,cjk,ck->c", weights, between, weights)
    return weights, np.maximum(left, 0)


def structure_of(coefficients: Floats, lag: Floats) -> Floats:
    """Return S(h) = s0 + s1 h + s2 h^2 between two different rows, 0 of a row with itself: (cell, row, row)."""
    apart = 1 - np.eye(len(lag))
    return np.einsum("ci,ijk->cjk", coefficients, np.stack([apart, lag, lag**2]))


def effective_exposure(weights: Floats, exposure: Floats, left: Floats, mean: Floats) -> Floats:
    """Return m over the prediction's variance, (cell,): the exposure of counts that would predict as well.

    Parameters
    ----------
    weights, exposure
        (cell, row) as `kriging` returns and takes them.
    left
        (cell,) relative variance beyond the rows' Poisson variance.
    mean
        (cell,) rate.
    """
    used = weights > 0
    poisson = np.divide(weights**2, exposure, out=np.zeros_like(weights), where=used).sum(axis=1)
    variance = poisson + left * mean
    return np.divide(1.0, variance, out=np.zeros_like(variance), where=used.any(axis=1) & (variance > 0))


def _solved(poisson: Floats, to_own: Floats, between: Floats, used: NDArray[np.bool_]) -> Floats:
    """Return the weights of sum w = 1, of either sign, for the rows that are used."""
    cells, rows = poisson.shape
    system = np.zeros((cells, rows + 1, rows + 1))
    both = used[:, :, None] & used[:, None]
    system[:, :rows, :rows] = np.where(both, -between, 0.0)
    row = np.arange(rows)
    system[:, row, row] = np.where(used, poisson, 1.0)
    system[:, :rows, rows] = system[:, rows, :rows] = used
    right = np.concatenate([np.where(used, -to_own, 0.0), np.ones((cells, 1))], axis=1)
    return np.asarray(np.linalg.solve(system, right[..., None])[:, :rows, 0])
