"""Frames on a device, as the pair test and the network take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bluesky_symdenoise.denoiser.network import MULTIPLE
from bluesky_symdenoise.physics.frame import Frame

#: Whole numbers below this are exact in float32, and so is the sum of two.
EXACT = 2**23
#: Below so many counts per pixel, float32 changes no score of a pair test by more than some 1e-6 at any exposures.
FEW = 2**10


@dataclass(frozen=True)
class Held:
    """Frames of one detector on a device.

    Attributes
    ----------
    counts, exposure
        (batch, y, x), padded with zeros to multiples of 128: float32 where that changes no score of the pair test by
        more than about 1e-6, else float64.
    shape
        (y, x) of the frames before they were padded.
    whole
        Whether all exposures are 0 or 1, and all counts whole numbers, in float32.
    """

    counts: Tensor
    exposure: Tensor
    shape: tuple[int, int]
    whole: bool

    @property
    def device(self) -> torch.device:
        """Device of the arrays."""
        return self.counts.device

    def measured(self, first: int, last: int) -> Tensor:
        """Return 1 where a pixel was measured, else 0, (batch, rows, x) float32, of some rows."""
        exposure = self.exposure[:, first:last]
        return exposure if self.whole else exposure.sign().float()

    @property
    def size(self) -> tuple[int, int, int]:
        """(batch, y, x) of the padded arrays."""
        batch, height, width = self.counts.shape
        return batch, height, width


def held(frames: Sequence[Frame], device: torch.device) -> Held:
    """Return frames of one shape on a device: one upload of their counts, and one of their exposures."""
    whole = all(_whole(frame) for frame in frames)
    few = whole or max(frame.counts.max(initial=0) for frame in frames) < FEW
    dtype = np.float32 if few else np.float64
    shape = (frames[0].counts.shape[0], frames[0].counts.shape[1])
    counts, exposure = (
        torch.from_numpy(padded([getattr(frame, name) for frame in frames], dtype)).to(device)
        for name in ("counts", "exposure")
    )
    return Held(counts, exposure, shape, whole)


def padded(images: Sequence[NDArray[np.float64]], dtype: type[np.floating]) -> NDArray[np.floating]:
    """Return images as (batch, y, x), padded with zeros, the value of an unmeasured pixel."""
    height, width = images[0].shape
    out = np.zeros((len(images), height + -height % MULTIPLE, width + -width % MULTIPLE), dtype)
    for target, image in zip(out, images, strict=True):
        target[:height, :width] = image
    return out


def _whole(frame: Frame) -> bool:
    """Return whether the pair test of a frame is exact in float32."""
    counts, exposure = frame.counts, frame.exposure
    if counts.max(initial=0) >= EXACT or not np.array_equal(exposure, exposure > 0):
        return False
    return np.array_equal(counts, np.rint(counts))
