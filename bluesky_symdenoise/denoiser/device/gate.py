"""Mates of pixels where the pair test lets them, on a device: `bluesky_symdenoise.physics.fold.gated_mates`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from bluesky_symdenoise.denoiser.device.frame import Held, padded
from bluesky_symdenoise.denoiser.device.moves import Turnable, moves
from bluesky_symdenoise.denoiser.device.pairs import PairSums, pair_sums, score, spots
from bluesky_symdenoise.denoiser.device.rows import rows_at_a_time
from bluesky_symdenoise.physics.fold import BLOCK, GATE_Z, SPOT_BLOCK
from bluesky_symdenoise.physics.symmetry import Symmetry

#: Returns counts and exposures of rows from a first to before a last one, (batch, rows, x).
Rows = Callable[[int, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Gate:
    """Where a mate may be used.

    Attributes
    ----------
    agreeing
        (batch, y/2, 1, x) float32, 1 where no window sees a difference.
    spotted
        -1 where there is a spot nevertheless, which is asked of pixels that have counts of their own.
    """

    agreeing: Tensor
    spotted: Tensor

    def rows(self, exposure: Tensor, first: int, last: int) -> Tensor:
        """Return 1 where mates may be used, (batch, rows, x), given 0 and more for the pixels' own exposure there."""
        part = slice(first // SPOT_BLOCK, last // SPOT_BLOCK)
        batch, rows, width = exposure.shape
        measured = exposure.view(batch, rows // SPOT_BLOCK, SPOT_BLOCK, width)
        use = torch.addcmul(self.agreeing[:, part], self.spotted[:, part], measured)
        return use.view(batch, rows, width)


def gate(sums: PairSums) -> Gate:
    """Return `symmetry_gate` from the sums of a pair test."""
    agreeing = (score(sums) <= GATE_Z).repeat_interleave(BLOCK // SPOT_BLOCK, dim=1)
    agreeing = agreeing.repeat_interleave(BLOCK // SPOT_BLOCK, dim=2)
    return Gate(_twice(agreeing, 1.0), _twice(agreeing & spots(sums), -1.0))


def _twice(flags: Tensor, value: float) -> Tensor:
    """Return a value where flags (batch, y, x) are set, else 0, in every column twice: (batch, y, 1, 2 x) float32."""
    # Two float32 numbers are written as one integer of 64 bits, which is much faster.
    (bits,) = torch.tensor([[value, value]]).view(torch.int64)
    return (flags * bits.to(flags.device)).view(torch.float32).unsqueeze(2)


@dataclass(frozen=True)
class Evidence:
    """Counts and exposures of pixels or of their mates, (batch, y, x)."""

    counts: Tensor
    exposure: Tensor

    def rows(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Return some rows of both."""
        return self.counts[:, first:last], self.exposure[:, first:last]


def gated_mates(held: Held, symmetry: Symmetry) -> Evidence:
    """Return counts and exposures of all mates that the test accepts, under exact and oblique operations."""
    counts, exposure = Turnable(held.counts), Turnable(held.exposure)
    total = Evidence(torch.zeros_like(held.counts), torch.zeros_like(held.exposure))
    for index, move in enumerate(moves(symmetry, held.shape, held.size[2], held.device)):
        other: Rows = partial(move.both, counts, exposure)
        if not move.exact:
            # Gathering is slow: it is done once.
            other = Evidence(*other(0, held.size[1])).rows
        accepted = gate(pair_sums(partial(pair_rows, held, other), held, halves=held.whole))
        checked = None if symmetry.fold is None else folded(symmetry, index, held)
        for first, last in rows_at_a_time(*held.size[1:], held.device, step=BLOCK):
            use = accepted.rows(held.measured(first, last), first, last)
            if checked is not None:
                use *= checked[:, first:last]
            if (again := move.repeated_in(first, last, held.counts)) is not None:
                use.view(len(use), -1)[:, again] = 0
            for target, image in zip((total.counts, total.exposure), other(first, last), strict=True):
                target[:, first:last].addcmul_(use, image)
    return total


def pair_rows(held: Held, other: Rows, first: int, last: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return rows of counts and exposures, own and mates'."""
    return held.counts[:, first:last], held.exposure[:, first:last], *other(first, last)


def folded(symmetry: Symmetry, index: int, held: Held) -> Tensor:
    """Return 1 where a checked symmetry lets mates be used, (1, y, x)."""
    use = symmetry.may_fold(index, held.shape).astype(np.float64)
    return torch.from_numpy(padded([use], np.float32)).to(held.device)
