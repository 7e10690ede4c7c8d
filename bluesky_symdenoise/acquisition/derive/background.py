"""The dark of an image: a background of counts, or the offset of an integrating detector, and how it is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.dark import Background, Dark
from bluesky_symdenoise.physics.integrating.readout import Readout
from bluesky_symdenoise.physics.symmetry import Symmetry

if TYPE_CHECKING:
    from bluesky_symdenoise.denoiser.infer import Denoiser


class Backgrounds:
    """Backgrounds and offsets of successive frames; computed once while what they are made of stays the same."""

    def __init__(self) -> None:
        self._last: tuple[Dark, Symmetry, float, Background] | None = None
        self._last_offset: tuple[Dark, Readout, float | None, Readout] | None = None

    def offset(self, readout: Readout, dark: Dark, *, seconds: float | None, shape: tuple[int, ...]) -> Readout:
        """Return a readout with the dark of frames of this shape (y, x) as its offset.

        Raises
        ------
        SymDenoiseError
            If the dark has another shape, or another exposure time than the frames.
        """
        last = self._last_offset
        if last is None or last[0] is not dark or last[2] != seconds or last[1] != readout:
            made = readout.with_dark(checked_dark(dark, shape), seconds=seconds)
            self._last_offset = last = dark, readout, seconds, made
        return last[3]

    def of(
        self,
        denoiser: Denoiser,
        dark: Dark,
        *,
        seconds: float | None,
        mask: NDArray[np.bool_] | None,
        symmetry: Symmetry,
    ) -> tuple[NDArray[np.bool_], Background]:
        """Return the mask of a frame, with the dark's own, and its denoised background.

        Parameters
        ----------
        seconds
            Exposure time of the frame in seconds; None if it is not known, and equal to that of each dark frame.
        mask
            (y, x), True = bad.

        Raises
        ------
        SymDenoiseError
            If the dark has another shape than the mask, or its exposure time does not fit.
        """
        if dark.averaged != 1:
            raise SymDenoiseError(
                f"dark of means of {dark.averaged} exposures",
                rule="the frames are not means, and no readout of theirs is known",
                remedy="state the readout of the detector, or take the dark as the frames",
            )
        both = dark.mask if mask is None else mask | checked_dark(dark, mask.shape).mask
        exposures = dark.exposures(seconds)
        if self._last is None or self._last[0] is not dark or self._last[1:3] != (symmetry, exposures):
            made = denoiser.background(dark, exposures=exposures, mask=both, symmetry=symmetry)
            self._last = dark, symmetry, exposures, made
        return both, self._last[3]


def checked_dark(dark: Dark, shape: tuple[int, ...]) -> Dark:
    """Return the dark, if it has the frame's shape (y, x).

    Raises
    ------
    SymDenoiseError
        If it has another shape.
    """
    if dark.mask.shape != shape:
        raise SymDenoiseError(
            f"dark of shape {dark.mask.shape}",
            rule=f"it must have the frame's shape {shape}",
            remedy="name the dark of this detector",
        )
    return dark
