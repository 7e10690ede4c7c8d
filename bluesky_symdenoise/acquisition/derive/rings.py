"""Scalars of the requested rings, from one image of an event and its denoised row."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.analysis.estimate import Image, Observed
from bluesky_symdenoise.analysis.lent import Neighbour
from bluesky_symdenoise.derived.row import Row
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.dark import Background
from bluesky_symdenoise.physics.frame import as_exposure, as_mask, sentinel_mask
from bluesky_symdenoise.physics.integrating.readout import Readout
from bluesky_symdenoise.physics.neighbours.afterglow import independent_share
from bluesky_symdenoise.physics.neighbours.lent import Lent
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
    lent: Sequence[Lent] = (),
) -> dict[str, float]:
    """Return the column values of all rings; several frames of one event are summed.

    A ring that cannot be analysed gives NaN and does not affect the denoised frame; the first failure is logged.

    Parameters
    ----------
    complained
        What was logged so far, by ring name; updated in place.
    lent
        Frames of other rows that may lend photons to this one.
    """
    frames = image.reshape(-1, *image.shape[-2:])
    shape = (frames.shape[1], frames.shape[2])
    if readout is not None:
        frames, background = readout.equivalent(frames, mask, as_exposure(work.exposure, shape))
    bad = as_mask(mask, shape) | sentinel_mask(frames).any(axis=0)
    exposure = np.where(bad, 0.0, as_exposure(work.exposure, shape))
    measured = exposure > 0
    of_one = background
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
    # A denoised frame is compared with replicates of itself, which borrow nothing.
    needs_sum = (len(frames) > 1 or bool(lent)) and any(ring.estimator == "denoised" for ring in work.analysis)
    neighbours = _neighbours(lent, observed, mask=mask, exposure=work.exposure, background=of_one, readout=readout)
    intensity = denoise(observed.counts) if needs_sum else single[0].astype(np.float64)
    found: dict[str, float] = {}
    for ring in work.analysis:
        try:
            found |= ring.scalars(
                observed,
                intensity,
                beam_center=beam_center or symmetry.beam_center,
                denoise=denoise,
                lent=neighbours,
            )
        except SymDenoiseError as error:
            if (complaint := f"{ring.name} {error.rule}") not in complained:
                complained.add(complaint)
                log.warning("%s", error)
            found |= dict.fromkeys(ring.columns, float("nan"))
    return found


def _neighbours(
    lent: Sequence[Lent],
    observed: Observed,
    *,
    mask: NDArray[np.bool_] | None,
    exposure: NDArray[np.float64] | None,
    background: Background | None,
    readout: Readout | None,
) -> list[Neighbour]:
    """Return other rows in the form of the likelihood; none of a detector whose successive frames share their noise.

    The exact sums take rows as independent, so that any afterglow is too much.
    """
    if independent_share(readout) < 1:
        return []
    shape = observed.counts.shape
    found = []
    for each in lent:
        frame = each.counts
        dark = None if background is None else background.expected
        if readout is not None:
            frame, lifted = readout.equivalent(frame, mask, as_exposure(exposure, (shape[0], shape[1])))
            dark = lifted.expected
        seen = ~sentinel_mask(frame) & (observed.exposure > 0)
        theirs = Observed(
            counts=np.where(seen, frame, 0).astype(np.float64),
            exposure=np.where(seen, observed.exposure, 0.0),
            background=np.zeros(shape) if dark is None else np.nan_to_num(dark.astype(np.float64)),
        )
        found.append(Neighbour(theirs, each.offset))
    return found
