"""A small scan that was taken some time ago, and what a derived run holds."""

from __future__ import annotations

from typing import Any

import numpy as np

FRAMES = 4


def scan(n: int = FRAMES) -> np.ndarray:
    """Frames (n, y, x) of Poisson counts that 2mm maps onto themselves; the shutter is closed in the first."""
    y, x = np.ogrid[:48, :56]
    rate = 0.3 + 6 * np.exp(-((np.hypot(y - 23.5, x - 27.5) - 14) ** 2) / 6)
    counts = np.random.default_rng(5).poisson(rate, (n, 48, 56)).astype(np.uint16)
    counts[0] = 0
    counts.flags.writeable = False
    return counts


def pixels(run: Any) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.asarray(run["primary"][name].read()) for name in ("det", "det_sigma"))  # type: ignore[return-value]
