"""Sums of one frame that was drawn anew from its denoised self and denoised again, so that the truth is known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bluesky_symdenoise.selfcheck.blocks import Table, block_index, summed
from bluesky_symdenoise.selfcheck.heldout import error_tables
from bluesky_symdenoise.selfcheck.peers import LEAST

Image = NDArray[np.float64]

#: Sizes of structure in pixels: the mean over a square of that side, less that over one three times as wide.
SIZES = (3, 9)
#: A spot of 3 x 3 pixels stands out of the square around it by so many errors of its counts.
SEEN = 5.0


def sham_tables(
    truth: Image,
    counts: Image,
    again: tuple[Image, Image],
    valid: NDArray[np.bool_],
    center: tuple[float, float] | None = None,
) -> dict[str, Table]:
    """Return sums over blocks, by name; those of several frames are appended.

    ``structure``: for each of `SIZES`, with structure t of the truth, d of the frame denoised again and y of its
    counts: t d, t^2, (d - t)^2 and (y - t)^2. ``spots``: number and counts of the spots of the truth, their counts in
    the frame denoised again, the number of those that have less than half there, and the numbers of spots that only
    the frame denoised again, and only its counts, have. ``sham strata`` and so on: `error_tables` of the frame
    denoised again, without noise, because the truth is known.

    Parameters
    ----------
    truth, counts
        (y, x)
    again
        The frame denoised again, and its stated error.
    valid
        Pixels that were measured and have an estimate.
    center
        Beam centre (y, x), if it is known.
    """
    shape = (truth.shape[0], truth.shape[1])
    block, number = block_index(shape)
    here = block[valid]
    columns: list[Image] = []
    for size in SIZES:
        t, d, y = (_structure(each, valid, size)[valid] for each in (truth, again[0], counts))
        columns += [t * d, t**2, (d - t) ** 2, (y - t) ** 2]
    t, d, variance = truth[valid], again[0][valid], again[1][valid] ** 2
    judged = error_tables(d - t, np.zeros_like(t), variance, np.maximum(d, LEAST), valid, center)
    return {
        "structure": summed(here, number, *columns),
        "spots": _spots(truth, counts, again[0], valid),
        **{f"sham {name}": table for name, table in judged.items()},
    }


def _means(image: Image, valid: NDArray[np.bool_], size: int) -> tuple[Image, Image]:
    """Return the mean over the valid pixels of a square about each pixel, and their number."""
    share = ndimage.uniform_filter(valid.astype(np.float64), size, mode="constant")
    total = ndimage.uniform_filter(np.where(valid, image, 0.0), size, mode="constant")
    few = share < 0.5 / size**2
    return np.where(few, 0.0, total / np.where(few, 1.0, share)), np.rint(share * size**2)


def _structure(image: Image, valid: NDArray[np.bool_], size: int) -> Image:
    return _means(image, valid, size)[0] - _means(image, valid, 3 * size)[0]


def _spots(truth: Image, counts: Image, again: Image, valid: NDArray[np.bool_]) -> Table:
    contrast, seen = zip(*(_contrast(each, valid) for each in (truth, again, counts)), strict=True)
    t, d, y = contrast
    there = seen[0]
    missing = there & (d < t / 2)
    # The wings of a spot of the truth are no spots of their own.
    near = ndimage.maximum_filter(np.where(valid, t, 0.0), 5)
    invented, by_noise = seen[1] & (near < d / 2), seen[2] & (near < y / 2)
    sums = [there.sum(), t[there].sum(), d[there].sum(), missing.sum(), invented.sum(), by_noise.sum()]
    return np.array([sums], np.float64)


def _contrast(image: Image, valid: NDArray[np.bool_]) -> tuple[Image, NDArray[np.bool_]]:
    """Return the counts of 3 x 3 pixels above those around, and where they are a peak that stands out."""
    inner, n = _means(image, valid, 3)
    outer, wide = _means(image, valid, 9)
    around = np.maximum((outer * wide - inner * n) / np.maximum(wide - n, 1), 0.0)
    contrast = (inner - around) * n
    error = np.sqrt(around * n * (1 + n / np.maximum(wide - n, 1)) + 1)
    whole = valid & (n >= 6) & (wide - n >= 36)
    peak = contrast == ndimage.maximum_filter(np.where(whole, contrast, -np.inf), 5)
    return contrast, whole & peak & (contrast > SEEN * error)
