"""Gaussian windows over an image of blocks, as products with narrow matrices."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

#: Rows or columns of the result that one product gives on a CPU: more would multiply more zeros, fewer call more often.
TILE = 32
#: Standard deviations at which a window ends.
TRUNCATE = 3.0


def windowed(images: Tensor, sigma: float) -> Tensor:
    """Return images (any, y, x) after a Gaussian window of unit sum, zeros beyond their edges.

    They equal `scipy.ndimage.gaussian_filter` with ``mode="constant", truncate=3`` but for the order of sums.
    """
    number, height, width = images.shape
    rows = [matrix @ images[:, first:last] for matrix, first, last in _tiles(images, height, sigma)]
    flat = torch.cat(rows, dim=1).view(number * height, width)
    columns = [flat[:, first:last] @ matrix.T for matrix, first, last in _tiles(images, width, sigma)]
    return torch.cat(columns, dim=1).view(number, height, width)


def _tiles(images: Tensor, size: int, sigma: float) -> Iterator[tuple[Tensor, int, int]]:
    """Yield matrices and the elements, from a first to before a last one, that each turns into a tile of the result."""
    tile = TILE if images.device.type == "cpu" else size
    whole = _matrix(sigma, tile, images.dtype, images.device)
    reach = (whole.shape[1] - tile) // 2
    for start in range(0, size, tile):
        first, last = max(0, start - reach), min(size, start + tile + reach)
        begin = first - start + reach
        yield whole[: size - start, begin : begin + last - first], first, last


@lru_cache(64)
def _matrix(sigma: float, tile: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return (tile, tile + 2 reach): row i holds the window about element i + reach."""
    reach = int(TRUNCATE * sigma + 0.5)
    weights = [math.exp(-0.5 * (step / sigma) ** 2) for step in range(-reach, reach + 1)]
    window = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    matrix = torch.zeros(tile, tile + 2 * reach, dtype=torch.float64)
    for row in range(tile):
        matrix[row, row : row + 2 * reach + 1] = window
    return matrix.to(device, dtype)
