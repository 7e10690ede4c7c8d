"""Part of a few frames that stands for all of them: symmetry of the whole frames, pixels of a window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.fold import block_sum
from bluesky_symdenoise.physics.frame import sentinel_mask
from bluesky_symdenoise.physics.symmetry import Symmetry

if TYPE_CHECKING:
    from bluesky_symdenoise.denoiser.infer import Denoiser

#: Side of the window in pixels, and side of frames above which their symmetry is looked for in sums of blocks.
SIDE, WHOLE = 256, 512

Mask = NDArray[np.bool_]


def found_symmetry(
    denoiser: Denoiser,
    frames: NDArray[Any],
    bad: Mask,
    *,
    symmetry: str | Symmetry,
    center: tuple[float, float] | None,
) -> Symmetry:
    """Return the symmetry of frames (n, y, x) together; of large ones from sums of blocks, with an exact centre.

    Parameters
    ----------
    bad
        (y, x), True = bad.
    symmetry, center
        See `bluesky_symdenoise.Denoiser`.
    """
    side = -(-max(bad.shape) // WHOLE)
    if side == 1 or not isinstance(symmetry, str) or "~" in symmetry or (center is not None and symmetry != "auto"):
        return denoiser.resolve(frames, mask=bad, symmetry=symmetry, beam_center=center)
    total = np.where(bad, 0.0, frames.sum(axis=0, dtype=np.float64))
    lost = block_sum(bad.astype(np.float64), side) > 0
    wide = None if center is None else ((center[0] + 0.5) / side - 0.5, (center[1] + 0.5) / side - 0.5)
    found = denoiser.resolve(block_sum(total, side), mask=lost, symmetry=symmetry, beam_center=wide)
    if found.beam_center is None:
        return found
    if center is not None:
        return replace(found, beam_center=center)
    rough = ((found.beam_center[0] + 0.5) * side - 0.5, (found.beam_center[1] + 0.5) * side - 0.5)
    at = window_of(frames, bad, replace(found, beam_center=rough))
    try:
        exact = denoiser.resolve(frames[:, *at], mask=bad[at], symmetry=found.point_group).beam_center
    except SymDenoiseError:
        # The window alone does not show its centre.
        exact = None
    near = None if exact is None else (exact[0] + at[0].start, exact[1] + at[1].start)
    close = near is not None and max(abs(near[0] - rough[0]), abs(near[1] - rough[1])) <= side
    return replace(found, beam_center=near if close else rough)


def window_of(frames: NDArray[Any], bad: Mask, symmetry: Symmetry) -> tuple[slice, slice]:
    """Return the window about the centre of the symmetry; without one, that whose counts are nearest to the mean."""
    sizes = [min(SIDE, size) for size in bad.shape]
    if symmetry.beam_center is not None:
        starts = [
            int(np.clip(round(middle - size / 2), 0, whole - size))
            for middle, size, whole in zip(symmetry.beam_center, sizes, bad.shape, strict=True)
        ]
        return slice(starts[0], starts[0] + sizes[0]), slice(starts[1], starts[1] + sizes[1])
    total, good = np.where(bad, 0.0, frames.sum(axis=0, dtype=np.float64)), ~bad
    mean = total.sum() / max(int(good.sum()), 1)
    best, choice = np.inf, (slice(0, sizes[0]), slice(0, sizes[1]))
    for y in _starts(bad.shape[0], sizes[0]):
        for x in _starts(bad.shape[1], sizes[1]):
            at = slice(y, y + sizes[0]), slice(x, x + sizes[1])
            number = int(good[at].sum())
            away = abs(np.log((total[at].sum() + 1) / number / (mean + 1e-9))) if 2 * number > good[at].size else np.inf
            if away < best:
                best, choice = away, at
    return choice


def within(symmetry: Symmetry, at: tuple[slice, slice]) -> Symmetry:
    """Return a symmetry of whole frames as one of a window of them."""
    if symmetry.beam_center is None:
        return symmetry
    y, x = symmetry.beam_center
    fold = None if symmetry.fold is None else symmetry.fold[at]
    return replace(symmetry, beam_center=(y - at[0].start, x - at[1].start), fold=fold)


def bad_in(frames: Sequence[NDArray[Any]], mask: Mask) -> Mask:
    """Return the pixels that are masked, or hold a code in any frame."""
    return np.asarray(mask | np.any([sentinel_mask(frame) for frame in frames], axis=0))


def _starts(whole: int, size: int) -> list[int]:
    return sorted({0, (whole - size) // 2, whole - size})
