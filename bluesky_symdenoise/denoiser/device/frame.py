"""Frames on a device, as the pair test and the network take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bluesky_symdenoise.denoiser.device.crew import Crew
from bluesky_symdenoise.denoiser.network import MULTIPLE
from bluesky_symdenoise.physics.frame import Frame

#: Whole numbers below this are exact in float32, and so is the sum of two.
EXACT = 2**23
#: Below so many counts per pixel, float32 changes no score of a pair test near its threshold by more than 5e-5 at any
#: exposures: those of two modules may be rounded the same way in all pixels. At 1 count per pixel it is 1e-5.
FEW = 2**6


class Kind(NamedTuple):
    """How precisely a frame is held.

    Attributes
    ----------
    whole
        Whether all exposures are 0 or 1, and all counts whole numbers, in float32.
    few
        Whether float32 is enough for the pair test.
    """

    whole: bool
    few: bool

    @classmethod
    def of(cls, frame: Frame) -> Kind:
        """Return a frame's kind."""
        whole = _whole(frame)
        return cls(whole, whole or bool(frame.counts.max(initial=0) < FEW))


def alike(frames: Sequence[Frame]) -> dict[Kind, list[int]]:
    """Return the numbers of the frames of each kind: a frame's bits do not depend on what it is processed with."""
    kinds: dict[Kind, list[int]] = {}
    for index, frame in enumerate(frames):
        kinds.setdefault(Kind.of(frame), []).append(index)
    return kinds


@dataclass(frozen=True)
class Held:
    """Frames of one detector on a device.

    Attributes
    ----------
    counts, exposure
        (batch, y, x), padded with zeros to multiples of 128: float32 for frames of whole numbers without a flat field,
        where that changes no score of the pair test by more than some 1e-6 (on rings of more than 2^24 counts in all,
        by 1e-4 at 10^5 counts per pixel and by 1e-3 at 3 * 10^6), and for less than `FEW` counts; else float64.
    shape
        (y, x) of the frames before they were padded.
    whole
        Whether all exposures are 0 or 1, and all counts whole numbers, in float32.
    crew
        Their device, and the threads that work on them.
    """

    counts: Tensor
    exposure: Tensor
    shape: tuple[int, int]
    whole: bool
    crew: Crew

    def measured(self, first: int, last: int) -> Tensor:
        """Return 1 where a pixel was measured, else 0, (batch, rows, x) float32, of some rows."""
        exposure = self.exposure[:, first:last]
        return exposure if self.whole else exposure.sign().float()

    @property
    def size(self) -> tuple[int, int, int]:
        """(batch, y, x) of the padded arrays."""
        batch, height, width = self.counts.shape
        return batch, height, width


def held(frames: Sequence[Frame], crew: Crew, kind: Kind | None = None) -> Held:
    """Return frames of one shape and kind on a device: one upload of their counts, and one of their exposures."""
    whole, few = Kind.of(frames[0]) if kind is None else kind
    dtype = np.float32 if few else np.float64
    shape = (frames[0].counts.shape[0], frames[0].counts.shape[1])
    counts, exposure = (
        torch.from_numpy(padded([getattr(frame, name) for frame in frames], dtype)).to(crew.device)
        for name in ("counts", "exposure")
    )
    return Held(counts, exposure, shape, whole, crew)


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
