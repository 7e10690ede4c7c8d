"""Scores of each row by blocks of pixels, and differences of methods with errors from a bootstrap over blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import special

from bluesky_symdenoise.bench.quality.metrics import FLOORS, FloatArray, floor_losses
from bluesky_symdenoise.bench.series.stacks import Stack
from bluesky_symdenoise.physics.fold import block_sum

#: Side in pixels of the blocks that are drawn anew, and how often.
BLOCK, RESAMPLES = 16, 400
#: Least rate, counts per pixel of the input, that our own estimates are scored with.
TINY = 1e-6


class Difference(NamedTuple):
    """A difference and its standard error."""

    value: float
    error: float


@dataclass(frozen=True, eq=False)
class Scored:
    """Sums over blocks of pixels.

    Attributes
    ----------
    loss
        (row, block) negative log-likelihood of the held-out counts over their exposure: that of counts like the row's.
        For a true rate, what is above the least possible.
    square
        (row, block) squared error less the noise of the target, counts of the input.
    pixels
        (block,) valid pixels.
    floor
        Least rate that was scored, counts per pixel of the input.
    """

    loss: FloatArray
    square: FloatArray
    pixels: FloatArray
    floor: float

    def loss_of_rows(self) -> FloatArray:
        """Return the loss per pixel of each row, in nat."""
        return np.asarray(self.loss.sum(axis=1) / self.pixels.sum())

    @property
    def mean_loss(self) -> float:
        """Loss per pixel over all rows, in nat."""
        return float(self.loss_of_rows().mean())

    @property
    def mean_square(self) -> float:
        """Mean squared error over all rows."""
        return float(self.square.sum() / (len(self.square) * self.pixels.sum()))


def scored(estimate: FloatArray, stack: Stack, *, floor: float | None = TINY) -> Scored:
    """Return the scores of expected counts (row, y, x) of a stack.

    Parameters
    ----------
    floor
        Least rate that is scored; None for the one of `FLOORS` that suits the estimate best on these very rows, which
        is generous to it.
    """
    if floor is None:
        floor = best_floor(estimate, stack)
    k = stack.k[:, None, None]
    valid = np.where(stack.mask, 0.0, 1.0)
    e, t = np.where(stack.mask, 1.0, estimate), np.where(stack.mask, 1.0, stack.target)
    mean = k * np.maximum(e, floor)
    least = t - special.xlogy(t, t) if stack.exact else -special.gammaln(t + 1)
    loss = (mean - special.xlogy(t, mean) - least) / k
    square = (e - t / k) ** 2 - (0.0 if stack.exact else t / k**2)
    return Scored(_blocks(loss * valid), _blocks(square * valid), _blocks(valid[None])[0], float(floor))


def best_floor(estimate: FloatArray, stack: Stack) -> float:
    """Return the floor of `FLOORS` with the least loss over all rows."""
    losses = [
        floor_losses(row, target, float(k), mask=stack.mask)
        for row, target, k in zip(estimate, stack.target, stack.k, strict=True)
    ]
    return float(FLOORS[np.argmin(np.sum(losses, axis=0))])


def differences(first: Scored, second: Scored) -> list[Difference]:
    """Return the loss of each row of the first less that of the second, in nat per pixel."""
    return [_difference(row, first.pixels) for row in first.loss - second.loss]


def mean_difference(first: Scored, second: Scored) -> Difference:
    """Return the mean loss of the first less that of the second, in nat per pixel."""
    return _difference((first.loss - second.loss).mean(axis=0), first.pixels)


def resampled(blocks: int) -> FloatArray:
    """Return how often each block is drawn, (`RESAMPLES` + 1, block): once each in the first line."""
    drawn = np.random.default_rng(0).multinomial(blocks, np.full(blocks, 1 / blocks), RESAMPLES)
    return np.concatenate([np.ones((1, blocks)), drawn])


def _difference(sums: FloatArray, pixels: FloatArray) -> Difference:
    drawn = resampled(len(pixels))
    values = drawn @ sums / np.maximum(drawn @ pixels, 1e-12)
    return Difference(float(values[0]), float(values[1:].std()))


def _blocks(images: FloatArray) -> FloatArray:
    return np.stack([block_sum(image, BLOCK).ravel() for image in images])
