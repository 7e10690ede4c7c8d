"""Self-check of a derived run on request, from the raw run and the provenance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bluesky_symdenoise.acquisition.derive.checks import INTEGRATING, NO_COUNTS
from bluesky_symdenoise.acquisition.past.recompute import Again, lent_to, recorded_denoiser
from bluesky_symdenoise.acquisition.runs.stored import TiledRun
from bluesky_symdenoise.catalog.find.query import raw_for
from bluesky_symdenoise.derived.columns import denoised_images
from bluesky_symdenoise.physics.symmetry import Symmetry
from bluesky_symdenoise.selfcheck.chance import Chance
from bluesky_symdenoise.selfcheck.row import Way, checked_row
from bluesky_symdenoise.selfcheck.summary import not_testable, summarised
from bluesky_symdenoise.selfcheck.values import ImageCheck, SelfCheck

if TYPE_CHECKING:
    from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRun

    from bluesky_symdenoise.denoiser.infer import Denoiser


def self_check(run: BlueskyRun, *, denoiser: Denoiser | None = None) -> SelfCheck:
    """Return what the denoiser was worth on a derived run, computed anew from its raw run.

    The figures are those of the run's stop document, on the same machine. Runs of before there was a self-check, and
    runs whose pixels are computed when they are read, have none there.

    Parameters
    ----------
    run
        A derived run.
    denoiser
        By default the model that the provenance names, with its thread count.

    Raises
    ------
    SymDenoiseError
        If this computer has not the recipe's weights, or the raw run or the mask is gone.
    """
    denoiser = denoiser or recorded_denoiser(run)
    images = [_image_check(run, stream, key, denoiser) for stream in run for key in denoised_images(list(run[stream]))]
    return SelfCheck(tuple(images))


def _image_check(run: BlueskyRun, stream: str, key: str, denoiser: Denoiser) -> ImageCheck:
    again = Again(run, stream, key, denoiser)
    recipe = again.recipe
    chance = Chance(run.start["raw_uid"], recipe.sha256, stream, key)
    raw = raw_for(run)
    image = raw[stream][key]
    stored = TiledRun(raw)
    stored.refuse_other_rows(stream, key, image)
    counts = _counts(run, stream, key)
    could: dict[int, int] = {}
    for index, group in enumerate(again.groups):
        if group and (np.isnan(counts[index]) or counts[index] > 0):
            could[recipe.rows[index]] = index
    if not could:
        return not_testable(chance, NO_COUNTS)
    if again.readout is not None:
        return not_testable(chance, INTEGRATING, of_rows=len(could))
    rows, tables, shape = chance.rows(could), [], (0, 0)
    for row in rows:
        index = could[row]
        symmetry = Symmetry(again.groups[index], again.centers[index], again.fold)
        mask, _, readout = again.of_row(index, symmetry)
        if readout is not None:
            return not_testable(chance, INTEGRATING, of_rows=len(could))
        counted: Any = np.asarray(image[row : row + 1])[0]
        shape = (counted.shape[-2], counted.shape[-1])
        way = Way(denoiser, symmetry, mask, again.exposure, recipe.beam_center)
        lent = None if recipe.borrow is None else lent_to(run, stored, stream, key, index, recipe)
        found = checked_row(counted, way, chance, row, lent)
        tables += [] if found is None else [found]
    if not tables:
        return not_testable(chance, "too few pixels were measured", rows=rows, of_rows=len(could))
    return summarised(tables, chance, shape=shape, rows=rows, of_rows=len(could))


def _counts(run: BlueskyRun, stream: str, key: str) -> Any:
    """Return the counts of each row; NaN for all rows of a run that is computed when it is read."""
    return np.asarray(run[stream][f"{key}_counts_in"].read(), float)
