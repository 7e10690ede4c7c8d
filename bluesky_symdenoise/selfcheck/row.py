"""Check of one frame: it is thinned and denoised, drawn anew and denoised, and compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.physics.dark import Background
from bluesky_symdenoise.physics.frame import as_mask, sentinel_mask
from bluesky_symdenoise.physics.integrating.readout import Readout
from bluesky_symdenoise.physics.neighbours.lent import Lent
from bluesky_symdenoise.physics.symmetry import Symmetry, center_without
from bluesky_symdenoise.selfcheck.blocks import Table, block_index, summed
from bluesky_symdenoise.selfcheck.chance import SHARE, Chance, drawn, thinned
from bluesky_symdenoise.selfcheck.heldout import Halves, error_tables, heldout_tables, neighbour_table
from bluesky_symdenoise.selfcheck.peers import LEAST
from bluesky_symdenoise.selfcheck.sham import sham_tables

if TYPE_CHECKING:
    from bluesky_symdenoise.denoiser.infer import Denoiser


@dataclass(frozen=True)
class Way:
    """How the frames of a row are denoised.

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
    background
        Expected dark counts. They are added again to what is denoised: the photons of the dark are counted, too.
    readout
        Readout of an integrating detector; None for counts.
    """

    denoiser: Denoiser
    symmetry: Symmetry
    mask: NDArray[np.bool_] | None = None
    exposure: NDArray[np.float64] | None = None
    beam_center: tuple[float, float] | None = None
    background: Background | None = None
    readout: Readout | None = None

    def denoised(
        self, counts: NDArray[Any], bad: NDArray[np.bool_], lent: Sequence[Lent] = (), *, share: float = 1.0
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """Return expected counts and sigma of a frame (y, x), and where it has a defect.

        Parameters
        ----------
        share
            Exposure of these frames, of that of the run's.
        """
        dark = None if self.background is None else _share_of(self.background, share)
        made = self.denoiser(
            counts,
            mask=bad,
            exposure=self.exposure,
            symmetry=self.symmetry,
            beam_center=center_without(self.symmetry, self.beam_center),
            lent=lent,
            background=dark,
            readout=self.readout,
        )
        intensity, sigma = (made[name].values.astype(np.float64) for name in ("intensity", "sigma"))
        if dark is not None:
            intensity, sigma = intensity + dark.expected, np.sqrt(np.maximum(sigma**2 - dark.sigma**2, 0.0))
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
    others = lent or ()
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
    expected, sigma, _ = way.denoised(kept, bad, halves_lent, share=SHARE)
    alone = way.denoised(kept, bad, share=SHARE)[0] if lent else None
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
    tables = heldout_tables(halves) | sham_tables(truth, counts, sham, valid, center)
    if others:
        tables["neighbour"] = _neighbour(frames[0], bad, way, lent, others[0])
    return tables


def repeated_row(image: NDArray[Any], way: Way, lent: Sequence[Lent] | None = None) -> dict[str, Table] | None:
    """Return the tables of a row of an integrating detector: its second exposure judges the first, denoised.

    Signal cannot be thinned. Both exposures have the same scene, and each pixel of the second has the variance
    photons + noise^2, from which the squared error of the first is found as from held-out counts.

    Parameters
    ----------
    image
        Signal (exposures, ..., y, x), at least two.
    lent
        Raw frames of other rows that may lend; the second exposure lends nothing here.
    """
    assert way.readout is not None
    frames = image.reshape(-1, *image.shape[-2:])
    shape = (image.shape[-2], image.shape[-1])
    photons, bad = way.readout.measured(frames[1])
    _, unread = way.readout.measured(frames[0])
    bad = bad | unread | as_mask(way.mask, shape)
    expected, sigma, defect = way.denoised(frames[0], bad, lent or ())
    valid = ~bad & ~defect & np.isfinite(expected) & (sigma > 0) & (way.symmetry.exposure(way.exposure, shape) > 0)
    if np.count_nonzero(valid) < 64:
        return None
    noise = np.broadcast_to(np.square(way.readout.noise), shape)
    block, number = block_index(shape)
    z, m = photons[valid], expected[valid]
    first = way.readout.photons(frames[0])[valid]
    center = way.symmetry.beam_center or way.beam_center
    tables = error_tables(z - m, z + noise[valid], sigma[valid] ** 2, np.maximum(m, LEAST), valid, center)
    return {"pixels": summed(block[valid], number, np.ones_like(z), z, m, first), **tables}


def _neighbour(counts: NDArray[Any], bad: NDArray[np.bool_], way: Way, lent: Sequence[Lent], left_out: Lent) -> Table:
    """Return how well a frame that borrows predicts a neighbour that was left out, as `neighbour_table` does."""
    others = [each for each in lent if each.row != left_out.row]
    expected, sigma, _ = way.denoised(counts, bad, others)
    alone, _, _ = way.denoised(counts, bad)
    valid = ~bad & ~sentinel_mask(left_out.counts) & np.isfinite(expected) & np.isfinite(alone)
    one, other = (np.where(valid, each, 0).astype(np.float64) for each in (counts, left_out.counts))
    return neighbour_table(one, other, expected, sigma, alone, valid)


def _share_of(background: Background, share: float) -> Background:
    scale = np.float32(share)
    return Background(expected=background.expected * scale, sigma=background.sigma * scale)


def _thinned_lent(lent: Sequence[Lent], chance: Chance, own: int) -> list[Lent]:
    """Return lent frames thinned, those of one row with the random numbers that the row itself would be given."""
    turns = {own: 0}
    made = []
    for number, each in enumerate(lent):
        row = -1 - number if each.row is None else each.row
        turn = turns[row] = turns.get(row, -1) + 1
        made.append(replace(each, counts=thinned(each.counts, chance.generator(f"thinning {turn}", row))))
    return made
