"""Simulated frames in which a point group holds about a stated centre, or in all but a part of the frame."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.physics.symmetry import POINT_GROUPS, checked_point_group
from bluesky_symdenoise.physics.tilt import split_tilt

#: Pixels of the frame for each spot, and width of spots in pixels.
PIXELS, WIDTH = 4096, 1.5


def center_of(shape: tuple[int, int]) -> tuple[float, float]:
    """Return the middle of a frame (y, x), about which its pattern is symmetric."""
    return (shape[0] - 1) / 2, (shape[1] - 1) / 2


def symmetric_rate(shape: tuple[int, int], symbol: str) -> NDArray[np.float64]:
    """Return a rate (y, x) of rings, arcs and spots that a group leaves unchanged, about one count per pixel.

    The pattern is the mean over the group of one that has no symmetry, as a function of the place on the plane at a
    right angle to the beam; a tilted detector sees it by its solid angles. ``inf`` has rings only.

    Parameters
    ----------
    symbol
        A key of `bluesky_symdenoise.physics.symmetry.POINT_GROUPS`, with or without a tilt.
    """
    group, tilt = split_tilt(checked_point_group(symbol))
    center = center_of(shape)
    dy, dx = np.arange(shape[0])[:, None] - center[0], np.arange(shape[1])[None, :] - center[1]
    if tilt is not None:
        dy, dx = tilt.flattened(dy, dx)
    radius = np.hypot(dy, dx)
    rate = 0.4 + 0.5 * (1 + np.cos(radius / 8))
    if group != "inf":
        operations = POINT_GROUPS[group]
        places = [(dy, dx), *(each.moved(dy, dx) for each in operations)]
        arcs = sum(np.cos(np.arctan2(y, x) - 0.5) for y, x in places) / len(places)
        # Broken into arcs, and brighter towards one side where the group has no turn.
        turned = sum(np.cos(3 * np.arctan2(y, x) + 0.3) for y, x in places) / len(places)
        rate = rate * (1 + 0.3 * arcs + 0.3 * turned)
        rng = np.random.default_rng(1)
        for _ in range(rate.size // PIXELS // len(places)):
            y, x = rng.uniform(-0.5, 0.5, 2) * min(shape)
            height = rng.uniform(3, 30)
            for at in {(y, x), *((float(a), float(b)) for a, b in (each.moved(y, x) for each in operations))}:
                _add_spot(rate, dy, dx, at, height)
    if tilt is not None:
        rate = np.nan_to_num(rate) * tilt.solid_angle(shape, center)
    return np.asarray(rate)


def _add_spot(
    rate: NDArray[np.float64],
    dy: NDArray[Any],
    dx: NDArray[Any],
    at: tuple[float, float],
    height: float,
) -> None:
    """Add a spot at a place on the plane, to the pixels around it."""
    dy, dx = np.broadcast_to(dy, rate.shape), np.broadcast_to(dx, rate.shape)
    rows = np.flatnonzero(np.nanmin(np.abs(dy - at[0]), axis=1) < 6 * WIDTH)
    columns = np.flatnonzero(np.nanmin(np.abs(dx - at[1]), axis=0) < 6 * WIDTH)
    if rows.size and columns.size:
        near = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        square = (dy[near] - at[0]) ** 2 + (dx[near] - at[1]) ** 2
        rate[near] += height * np.exp(-square / 2 / WIDTH**2)


def broken(rate: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rate with a part that has no mate of its own kind: half as bright, as in the shadow of a holder."""
    height, width = rate.shape
    shadowed = rate.copy()
    shadowed[height // 8 : height // 2, width // 8 : width // 3] *= 0.5
    return shadowed


def counts_of(rate: NDArray[np.float64], frames: int | None = None) -> NDArray[np.uint16]:
    """Return counts of a rate, (y, x), or of several frames of it, (n, y, x)."""
    shape = rate.shape if frames is None else (frames, *rate.shape)
    return np.random.default_rng(0).poisson(rate, shape).astype(np.uint16)
