"""The symmetric masked autoencoder, a method to compare with: our own reimplementation from its description.

J. Appl. Cryst. 2024, 10.1107/S1600576724002899: the frame is cut in two at the pattern's centre, one half is turned by
180 degrees onto the other, and a U-Net learns to predict either half from the other by least squares, with Adam at
1e-3 and flips. Counts are divided by the frame's largest one. No clean image is needed: it is trained on the frame
that it denoises. Smaller here: see `Budget`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

FLIPS = ((), (2,), (3,), (2, 3))


@dataclass(frozen=True)
class Budget:
    """Training budget of a method that learns; the same seed and thread count give the same estimate.

    Attributes
    ----------
    steps
        Steps of Adam, each on one image and its counterpart. Published: 505 epochs.
    channels
        Channels of the U-Net's levels. The default has 0.48 million parameters; (32, 64, 128, 256) has 1.9, the
        published network 2.28.
    learning_rate
        Learning rate of Adam.
    seed
        Seed of the weights and the flips.
    """

    steps: int = 600
    channels: tuple[int, ...] = (16, 32, 64, 128)
    learning_rate: float = 1e-3
    seed: int = 0


BUDGET = Budget()


class UNet(nn.Module):
    """A plain U-Net from one image to another, (batch, 1, y, x) of any size."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.down = nn.ModuleList(_block(a, b) for a, b in zip((1, *channels), channels, strict=False))
        upward = list(zip(reversed(channels[1:]), reversed(channels[:-1]), strict=True))
        self.rise = nn.ModuleList(nn.ConvTranspose2d(deep, shallow, 2, stride=2) for deep, shallow in upward)
        self.up = nn.ModuleList(_block(2 * shallow, shallow) for _, shallow in upward)
        self.head = nn.Conv2d(channels[0], 1, 1)
        # Weights near zero make the initial prediction as little wrong as possible, which favours these peers.
        with torch.no_grad():
            self.head.weight.mul_(0.01)
            self.head.get_parameter("bias").zero_()

    def forward(self, image: Tensor) -> Tensor:
        """Return the other image."""
        height, width = image.shape[2:]
        multiple = 2 ** len(self.up)
        x = F.pad(image, (0, -width % multiple, 0, -height % multiple))
        skips = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else F.max_pool2d(x, 2))
            skips.append(x)
        skips.pop()
        for rise, block in zip(self.rise, self.up, strict=True):
            x = block(torch.cat([rise(x), skips.pop()], dim=1))
        out: Tensor = self.head(x)
        return out[:, :, :height, :width]


def _block(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(outside, outside, 3, padding=1),
        nn.ReLU(inplace=True),
    )


@dataclass(frozen=True)
class Halves:
    """A frame cut in two at its centre, the second half turned onto the first; (y, x) each.

    Attributes
    ----------
    first, second
        Counts, 0 where masked.
    first_good, second_good
        True where a count was measured.
    """

    first: NDArray[np.float64]
    second: NDArray[np.float64]
    first_good: NDArray[np.bool_]
    second_good: NDArray[np.bool_]


def both_counted(halves: Halves) -> NDArray[np.bool_]:
    """Return the mask as published: pixels with photons in both halves, so that zeros are ignored."""
    return (halves.first * halves.second) > 0


def both_measured(halves: Halves) -> NDArray[np.bool_]:
    """Return the corrected mask: pixels that were measured in both halves, zeros included."""
    return halves.first_good & halves.second_good


def smae(
    counts: NDArray[Any],
    mask: NDArray[np.bool_],
    beam_center: tuple[float, float],
    *,
    common_mask: Callable[[Halves], NDArray[np.bool_]],
    budget: Budget = BUDGET,
) -> NDArray[np.float64]:
    """Return the expected counts of a frame, each half predicted from the other by a network trained on the two.

    Parameters
    ----------
    counts
        (y, x). Values of masked pixels are never read.
    mask
        (y, x), True = bad.
    beam_center
        (y, x) in pixels; twice the centre is rounded to an integer.
    common_mask
        `both_counted` as published, or `both_measured`, corrected: what both halves lose, as input and as target.

    Returns
    -------
    ndarray
        (y, x) counts, averaged over four flips of the input; the frame itself where its mate is off the detector.
    """
    window = _window(mask.shape, beam_center)
    seen = np.where(mask, 0.0, counts)
    halves = _halves(seen[window], ~mask[window])
    common = common_mask(halves)
    largest = float(max(halves.first.max(), halves.second.max(), 1.0))
    kept = [np.where(common, half, 0.0) / largest for half in (halves.first, halves.second)]
    first, second, weight = (torch.from_numpy(image.astype(np.float32))[None, None] for image in (*kept, common))
    net = _trained(first, second, weight, budget)
    with torch.inference_mode():
        of_first, of_second = (_flip_averaged(net, other) for other in (second, first))
    height = seen[window].shape[0]
    part = np.empty(seen[window].shape)
    part[height - len(of_second) :] = of_second[::-1, ::-1]
    part[: len(of_first)] = of_first
    estimate = seen.astype(np.float64)
    estimate[window] = part * largest
    return estimate


def _trained(first: Tensor, second: Tensor, weight: Tensor, budget: Budget) -> UNet:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(budget.seed)
        net = UNet(budget.channels)
    rng = np.random.default_rng(budget.seed)
    optimiser = torch.optim.Adam(net.parameters(), lr=budget.learning_rate)
    measured = weight.sum().clamp(min=1)
    for _ in range(budget.steps):
        flip = FLIPS[rng.integers(len(FLIPS))]
        source, target = (first, second) if rng.integers(2) else (second, first)
        predicted = net(torch.flip(source, flip))
        loss = ((predicted - torch.flip(target, flip)) ** 2 * torch.flip(weight, flip)).sum() / measured
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    return net


def _flip_averaged(net: UNet, image: Tensor) -> NDArray[np.float64]:
    total = sum((torch.flip(net(torch.flip(image, flip)), flip) for flip in FLIPS), torch.zeros_like(image))
    return np.asarray(total[0, 0].double().numpy() / len(FLIPS))


def _window(shape: tuple[int, ...], beam_center: tuple[float, float]) -> tuple[slice, slice]:
    """Return the largest part of the detector that is symmetric about the centre."""
    parts = []
    for size, center in zip(shape, beam_center, strict=True):
        total = round(2 * center)
        parts.append(slice(max(0, total - size + 1), min(size - 1, total) + 1))
    return parts[0], parts[1]


def _halves(seen: NDArray[np.float64], good: NDArray[np.bool_]) -> Halves:
    """Return rows up to the centre and the others, turned; a central row is in both, self-mated pixels are in none.

    A network that predicts a pixel from itself would learn to copy.
    """
    turned, turned_good = seen[::-1, ::-1], good[::-1, ::-1]
    height, width = seen.shape
    rows = (height + 1) // 2
    itself = np.zeros((rows, width), bool)
    if height % 2 and width % 2:
        itself[-1, width // 2] = True
    first, second = (np.where(itself, 0.0, image[:rows]) for image in (seen, turned))
    return Halves(first, second, good[:rows] & ~itself, turned_good[:rows] & ~itself)
