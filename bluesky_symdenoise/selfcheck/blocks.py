"""Sums over blocks of pixels, and errors of what is computed from them by bootstrap over the blocks."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.float64]

#: Blocks along the longer side of a frame, at most, and the smallest side of one in pixels.
ALONG, LEAST_SIDE = 24, 8
#: Blocks that are needed for an error, and times that they are drawn.
LEAST_BLOCKS, DRAWS = 16, 200
#: Rows of a table before neighbours are added up.
MOST_UNITS = 2048


def block_index(shape: tuple[int, int]) -> tuple[NDArray[np.intp], int]:
    """Return each pixel's block (y, x), and the number of blocks."""
    return tiles(shape, max(LEAST_SIDE, math.ceil(max(shape) / ALONG)))


def tiles(shape: tuple[int, int], side: int) -> tuple[NDArray[np.intp], int]:
    """Return the number of the square of this side that each pixel lies in, and how many there are."""
    down, across = (-(-length // side) for length in shape)
    y, x = np.arange(shape[0]) // side, np.arange(shape[1]) // side
    return np.asarray(y[:, None] * across + x[None, :], np.intp), down * across


def summed(index: NDArray[np.intp], number: int, *columns: NDArray[np.float64]) -> Table:
    """Return sums of values (pixels,) by index, one row for each index."""
    return np.stack([np.bincount(index, column, number) for column in columns], axis=1)


def fewer(table: Table) -> Table:
    """Return a table of at most `MOST_UNITS` rows, of which each is the sum of neighbours."""
    step = -(-len(table) // MOST_UNITS)
    return table if step <= 1 else np.asarray(np.add.reduceat(table, np.arange(0, len(table), step), axis=0))


def resampled(table: Table, generator: np.random.Generator) -> Table:
    """Return the column sums of a table (rows, columns) whose rows are drawn with replacement: (draws, columns)."""
    weights = generator.multinomial(len(table), np.full(len(table), 1 / len(table)), DRAWS)
    return np.asarray(weights.astype(np.float64) @ table)
