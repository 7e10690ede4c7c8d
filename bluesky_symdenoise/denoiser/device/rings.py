"""Mates of full rotation on a device: the agreeing part of a pixel's ring, as in `bluesky_symdenoise.physics.fold`."""

from __future__ import annotations

from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from bluesky_symdenoise.denoiser.device.frame import Held
from bluesky_symdenoise.denoiser.device.gate import Evidence, folded, gate, pair_rows
from bluesky_symdenoise.denoiser.device.pairs import PairSums, pair_sums, score
from bluesky_symdenoise.denoiser.network import MULTIPLE
from bluesky_symdenoise.physics.fold import BLOCK, GATE_Z, RING_MATES, RING_TRIMS, rings
from bluesky_symdenoise.physics.symmetry import Symmetry


def ring_mates(held: Held, symmetry: Symmetry) -> Evidence:
    """Return mates of full rotation: the mean over the agreeing part of a pixel's ring, worth `RING_MATES`."""
    ring = _numbers(symmetry, held.shape, held.crew.device)
    speaks = None
    for trim in range(RING_TRIMS + 1):
        other = _others(held, ring, speaks)
        sums = pair_sums(partial(pair_rows, held, other.rows), held, halves=False)
        if trim == RING_TRIMS:
            break
        # A bright spot raises the mean of its ring, so that the whole ring disagrees: leave out the worst pixels
        # first.
        worst = score(sums, held.crew)
        inside = worst[:, : -(-held.shape[0] // BLOCK), : -(-held.shape[1] // BLOCK)]
        if inside.max() <= GATE_Z:
            break
        if speaks is None:
            speaks = torch.ones_like(worst)
        loudest = (inside * speaks[:, : inside.shape[1], : inside.shape[2]]).amax(dim=(1, 2), keepdim=True)
        speaks = speaks * (worst <= (loudest / 4).clamp(min=GATE_Z))
    return _weighted(held, symmetry, other, sums)


def _weighted(held: Held, symmetry: Symmetry, other: Evidence, sums: PairSums) -> Evidence:
    """Return the ring's sums where the test accepts them, worth at most `RING_MATES` exposures."""
    accepted = gate(sums, held.crew)
    use = None if symmetry.fold is None else folded(symmetry, 0, held)

    def weigh(part: tuple[int, int]) -> None:
        first, last = part
        weight = accepted.rows(held.measured(first, last), first, last)
        weight = weight * (RING_MATES / other.exposure[:, first:last].clamp(min=RING_MATES))
        if use is not None:
            weight *= use[:, first:last]
        other.counts[:, first:last] *= weight
        other.exposure[:, first:last] *= weight

    held.crew.each(weigh, held.crew.rows(*held.size[1:], step=BLOCK))
    return other


def _others(held: Held, ring: Tensor, speaks: Tensor | None) -> Evidence:
    """Return the sums (batch, y, x) over the other pixels of each pixel's ring, among the blocks that speak."""
    counts, exposure = held.counts, held.exposure
    if speaks is not None:
        use = speaks.repeat_interleave(BLOCK, dim=2)[:, :, None]
        counts, exposure = (
            (image.view(len(image), -1, BLOCK, image.shape[2]) * use).view(image.shape) for image in (counts, exposure)
        )
    sums = held.crew.each(lambda image: _summed(image, ring).sub_(image).clamp_(min=0), (counts, exposure))
    total = Evidence(*sums)
    if not held.whole:
        # Sums of whole numbers are exact; rounding of others would leave something of a pixel that is alone.
        measured = exposure.sign()
        alone = _summed(measured, ring) <= measured
        total.counts.masked_fill_(alone, 0.0)
        total.exposure.masked_fill_(alone, 0.0)
    return total


def _summed(image: Tensor, ring: Tensor) -> Tensor:
    """Return each pixel's sum over its ring, 0 outside all rings; summed in float64."""
    out = torch.empty_like(image)
    for target, each in zip(out, image, strict=True):
        sums = torch.bincount(ring, each.to(torch.float64).view(-1))
        sums[0] = 0
        torch.index_select(sums.to(image.dtype), 0, ring, out=target.view(-1))
    return out


@lru_cache(4)
def _numbers(symmetry: Symmetry, shape: tuple[int, int], device: torch.device) -> Tensor:
    """Return the flat number of each pixel's ring, (y * x,), 0 for none and beyond the frame's edge."""
    height, width = shape
    ring = np.pad(rings(shape, symmetry), ((0, -height % MULTIPLE), (0, -width % MULTIPLE)))
    return torch.from_numpy(ring.ravel().astype(np.int32)).to(device)
