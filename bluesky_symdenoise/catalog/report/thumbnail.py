"""A frame, or a stack of frames, as a PNG of bounded size on a logarithmic scale."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.catalog.report.picture import log_limits, shrunk

#: Pixels along the longer side of a picture.
MOST = 1024
#: Number of frames of a stack that are shown, evenly spaced.
SHEET = 16
_GAP = 2


def frames_png(array: NDArray[Any]) -> bytes:
    """Draw a frame (y, x), or up to 16 frames of a stack (..., y, x) as one sheet, all on one scale.

    The colour scale is logarithmic from half the first percentile of the positive values to the 99.8th percentile of
    all; pixels without a value (NaN, infinite) are hatched grey. Frames of more than 1024 pixels are averaged over
    blocks.

    Raises
    ------
    ValueError
        If there is no pixel, or less than two dimensions.
    """
    if array.ndim < 2 or 0 in array.shape:
        raise ValueError(f"shape {array.shape} holds no frame (y, x)")
    stack = array.reshape(-1, *array.shape[-2:])
    chosen = np.unique(np.linspace(0, len(stack) - 1, min(len(stack), SHEET)).round().astype(int))
    columns = int(np.ceil(np.sqrt(len(chosen))))
    block = max(1, -(-max(stack.shape[1:]) * columns // MOST))
    tiles = [shrunk(stack[index], block) for index in chosen]
    limits = log_limits(np.stack(tiles))
    rows = -(-len(tiles) // columns)
    height, width = tiles[0].shape[0] + _GAP, tiles[0].shape[1] + _GAP
    sheet = np.full((rows * height - _GAP, columns * width - _GAP, 3), 255, np.uint8)
    for place, tile in enumerate(tiles):
        y, x = place // columns * height, place % columns * width
        sheet[y : y + tile.shape[0], x : x + tile.shape[1]] = _coloured(tile, limits)
    return _encoded(sheet)


def _coloured(tile: NDArray[np.float64], limits: tuple[float, float]) -> NDArray[np.uint8]:
    import matplotlib

    low, high = np.log(limits)
    has_value = np.isfinite(tile)
    place = (np.log(np.clip(np.where(has_value, tile, limits[0]), *limits)) - low) / (high - low)
    colours: NDArray[np.uint8] = matplotlib.colormaps["viridis"](place, bytes=True)[..., :3]
    y, x = np.indices(tile.shape)
    hatch = np.where((y + x) // 4 % 2, 150, 200).astype(np.uint8)[..., np.newaxis]
    return np.where(has_value[..., np.newaxis], colours, hatch)


def _encoded(pixels: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()
