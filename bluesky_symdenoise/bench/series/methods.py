"""Peers that use the rows of a stack: means, medians, truncated SVD, BM4D and BMND."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from bluesky_symdenoise.bench.quality.metrics import FloatArray
from bluesky_symdenoise.bench.quality.poisson import bmnd
from bluesky_symdenoise.bench.quality.stabilised import bm4d
from bluesky_symdenoise.bench.series.stacks import Stack, generator
from bluesky_symdenoise.physics.neighbours.window import Scan


@dataclass(frozen=True)
class StackPeer:
    """A method that takes all rows of a stack.

    Attributes
    ----------
    estimate
        Its estimate of the expected counts (row, y, x) from the counts of a stack alone; None where it is not
        applicable.
    slow
        Whether it takes more than a second for 12 x 64 x 64 pixels.
    """

    estimate: Callable[[Stack], FloatArray | None]
    slow: bool = False


def raw(stack: Stack) -> FloatArray:
    """Return the counts."""
    return stack.counts


def mean_of_rows(stack: Stack, *, reach: int) -> FloatArray:
    """Return the mean over the rows up to `reach` away on either side, as far as there are any."""
    return _over_rows(stack, reach, np.mean)


def median_of_rows(stack: Stack, *, reach: int) -> FloatArray:
    """Return the median over the rows up to `reach` away on either side, as far as there are any."""
    return _over_rows(stack, reach, np.median)


def mean_of_points(stack: Stack) -> FloatArray | None:
    """Return the mean over the 3 x 3 nearest points of a map; None for a series."""
    if stack.scan is None:
        return None
    points = points_of(stack.scan)
    near = np.abs(points[:, None] - points[None]).max(axis=-1) <= 1
    return np.asarray(np.einsum("rs,syx->ryx", near / near.sum(axis=1, keepdims=True), stack.counts))


def points_of(scan: Scan) -> FloatArray:
    """Return the place of each row on the scan's axes, (row, axis)."""
    return np.array([scan.point(number) for number in range(scan.rows)], np.float64)


def truncated_svd(stack: Stack, *, seed: int = 0) -> FloatArray:
    """Return the stack with the rank that predicts held-out photons best: of a further thinning of the input.

    Rows and pixels are divided by the roots of their means before, so that Poisson noise is about as strong
    everywhere (Keenan and Kotula, Surf. Interface Anal. 36, 203, 2004).
    """
    valid = ~stack.mask
    counts = stack.counts[:, valid]
    part = generator(seed, stack.name, stack.level).binomial(counts.astype(np.int64), 0.5).astype(np.float64)
    rest = counts - part
    least = 0.02 * max(float(part.mean()), 1e-9)
    ranks = range(1, len(counts) + 1)
    losses = []
    for rank in ranks:
        mean = np.maximum(_truncated(part, rank), least)
        losses.append(float((mean - rest * np.log(mean)).sum()))
    estimate = np.zeros(stack.counts.shape)
    estimate[:, valid] = np.maximum(_truncated(counts, ranks[int(np.argmin(losses))]), 0.0)
    return estimate


def _truncated(counts: FloatArray, rank: int) -> FloatArray:
    rows = np.sqrt(np.maximum(counts.mean(axis=1), 1e-12))[:, None]
    # Pixels that counted nothing are as good as those with one photon in all rows.
    pixels = np.sqrt(np.maximum(counts.mean(axis=0), 1 / len(counts)))[None]
    left, values, right = np.linalg.svd(counts / rows / pixels, full_matrices=False)
    return np.asarray((left[:, :rank] * values[:rank]) @ right[:rank] * rows * pixels)


def _over_rows(stack: Stack, reach: int, over: Callable[..., FloatArray]) -> FloatArray:
    counts = stack.counts
    return np.stack([over(counts[max(0, row - reach) : row + reach + 1], axis=0) for row in range(len(counts))])


PEERS: dict[str, StackPeer] = {
    "raw": StackPeer(raw),
    "mean_1": StackPeer(partial(mean_of_rows, reach=1)),
    "mean_3": StackPeer(partial(mean_of_rows, reach=3)),
    "median_1": StackPeer(partial(median_of_rows, reach=1)),
    "median_3": StackPeer(partial(median_of_rows, reach=3)),
    "mean_3x3": StackPeer(mean_of_points),
    "svd": StackPeer(truncated_svd),
    "bm4d": StackPeer(lambda stack: bm4d(stack.counts, stack.mask), slow=True),
    "bmnd": StackPeer(lambda stack: bmnd(stack.counts, stack.mask), slow=True),
}
"""All peers by name."""

QUICK = {name: peer for name, peer in PEERS.items() if not peer.slow}
