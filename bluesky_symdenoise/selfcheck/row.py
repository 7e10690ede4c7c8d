"""Check of one frame: it is thinned and denoised, drawn anew and denoised, and compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.physics.frame import as_mask, sentinel_mask
from bluesky_symdenoise.physics.neighbours.lent import Lent
from bluesky_symdenoise.physics.symmetry import Symmetry, center_without
from bluesky_symdenoise.selfcheck.blocks import Table
from bluesky_symdenoise.selfcheck.chance import Chance, drawn, thinned
from bluesky_symdenoise.selfcheck.heldout import Halves, heldout_tables
from bluesky_symdenoise.selfcheck.sham import sham_tables

if TYPE_CHECKING:
    from bluesky_symdenoise.denoiser.infer import Denoiser


@dataclass(frozen=True)
class Way:
    """How the frames of a row are denoised, apart from a dark, which is taken from the denoised counts afterwards.

    Attributes
    ----------
    denoiser
        Function with the arguments of `bluesky_symdenoise.Denoiser`.
    mask, exposure
        (y, x) of the run; mask True = bad.
    symmetry
        The symmetry that was decided for the row.
    beam_center
        Beam centre (y, x) that was given, if any.
    """

    denoiser: Denoiser
    symmetry: Symmetry
    mask: NDArray[np.bool_] | None = None
    exposure: NDArray[np.float64] | None = None
    beam_center: tuple[float, float] | None = None

    def denoised(
        self, counts: NDArray[Any], bad: NDArray[np.bool_], lent: Sequence[Lent] = ()
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """Return expected counts and sigma of a frame (y, x), and where it has a defect."""
        made = self.denoiser(
            counts,
            mask=bad,
            exposure=self.exposure,
            symmetry=self.symmetry,
            beam_center=center_without(self.symmetry, self.beam_center),
            lent=lent,
        )
        intensity, sigma = (made[name].values.astype(np.float64) for name in ("intensity", "sigma"))
        return intensity, sigma, made["defect"].values > 0


def checked_row(
    image: NDArray[Any], way: Way, chance: Chance, row: int, lent: Sequence[Lent] | None = None
) -> dict[str, Table] | None:
    """Return the tables of sums of the first frame of a row; None if too few of its pixels were measured.

    Parameters
    ----------
    image
        Raw counts (..., y, x), of which the first frame is checked; in a run that borrows, the others lend to it.
    lent
        Raw frames of other rows that may lend; None if nothing is borrowed.

    Raises
    ------
    SymDenoiseError
        If the frame cannot be denoised, or its values are no whole numbers.
    """
    frames = image.reshape(-1, *image.shape[-2:])
    shape = (image.shape[-2], image.shape[-1])
    given = as_mask(way.mask, shape) | sentinel_mask(frames[0])
    if lent is not None:
        point = (0.0,) * (len(lent[0].offset) if lent else 1)
        lent = [*(Lent(each, point, row) for each in frames[1:]), *lent]
    lent = lent or ()
    full, _, defect = way.denoised(frames[0], given, lent)
    bad = given | defect
    exposure = way.symmetry.exposure(way.exposure, shape)
    valid = ~bad & (exposure > 0) & np.isfinite(full)
    if np.count_nonzero(valid) < 64:
        return None
    halves_lent = _thinned_lent(lent, chance, row)
    kept = thinned(frames[0], chance.generator("thinning 0", row))
    expected, sigma, _ = way.denoised(kept, bad, halves_lent)
    alone = way.denoised(kept, bad)[0] if lent else None
    center = way.symmetry.beam_center or way.beam_center
    seen = valid & np.isfinite(expected) & (sigma > 0)
    known = [expected, sigma, *(() if alone is None else (alone,))]
    known = [np.where(seen, each, 0.0) for each in known]
    halves = Halves(
        kept=np.where(seen, kept, 0).astype(np.float64),
        held=np.where(seen, frames[0].astype(np.float64) - kept, 0.0),
        expected=known[0],
        sigma=known[1],
        valid=seen,
        exposure=np.where(seen, exposure, 0.0),
        alone=None if alone is None else known[2],
        center=center,
    )
    truth = np.where(valid, np.maximum(full, 0.0), 0.0)
    anew = drawn(truth, ~valid, chance.generator("sham", row))
    again, stated, _ = way.denoised(anew, ~valid)
    valid &= np.isfinite(again)
    sham = (np.nan_to_num(again), np.nan_to_num(stated))
    counts = np.where(valid, anew, 0).astype(np.float64)
    return heldout_tables(halves) | sham_tables(truth, counts, sham, valid, center)


def _thinned_lent(lent: Sequence[Lent], chance: Chance, own: int) -> list[Lent]:
    """Return lent frames thinned, those of one row with the random numbers that the row itself would be given."""
    turns = {own: 0}
    made = []
    for number, each in enumerate(lent):
        row = -1 - number if each.row is None else each.row
        turn = turns[row] = turns.get(row, -1) + 1
        made.append(replace(each, counts=thinned(each.counts, chance.generator(f"thinning {turn}", row))))
    return made
