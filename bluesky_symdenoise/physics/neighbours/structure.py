"""Structure function: how alike the rows of a window are, beyond their photon noise, by their distance."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Terms of the structure function: a step between any two rows, a random walk, and a steady drift.
TERMS = 3


def lags(offsets: Floats) -> Floats:
    """Return the distances between rows, (row, row), from their offsets (row, axis) in steps."""
    return np.asarray(np.linalg.norm(offsets[:, None] - offsets[None], axis=2))


def pair_variances(product: Floats, squares: Floats) -> Floats:
    """Return sums of D^2 - var D over the pixels that two rows share: the variance of their scenes' difference.

    For counts y with exposure n and x = y/n, D = x_j - x_k. y (y - 1) / n^2 has the square of the mean as its
    expectation, so that sum(D^2 - var D) = F_jk + F_kj - 2 A_jk without bias at any count.

    Parameters
    ----------
    product
        (..., row, row) sums A_jk of x_j x_k over the pixels where both rows are used.
    squares
        (..., row, row) sums F_jk of y_j (y_j - 1) / n_j^2 over the same pixels.
    """
    return np.asarray(squares + squares.swapaxes(-1, -2) - 2 * product)


def structure_function(variances: Floats, product: Floats, shared: Floats, lag: Floats) -> tuple[Floats, Floats]:
    """Return coefficients s >= 0 of S(h) = s0 + s1 h + s2 h^2, the relative variance between rows at distance h.

    s0 stands for rows that differ by chance, s1 for a random walk and s2 for a steady drift; a sum of the three is
    always a valid variogram. They are fitted to sum(D^2 - var D) of all pairs of rows by non-negative least squares,
    with the pairs weighted by the area that they share.

    Parameters
    ----------
    variances
        (cell, row, row) `pair_variances`.
    product
        (cell, row, row) sums of x_j x_k, whose mean over the pairs is the sum of the squared mean rate.
    shared
        (cell, row, row) number of pixels that two rows share.
    lag
        (row, row) distances.

    Returns
    -------
    tuple of ndarray
        (cell, 3) coefficients, and (cell,) mean of the squared rate per shared pixel.
    """
    first, second = np.triu_indices(len(lag), 1)
    h, area = lag[first, second], shared[:, first, second]
    total = area.sum(axis=1)
    squared = np.maximum(product[:, first, second].sum(axis=1), 0) / np.maximum(total, 1e-300)
    basis = np.stack([np.ones_like(h), h, h**2])
    usable = _independent(basis)
    # Weight 1 / area for an equation whose sides are sums over the area: the noise of a sum grows with its root.
    normal = np.einsum("cp,ip,jp->cij", area, basis, basis)
    scale = np.where(squared > 0, squared, np.inf)[:, None]
    right = np.einsum("cp,ip->ci", variances[:, first, second], basis) / scale
    return _non_negative(normal, right, usable), squared


def _independent(basis: Floats) -> list[int]:
    """Return the terms that the distances can tell apart: a walk alone for one distance, no drift for two."""
    distinct = len(np.unique(basis[1].round(9)))
    if distinct == 1:
        return [1] if basis[1, 0] > 0 else [0]
    return list(range(min(distinct, TERMS)))


def _non_negative(normal: Floats, right: Floats, usable: list[int]) -> Floats:
    """Return the solution of non-negative least squares for each cell: the best of the subsets of few terms."""
    best = np.zeros((len(right), TERMS))
    gained = np.zeros(len(right))
    scale = np.trace(normal, axis1=1, axis2=2)
    filled = scale > 0
    for size in range(1, len(usable) + 1):
        for terms in combinations(usable, size):
            part = np.ix_(filled, terms, terms)
            # A tiny ridge keeps cells with few pairs solvable.
            matrix = normal[part] + np.eye(size) * (1e-9 * scale[filled])[:, None, None]
            values = right[filled][:, terms]
            solution = np.linalg.solve(matrix, values[..., None])[..., 0]
            gain = np.where((solution >= 0).all(axis=1), (solution * values).sum(axis=1), -np.inf)
            better = gain > gained[filled]
            rows = np.flatnonzero(filled)[better]
            gained[rows] = gain[better]
            best[rows] = 0.0
            best[np.ix_(rows, terms)] = solution[better]
    return best
