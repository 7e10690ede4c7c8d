"""Scalars of the requested rings, from one image of an event and its denoised row."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.analysis.estimate import Image, Observed
from bluesky_symdenoise.derived.row import Row
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.dark import Background
from bluesky_symdenoise.physics.frame import as_exposure, as_mask, sentinel_mask
from bluesky_symdenoise.physics.integrating.readout import Readout
from bluesky_symdenoise.physics.symmetry import Symmetry, center_without

if TYPE_CHECKING:
    from bluesky_symdenoise.acquisition.request.request import Request

log = logging.getLogger("bluesky_symdenoise")


def ring_scalars(
    work: Request,
    image: NDArray[Any],
    row: Row,
    *,
    mask: NDArray[np.bool_] | None,
    symmetry: Symmetry,
    beam_center: tuple[float, float] | None,
    background: Background | None,
    readout: Readout | None,
    complained: set[str],
) -> dict[str, float]:
    """Return the column values of all rings; several frames of one event are summed.

    A ring that cannot be analysed gives NaN and does not affect the denoised frame; the first failure is logged.

    Parameters
    ----------
    complained
        What was logged so far, by ring name; updated in place.
    """
    frames = image.reshape(-1, *image.shape[-2:])
    shape = (frames.shape[1], frames.shape[2])
    if readout is not None:
        frames, background = readout.equivalent(frames, mask, as_exposure(work.exposure, shape))
    bad = as_mask(mask, shape) | sentinel_mask(frames).any(axis=0)
    exposure = np.where(bad, 0.0, as_exposure(work.exposure, shape))
    measured = exposure > 0
    if background is not None and len(frames) > 1:
        background = Background(background.expected * len(frames), background.sigma * np.sqrt(len(frames)))

    def denoise(counts: Image) -> Image:
        result = work.denoiser(
            counts,
            mask=bad,
            exposure=work.exposure,
            symmetry=symmetry,
            beam_center=center_without(symmetry, work.recipe.beam_center),
            background=background,
        )
        return result["intensity"].values.astype(np.float64)

    observed = Observed(
        counts=np.where(measured, frames.sum(axis=0, dtype=np.float64), 0),
        # As in the denoiser, the median exposure of the measured pixels is 1.
        exposure=exposure / np.median(exposure[measured]) if measured.any() else exposure,
        background=np.zeros(shape) if background is None else np.nan_to_num(background.expected.astype(np.float64)),
    )
    single = row.intensity.reshape(-1, *shape)
    needs_sum = len(frames) > 1 and any(ring.estimator == "denoised" for ring in work.analysis)
    intensity = denoise(observed.counts) if needs_sum else single[0].astype(np.float64)
    found: dict[str, float] = {}
    for ring in work.analysis:
        try:
            found |= ring.scalars(observed, intensity, beam_center=beam_center or symmetry.beam_center, denoise=denoise)
        except SymDenoiseError as error:
            if (complaint := f"{ring.name} {error.rule}") not in complained:
                complained.add(complaint)
                log.warning("%s", error)
            found |= dict.fromkeys(ring.columns, float("nan"))
    return found
