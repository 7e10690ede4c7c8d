"""What rows lend to a frame, as counts and exposure that predict its rate as well: the law."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bluesky_symdenoise.physics.fold import BLOCK, block_sum
from bluesky_symdenoise.physics.frame import Frame
from bluesky_symdenoise.physics.neighbours import flux
from bluesky_symdenoise.physics.neighbours.pools import agreeing_evidence, agreeing_rows
from bluesky_symdenoise.physics.neighbours.share import (
    CELL,
    MOST_EXPOSURES,
    SCALES,
    SMOOTH,
    WHOLE,
    WINDOW,
    Moments,
    shares,
)
from bluesky_symdenoise.physics.neighbours.structure import lags

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a frame borrows.

    Attributes
    ----------
    counts, exposure
        (y, x) as good a prediction of the frame's rate as so many counts of so much exposure would be.
    ratios
        (row,) flux of each row over the frame's; NaN where they have nothing in common.
    """

    counts: Floats
    exposure: Floats
    ratios: Floats


def borrowed_evidence(
    frame: Frame, rows: Sequence[Frame], offsets: Floats, *, same_flux: bool = False
) -> Evidence | None:
    """Return what rows lend to a frame, or None if that is nothing.

    x = sum c y / sum c n over the rows that agree in a pixel predicts the rate m with the variance
    m sum c^2 n / (sum c n)^2 + m^2 left, with weights c of each count and what the rows' scenes leave from `shares`.
    The exposure is m over that variance, and the counts are x times the exposure.

    Parameters
    ----------
    offsets
        (row, axis) steps from the frame.
    same_flux
        Whether rows are compared as they are, because what they counted is not proportional to the flux.
    """
    ratios = _ratios(frame, rows)
    if same_flux:
        ratios = np.where(np.isfinite(ratios), 1.0, np.nan)
    if not np.isfinite(ratios).any():
        return None
    scales = np.where(np.isfinite(ratios), ratios, 0.0)
    scaled = [Frame(row.counts, scale * row.exposure, 1.0) for row, scale in zip(rows, scales, strict=True)]
    use = agreeing_rows(frame, scaled, offsets)
    counts = np.stack([row.counts for row in scaled]) * use
    exposure = np.stack([row.exposure for row in scaled]) * use
    stacked = np.concatenate([frame.counts[None], counts]), np.concatenate([frame.exposure[None], exposure])
    whole = np.stack([frame.exposure, *(row.exposure for row in scaled)])
    moments = []
    for block in SCALES:
        y, n, full = (_summed(each, block) for each in (*stacked, whole))
        moments.append(_moments(y, n, full, CELL // block))
    found = shares(moments, lags(np.concatenate([np.zeros_like(offsets[:1]), offsets])))
    c, left = np.moveaxis(_spread(found.per_count, frame), -1, 0), _spread(found.left, frame)
    total = (c * exposure).sum(axis=0)
    known = total > 0
    safe = np.where(known, total, 1.0)
    variance = np.where(known, (c**2 * exposure).sum(axis=0) / safe**2, 1.0) + left
    most = MOST_EXPOSURES * float(np.median(frame.exposure[frame.exposure > 0]))
    worth = np.where(known, np.minimum(1 / variance, most), 0.0)
    evidence = Frame(worth * (c * counts).sum(axis=0) / safe, worth, 1.0)
    final = agreeing_evidence(frame, evidence)
    if not (worth * final).any():
        return None
    return Evidence(evidence.counts * final, worth * final, ratios)


def _ratios(frame: Frame, rows: Sequence[Frame]) -> Floats:
    """Return the flux of each row over the frame's."""
    both = [(frame.exposure > 0) & (row.exposure > 0) for row in rows]

    def summed(images: Sequence[Floats]) -> Floats:
        return np.stack([block_sum(image * used, flux.BLOCK).ravel() for image, used in zip(images, both, strict=True)])

    own = [summed([image] * len(rows)) for image in (frame.counts, frame.exposure)]
    return flux.flux_ratios(
        own[0], own[1], summed([row.counts for row in rows]), summed([row.exposure for row in rows])
    )


def _summed(images: Floats, block: int) -> Floats:
    """Return sums of images (row, y, x) over blocks, zeros beyond their edges up to whole cells."""
    return np.stack([block_sum(image, block) for image in np.pad(images, _to_cells(images))])


def _to_cells(images: Floats) -> list[tuple[int, int]]:
    return [(0, 0), *((0, -size % CELL) for size in images.shape[1:])]


def _moments(counts: Floats, exposure: Floats, whole: Floats, side: int) -> Moments:
    """Return the sums over cells of so many elements a side, smoothed over cells.

    Elements count of which no pixel is left out: parts of them would have other rates.
    """
    rows, height, width = counts.shape
    used = (exposure > 0) & (exposure >= WHOLE * whole)
    per = np.divide(1.0, exposure, out=np.zeros_like(exposure), where=used)
    shape = (height // side, width // side)

    def celled(image: Floats) -> Floats:
        cut = image.reshape(rows, shape[0], side, shape[1], side)
        return np.asarray(cut.transpose(1, 3, 0, 2, 4).reshape(-1, rows, side * side))

    def smoothed(values: Floats) -> Floats:
        image = values.reshape(*shape, -1)
        sigma = (SMOOTH, SMOOTH, 0)
        return np.asarray(ndimage.gaussian_filter(image, sigma, mode="constant", truncate=3.0).reshape(values.shape))

    x, f, g = celled(counts * per), celled(counts * (counts - 1) * per**2), celled(used.astype(float))
    product, squares, shared = (smoothed(one @ other.swapaxes(1, 2)) for one, other in ((x, x), (f, g), (g, g)))
    sums = (smoothed(celled(image).sum(axis=2)) for image in (exposure, counts))
    return Moments(shape, WINDOW, product, squares, shared, *sums)


def _spread(cells: Floats, frame: Frame) -> Floats:
    """Return values of cells (y, x, ...) interpolated to blocks of 4 x 4 pixels, as images (y, x, ...)."""
    height, width = frame.counts.shape
    for axis in (0, 1):
        size = cells.shape[axis]
        place = np.clip((np.arange(size * CELL // BLOCK) + 0.5) * BLOCK / CELL - 0.5, 0, size - 1)
        below = np.minimum(np.floor(place).astype(int), max(size - 2, 0))
        share = (place - below).reshape(-1, *[1] * (cells.ndim - 1 - axis))
        above = np.minimum(below + 1, size - 1)
        cells = cells.take(below, axis) * (1 - share) + cells.take(above, axis) * share
    return np.asarray(cells.repeat(BLOCK, axis=0).repeat(BLOCK, axis=1)[:height, :width])
