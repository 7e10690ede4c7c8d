"""Frames that the demo's detector plays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.files import open_frames
from bluesky_symdenoise.training.series import textured_series

if TYPE_CHECKING:
    from bluesky_symdenoise.acquisition.play import Frames


@dataclass(frozen=True)
class Input:
    """Frames that the detector plays; the truth is known for simulations only."""

    title: str
    frames: Frames
    mask: NDArray[np.bool_] | None
    beam_center: tuple[float, float] | None
    truth: NDArray[np.float32] | None


def simulated(frames: int) -> Input:
    """Return a simulated series of frames."""
    series = textured_series(np.random.default_rng(1), frames=frames)
    return Input(
        title="Simulated series, 1 photon/pixel, texture growing",
        frames=series.counts,
        mask=None,
        beam_center=None,
        truth=series.truth,
    )


def opened(images: str, beam_center: Sequence[float] | None) -> Input:
    """Return the frames of files, with the centre that they or the caller give."""
    stack = open_frames(images)
    center = stack.beam_center if beam_center is None else (beam_center[0], beam_center[1])
    return Input(title=images, frames=stack, mask=stack.mask, beam_center=center, truth=None)
