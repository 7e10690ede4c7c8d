"""A time series with known truth: a textured sample whose orientation grows, at one photon per pixel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.training.simulate import Image, View

#: Value of the simulated detector's gaps, as in 16-bit frames of Eiger and Pilatus.
GAP = 2**16 - 1


@dataclass(frozen=True)
class Series:
    """Frames as a detector gives them, and the expected counts that they were drawn from; (frame, y, x)."""

    counts: NDArray[np.uint16]
    truth: NDArray[np.float32]
    mask: NDArray[np.bool_]
    beam_center: tuple[float, float]


def textured_rate(view: View, *, orientation: float) -> Image:
    """Return rings with a texture of strength 0 <= orientation <= 1 on a SAXS-like halo, times polarisation; 2mm."""
    rate = 0.25 + 6.0 / (1 + (view.radius / 28) ** 2) ** 1.3
    halo = np.hypot(view.x, view.y * (1 + orientation))
    rate += 1.5 * np.exp(-((halo / 90) ** 2))
    for radius, width, height, fold in (
        (74, 3.0, 2.2, 2),
        (118, 4.0, 1.6, 4),
        (167, 2.5, 2.6, 2),
        (206, 7.0, 0.8, 2),
    ):
        profile = np.exp(-(((view.radius - radius) / width) ** 2) / 2)
        texture = np.exp(2.5 * orientation * (np.cos(fold * view.azimuth) - 0.3))
        rate += height * profile * texture
    # 95 % horizontally polarised, detector at 500 pixels.
    sine2 = view.radius**2 / (view.radius**2 + 500.0**2)
    return rate * (1 - sine2 * (0.05 + 0.9 * np.cos(view.azimuth - np.pi / 2) ** 2))


def textured_series(
    rng: np.random.Generator,
    *,
    frames: int,
    shape: tuple[int, int] = (512, 512),
    photons_per_pixel: float = 1.0,
) -> Series:
    """Return Poisson frames of a sample that becomes oriented, behind a beam stop, on a detector with gaps.

    Parameters
    ----------
    photons_per_pixel
        Mean over the pixels outside the gaps of the first frame.
    """
    center = (shape[0] / 2 - 7.5, shape[1] / 2 + 12.0)
    view = View.about(center, shape)
    mask = np.zeros(shape, bool)
    mask[int(0.66 * shape[0]) :][:13] = True
    mask[:, int(0.31 * shape[1]) :][:, :5] = True
    stop = 1 / (1 + np.exp(np.clip((16 - view.radius) / 0.7, -30, 30)))
    holder = 1 / (1 + np.exp(np.clip((4 - np.abs(view.x + 0.35 * view.y)) / 0.7, -30, 30)))
    through = 0.01 + 0.99 * stop * np.where(view.y > 0, holder, 1.0)
    truth = np.stack([textured_rate(view, orientation=step / max(1, frames - 1)) * through for step in range(frames)])
    truth *= photons_per_pixel / truth[0][~mask].mean()
    counts: NDArray[Any] = np.where(mask, GAP, rng.poisson(truth))
    return Series(counts.astype(np.uint16), truth.astype(np.float32), mask, center)
