"""Choices of how frames are denoised, as each algorithm takes them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Choices:
    """Choices of how frames are denoised.

    Attributes
    ----------
    views
        1 or 8, see `bluesky_symdenoise.Denoiser`.
    agree
        Whether sums over boxes and rings are to agree with the counts; see `bluesky_symdenoise.denoiser.sums.agreeing`.
    ring
        (y, x) number of each pixel's ring for that; None where there is no centre.
    part_pixels
        Frames of more pixels are processed in parts.
    """

    views: int
    agree: bool
    ring: NDArray[np.int64] | None
    part_pixels: int
