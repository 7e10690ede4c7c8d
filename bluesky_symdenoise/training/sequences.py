"""Neighbouring rows of a training frame: exact, drifting, jumping, repeated, locally different, or another scene."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bluesky_symdenoise.physics.frame import Frame
from bluesky_symdenoise.training.simulate import Image, random_spots

#: Kinds of sequences and their shares: all rows alike; a steady change; a random walk; another scene from a row on;
#: spots in one row only; rows that differ by chance; all rows of another scene.
KINDS = ("still", "drift", "walk", "jump", "spots", "jitter", "other")
SHARES = (0.34, 0.17, 0.15, 0.14, 0.08, 0.06, 0.06)
#: Rows on each side, and their shares.
REACHES, REACH_SHARES = (1, 2, 3, 4, 8), (0.2, 0.2, 0.2, 0.2, 0.2)
#: Range of the change from one row to the next, of what distinguishes two scenes.
STEPS = (3e-3, 0.5)


def offsets(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return steps (row, 1) to rows before, or on both sides; in some of the cases, each point is repeated."""
    reach = int(rng.choice(REACHES, p=REACH_SHARES))
    steps = [-float(step) for step in range(1, reach + 1)]
    if rng.uniform() < 0.6:
        steps += [-step for step in steps]
    if reach <= 2 and rng.uniform() < 0.2:
        steps = [0.0, *steps, *steps]
    return np.array(sorted(steps, key=abs))[:, None]


def fluxes(rng: np.random.Generator, rows: int) -> NDArray[np.float64]:
    """Return each row's flux over the frame's: the same, with noise, or anything from a third to four."""
    kind = rng.uniform()
    if kind < 0.4:
        return np.ones(rows)
    if kind < 0.75:
        return np.asarray(np.exp(rng.normal(0, 0.07, rows)))
    common = np.exp(rng.uniform(np.log(0.33), np.log(4)))
    return np.asarray(common * np.exp(rng.normal(0, 0.2, rows)))


def changed_rate(rng: np.random.Generator, rate: Image, other: Callable[[], Image]) -> Image:
    """Return what a scene turns into: moved, scaled by a smooth field or locally, with something added, or another."""
    kind = rng.uniform()
    if kind < 0.35:
        angle, zoom = rng.normal(0, 0.06), np.exp(rng.normal(0, 0.03))
        matrix = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        center = (np.array(rate.shape) - 1) * rng.uniform(-0.5, 1.5, 2)
        shift = center - matrix @ center + rng.normal(0, 1.5, 2)
        return np.asarray(ndimage.affine_transform(rate, matrix, shift, order=1, mode="nearest"))
    if kind < 0.55:
        field = ndimage.gaussian_filter(rng.normal(size=rate.shape), rng.uniform(2, 25), mode="wrap")
        return np.asarray(rate * np.exp(rng.uniform(0.1, 1) * field / field.std()))
    if kind < 0.7:
        return np.asarray(ndimage.gaussian_filter(rate, rng.uniform(0.5, 4), mode="nearest"))
    found = other()
    return rate + rng.uniform(0.1, 1) * found if kind < 0.85 else found


def row_rates(rng: np.random.Generator, rate: Image, steps: NDArray[np.float64], other: Callable[[], Image]) -> Image:
    """Return the rates (row, y, x) of rows at these steps (row, 1) from the frame, whose rate is given."""
    step = steps[:, 0]
    kind = str(rng.choice(KINDS, p=SHARES))
    if kind == "still":
        return np.broadcast_to(rate, (len(step), *rate.shape))
    if kind == "spots":
        out = np.repeat(rate[None], len(step), axis=0)
        out[rng.integers(len(step))] += random_spots(rng, rate)
        return out
    end = changed_rate(rng, rate, other)
    size = np.exp(rng.uniform(np.log(STEPS[0]), np.log(STEPS[1])))
    if kind == "drift":
        share = size * step
    elif kind == "walk":
        walks = [np.concatenate([[0.0], rng.normal(0, size, 64).cumsum()]) for _ in range(2)]
        share = np.array([walks[int(each > 0)][int(abs(each))] for each in step])
    elif kind == "jitter":
        share = rng.normal(0, size, len(step))
    elif kind == "jump":
        at, sign = rng.integers(0, 3), rng.choice([-1.0, 1.0])
        share = (sign * step > at) * (1.0 if rng.uniform() < 0.5 else np.exp(rng.uniform(np.log(0.02), 0.0)))
    else:
        share = np.ones(len(step))
    return np.maximum(rate + share[:, None, None] * (end - rate), 1e-9)


def lent_evidence(
    counts: Image, exposure: Image, rows: Image, row_exposure: Image, steps: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return counts and exposure that rows lend to a frame, (y, x), as they are found in use.

    Parameters
    ----------
    counts, exposure
        (y, x) of the frame.
    rows, row_exposure
        Counts (row, y, x), and their exposures.
    steps
        (row, 1) steps from the frame.
    """
    # torch takes a second to import: what imports this module may not need it.
    import torch

    from bluesky_symdenoise.denoiser.device.borrow import borrowed
    from bluesky_symdenoise.denoiser.device.crew import Crew
    from bluesky_symdenoise.denoiser.device.frame import held

    one_thread = Crew(torch.device("cpu"), 1)
    nothing = np.zeros(counts.shape, np.float32)
    if not counts.any():
        return nothing, nothing
    frames = [Frame(y, n, 1.0) for y, n in zip(rows, np.broadcast_to(row_exposure, rows.shape), strict=True)]
    with torch.inference_mode():
        found = borrowed(held([Frame(counts, exposure, 1.0)], one_thread), held(frames, one_thread), steps)
    if found is None:
        return nothing, nothing
    height, width = counts.shape
    y, n = (each[0, :height, :width].numpy() for each in (found.evidence.counts, found.evidence.exposure))
    return y, n
