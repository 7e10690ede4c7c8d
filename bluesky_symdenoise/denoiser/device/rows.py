"""Rows of an image that are processed at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch

#: Pixels that one thread of a CPU processes at a time, so that temporary arrays stay in its cache.
CACHED_PIXELS = 2**15


def rows_at_a_time(height: int, width: int, device: torch.device, *, step: int) -> Iterator[tuple[int, int]]:
    """Yield (first, last) rows: on a CPU, as many as its caches hold; on a GPU, all.

    Parameters
    ----------
    height, width
        Size of the images, in pixels.
    step
        The first row of each part is a multiple of it.
    """
    rows = height
    if device.type == "cpu":
        rows = max(step, CACHED_PIXELS * torch.get_num_threads() // width // step * step)
    for first in range(0, height, rows):
        yield first, min(first + rows, height)
