"""How much each row lends to one row, by cell: from the sums of a window's rows to weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.physics.neighbours.structure import pair_variances, structure_function
from bluesky_symdenoise.physics.neighbours.weights import kriging

Floats = NDArray[np.float64]

#: Side, in pixels, of the cells that have one structure function and one set of weights.
CELL = 16
#: Standard deviation, in cells, of the window over which their sums are smoothed, and its area.
SMOOTH = 2.0
WINDOW = 4 * np.pi * SMOOTH**2
#: Upper limit of the exposures that are borrowed: the networks were trained with as many.
MOST_EXPOSURES = 32.0
#: Sides, in pixels, of the elements between which rows are compared.
SCALES = (1, 4, CELL)
#: Share of an element's exposure from which on it is whole.
WHOLE = 0.999
#: Counts of the area whose photon noise is compared with what rows differ in.
KNOWN_COUNTS = 30.0
#: Standard deviations of its noise that are taken off a structure function: where elements are at most so many times
#: smaller than the area that is averaged over, and where they are smaller still.
NOISE_Z, FEWER, PLAIN_Z = 1.0, 4, 3.0


@dataclass(frozen=True)
class Moments:
    """Sums over cells of the rows of a window, the borrowing row first.

    Attributes
    ----------
    shape
        (y, x) number of cells.
    window
        Number of cells whose sums were averaged.
    product, squares, shared
        (cell, row, row) sums of x_j x_k, of y_j (y_j - 1) / n_j^2, and number of elements, where both rows are used.
    exposure, counts
        (cell, row) sums of exposures and counts.
    """

    shape: tuple[int, int]
    window: float
    product: Floats
    squares: Floats
    shared: Floats
    exposure: Floats
    counts: Floats


@dataclass(frozen=True)
class Shares:
    """How much each row lends.

    Attributes
    ----------
    per_count
        (y, x, row) weight of each count of a row.
    left
        (y, x) variance beyond the Poisson variance, over the rate, of the area that is averaged over.
    coefficients
        (y, x, 3) structure function.
    """

    per_count: Floats
    left: Floats
    coefficients: Floats


def shares(moments: Sequence[Moments], lag: Floats) -> Shares:
    """Return the weights of the rows from their moments at several scales, pixels first.

    Where a pixel has few counts, the denoiser averages over its surroundings: what rows differ in must be small against
    the photon noise of so many pixels as have `KNOWN_COUNTS` together, not of one. The structure function is that of
    the scale at which it is largest, less one to three standard deviations of its noise: rows whose scenes stand still
    lend all they have, and changes of fine detail count as much as those of wide areas.

    Parameters
    ----------
    lag
        (row, row) distances, the borrowing row first.
    """
    fine = moments[0]
    # Mean counts and exposure of a pixel, of all rows.
    counts, exposure = fine.counts.sum(axis=1), fine.exposure.sum(axis=1)
    rate = np.divide(counts, exposure, out=np.zeros_like(counts), where=exposure > 0)
    fits = [_fitted(each, lag) for each in moments]
    squared = fits[0][1]
    # Bright pixels count most in the structure function, and need the smallest variance.
    mean = np.maximum(rate, np.divide(squared, rate, out=np.zeros_like(rate), where=rate > 0))
    area = np.clip(np.divide(KNOWN_COUNTS, mean, out=np.ones_like(mean), where=mean > 0), 1, CELL**2)
    # In elements far smaller than the area, noise is large: only what is plain there counts.
    noises = [
        _noise(each, mean) * np.where(FEWER * side**2 >= area, NOISE_Z, PLAIN_Z)
        for each, side in zip(moments, SCALES, strict=True)
    ]
    coefficients = _largest([terms for terms, _ in fits], noises, lag)
    pixels = np.maximum(np.diagonal(fine.shared, axis1=1, axis2=2).max(axis=1, keepdims=True), 1e-300)
    per_pixel = fine.exposure / pixels
    weights, left = kriging(per_pixel[:, 1:], area * mean, coefficients, lag)
    per_count = np.divide(weights, per_pixel[:, 1:], out=np.zeros_like(weights), where=per_pixel[:, 1:] > 1e-9)
    return Shares(
        per_count.reshape(*fine.shape, -1),
        (left * area * mean).reshape(fine.shape),
        coefficients.reshape(*fine.shape, -1),
    )


def _largest(fits: Sequence[Floats], noises: Sequence[Floats], lag: Floats) -> Floats:
    """Return the coefficients of the largest of several structure functions at a typical distance, less its noise."""
    typical = float(np.median(lag[np.triu_indices(len(lag), 1)]))
    step = np.array([1.0, typical, typical**2])
    sizes = np.stack([terms @ step for terms in fits])
    plain = np.maximum(sizes - np.stack(noises), 0)
    chosen = plain.argmax(axis=0)
    cells = np.arange(len(chosen))
    kept = np.divide(plain[chosen, cells], sizes[chosen, cells], out=np.zeros(len(cells)), where=plain.max(axis=0) > 0)
    return np.asarray(np.stack(fits)[chosen, cells] * kept[:, None])


def _fitted(moments: Moments, lag: Floats) -> tuple[Floats, Floats]:
    variances = pair_variances(moments.product, moments.squares)
    return structure_function(variances, moments.product, moments.shared, lag)


def _noise(moments: Moments, mean: Floats) -> Floats:
    """Return the standard deviation of a structure function by photon noise alone."""
    rows = moments.shared.shape[1]
    first, second = np.triu_indices(rows, 1)
    # Pairs have rows in common: so many of them are independent as there are rows, less one.
    area = moments.shared[:, first, second].mean(axis=1) * (rows - 1) * moments.window
    used = np.diagonal(moments.shared, axis1=1, axis2=2).max(axis=1)
    exposure = np.divide(moments.exposure.mean(axis=1), used, out=np.ones_like(used), where=used > 0)
    with np.errstate(divide="ignore"):
        # var D = 2 m / n a pair, and var (D^2 - var D) = 2 (var D)^2; in units of m^2.
        return np.where((area > 0) & (mean > 0), np.sqrt(8 / np.maximum(area, 1e-300)) / (mean * exposure), 0.0)
