"""Noise2Void, a method to compare with: our own reimplementation from its published description.

Krull, Buchholz and Jug, CVPR 2019: a U-Net learns by least squares to predict a few pixels of the frame from their
surroundings, with each of them replaced by a neighbour, so that it cannot copy their noise. It is trained on the
frame that it denoises, and applied to the whole frame at the end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bluesky_symdenoise.training.smae import BUDGET, FLIPS, Budget, UNet

#: Share of the pixels that are hidden at each step, and the largest distance of their replacements along each axis.
HIDDEN, REACH = 0.02, 2
#: Side of the patches in pixels, and number of patches in a step.
PATCH, BATCH = 64, 8


def n2v(image: NDArray[Any], mask: NDArray[np.bool_], *, budget: Budget = BUDGET) -> NDArray[np.float64]:
    """Return the expected image, from a network trained to predict hidden pixels of it.

    Parameters
    ----------
    image
        (y, x), with noise that is independent from pixel to pixel and, best, of one width. Masked pixels must hold
        something plausible: the network sees them, and never learns from them.
    mask
        (y, x), True = bad.

    Returns
    -------
    ndarray
        (y, x).
    """
    center, width = image[~mask].mean(), max(float(image[~mask].std()), 1e-6)
    scaled = ((image - center) / width).astype(np.float32)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(budget.seed)
        net = UNet(budget.channels)
    rng = np.random.default_rng(budget.seed)
    optimiser = torch.optim.Adam(net.parameters(), lr=budget.learning_rate)
    for _ in range(budget.steps):
        source, target, hidden = (torch.from_numpy(part) for part in _batch(rng, scaled, ~mask))
        loss = ((net(source) - target) ** 2 * hidden).sum() / hidden.sum().clamp(min=1)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    with torch.inference_mode():
        whole = torch.from_numpy(scaled)[None, None]
        predicted = sum((torch.flip(net(torch.flip(whole, flip)), flip) for flip in FLIPS), torch.zeros_like(whole))
    return np.asarray(predicted[0, 0].double().numpy() / len(FLIPS) * width + center)


def _batch(
    rng: np.random.Generator, image: NDArray[np.float32], good: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Return patches with hidden pixels, the same without, and where they were hidden; (patch, 1, y, x)."""
    height, width = (min(PATCH, size) for size in image.shape)
    target = np.empty((BATCH, 1, height, width), np.float32)
    valid = np.empty(target.shape, bool)
    for index in range(BATCH):
        y, x = (int(rng.integers(size - side + 1)) for size, side in zip(image.shape, (height, width), strict=True))
        turn = tuple(slice(None, None, int(rng.choice((-1, 1)))) for _ in range(2))
        target[index, 0] = image[y : y + height, x : x + width][turn]
        valid[index, 0] = good[y : y + height, x : x + width][turn]
    hidden = (rng.random(target.shape) < HIDDEN) & valid
    patch, _, row, column = np.nonzero(hidden)
    side = 2 * REACH + 1
    step = rng.integers(1, side**2, size=row.size)
    step = (step + side**2 // 2) % side**2  # never the pixel itself, which is in the middle
    rows, columns = _inside(row, step // side - REACH, height), _inside(column, step % side - REACH, width)
    source = target.copy()
    source[hidden] = target[patch, 0, rows, columns]
    return source, target, hidden.astype(np.float32)


def _inside(start: NDArray[np.int64], step: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Return where a step leads; a step that would leave the patch is reversed."""
    there = start + step
    return np.where((there < 0) | (there >= size), start - step, there)
