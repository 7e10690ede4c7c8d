"""How much each row lends to one row, by cell: from the sums of a window's rows to weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.physics.neighbours.structure import pair_variances, structure_function
from bluesky_symdenoise.physics.neighbours.weights import kriging

Floats = NDArray[np.float64]

#: Side, in pixels, of the cells that have one structure function and one set of weights.
CELL = 16
#: Standard deviation, in cells, of the window over which their sums are smoothed, and its area.
SMOOTH = 1.0
WINDOW = 4 * np.pi * SMOOTH**2
#: Upper limit of the exposures that are borrowed: the networks were trained with as many.
MOST_EXPOSURES = 32.0
#: Standard deviations of its noise by which the structure function of pixels must exceed that of blocks to be used.
FINE_Z = 1.0


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
        (y, x) variance beyond the Poisson variance, over the rate.
    coefficients
        (y, x, 3) structure function.
    """

    per_count: Floats
    left: Floats
    coefficients: Floats


def shares(moments: tuple[Moments, Moments], lag: Floats) -> Shares:
    """Return the weights of the rows from the moments of pixels and of blocks.

    The structure function is that of the blocks, which is the less noisy one, unless pixels plainly vary more: where
    fine detail moves.

    Parameters
    ----------
    lag
        (row, row) distances, the borrowing row first.
    """
    fine, coarse = moments
    of_pixels, squared = _fitted(fine, lag)
    of_blocks, _ = _fitted(coarse, lag)
    # Mean counts and exposure of a pixel, of all rows.
    counts, exposure = fine.counts.sum(axis=1), fine.exposure.sum(axis=1)
    rate = np.divide(counts, exposure, out=np.zeros_like(counts), where=exposure > 0)
    # Bright pixels count most in the structure function, and need the smallest variance.
    mean = np.maximum(rate, np.divide(squared, rate, out=np.zeros_like(rate), where=rate > 0))
    noise = _noise(fine, mean)
    step = np.array([1.0, 1.0, 1.0])
    finer = of_pixels @ step > of_blocks @ step + FINE_Z * noise
    coefficients = np.where(finer[:, None], of_pixels, of_blocks)
    pixels = np.maximum(np.diagonal(fine.shared, axis1=1, axis2=2).max(axis=1, keepdims=True), 1e-300)
    per_pixel = fine.exposure / pixels
    weights, left = kriging(per_pixel[:, 1:], mean, coefficients, lag)
    per_count = np.divide(weights, per_pixel[:, 1:], out=np.zeros_like(weights), where=per_pixel[:, 1:] > 1e-9)
    return Shares(
        per_count.reshape(*fine.shape, -1),
        (left * mean).reshape(fine.shape),
        coefficients.reshape(*fine.shape, -1),
    )


def _fitted(moments: Moments, lag: Floats) -> tuple[Floats, Floats]:
    variances = pair_variances(moments.product, moments.squares)
    return structure_function(variances, moments.product, moments.shared, lag)


def _noise(moments: Moments, mean: Floats) -> Floats:
    """Return the standard deviation of the structure function of pixels by photon noise alone."""
    first, second = np.triu_indices(moments.shared.shape[1], 1)
    area = moments.shared[:, first, second].sum(axis=1) * moments.window
    used = np.diagonal(moments.shared, axis1=1, axis2=2).max(axis=1)
    exposure = np.divide(moments.exposure.mean(axis=1), used, out=np.ones_like(used), where=used > 0)
    with np.errstate(divide="ignore"):
        # var D = 2 m / n a pair, and var (D^2 - var D) = 2 (var D)^2; in units of m^2.
        return np.where((area > 0) & (mean > 0), np.sqrt(8 / np.maximum(area, 1e-300)) / (mean * exposure), 0.0)
