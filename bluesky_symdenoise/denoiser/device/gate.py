"""Mates of pixels where the pair test lets them, on a device: `bluesky_symdenoise.physics.fold.gated_mates`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from bluesky_symdenoise.denoiser.device.crew import Crew
from bluesky_symdenoise.denoiser.device.frame import Held, padded
from bluesky_symdenoise.denoiser.device.moves import Turnable, moves
from bluesky_symdenoise.denoiser.device.pairs import PairSums, pair_sums, tested
from bluesky_symdenoise.physics.fold import BLOCK, GATE_Z, SPOT_BLOCK, SPOT_Z
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


def gate(sums: PairSums, crew: Crew) -> Gate:
    """Return `symmetry_gate` from the sums of a pair test."""
    worst, spots = tested(sums, crew, spot_z=SPOT_Z)
    agreeing = (worst <= GATE_Z).repeat_interleave(BLOCK // SPOT_BLOCK, dim=1)
    agreeing = agreeing.repeat_interleave(BLOCK // SPOT_BLOCK, dim=2)
    return Gate(_twice(agreeing, 1.0), _twice(agreeing & spots, -1.0))


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
    parts = held.crew.rows(*held.size[1:], step=BLOCK)
    for index, move in enumerate(moves(symmetry, held.shape, held.size[2], held.crew.device)):
        other: Rows = partial(move.both, counts, exposure)
        if not move.exact:
            # Gathering is slow: it is done once.
            other = Evidence(*_gathered(held.crew, other, parts)).rows
        accepted = gate(pair_sums(partial(pair_rows, held, other), held, halves=held.whole), held.crew)
        checked = None if symmetry.fold is None else folded(symmetry, index, held)

        def add(part: tuple[int, int]) -> None:
            first, last = part
            use = accepted.rows(held.measured(first, last), first, last)  # noqa: B023
            if checked is not None:  # noqa: B023
                use *= checked[:, first:last]  # noqa: B023
            if (again := move.repeated_in(first, last, held.counts)) is not None:  # noqa: B023
                use.view(len(use), -1)[:, again] = 0
            for target, image in zip((total.counts, total.exposure), other(first, last), strict=True):  # noqa: B023
                target[:, first:last].addcmul_(use, image)

        held.crew.each(add, parts)
    return total


def _gathered(crew: Crew, other: Rows, parts: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Return whole images of rows."""
    counts, exposure = zip(*crew.each(lambda part: other(*part), parts), strict=True)
    return torch.cat(counts, dim=1), torch.cat(exposure, dim=1)


def pair_rows(held: Held, other: Rows, first: int, last: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return rows of counts and exposures, own and mates'."""
    return held.counts[:, first:last], held.exposure[:, first:last], *other(first, last)


def folded(symmetry: Symmetry, index: int, held: Held) -> Tensor:
    """Return 1 where a checked symmetry lets mates be used, (1, y, x)."""
    use = symmetry.may_fold(index, held.shape).astype(np.float64)
    return torch.from_numpy(padded([use], np.float32)).to(held.crew.device)
