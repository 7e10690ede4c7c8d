"""What neighbouring rows lend to one row: pair tests, pools, structure function and weights, on a device.

The law is `bluesky_symdenoise.physics.neighbours`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from bluesky_symdenoise.denoiser.device.frame import Held
from bluesky_symdenoise.denoiser.device.gate import Evidence
from bluesky_symdenoise.denoiser.device.pairs import Pair, pair_sums, summed_columns, summed_rows, tested
from bluesky_symdenoise.denoiser.device.windows import windowed
from bluesky_symdenoise.physics.fold import BLOCK, GATE_Z, SPOT_BLOCK, SPOT_WINDOW, WINDOWS
from bluesky_symdenoise.physics.frame import Frame
from bluesky_symdenoise.physics.neighbours import flux
from bluesky_symdenoise.physics.neighbours.lent import Lending, Used
from bluesky_symdenoise.physics.neighbours.share import MOST_EXPOSURES, NEAR, Moments, shares, sides
from bluesky_symdenoise.physics.neighbours.structure import lags

#: Side, in pixels, of the cells that have one structure function and one set of weights.
CELL = 16
#: Standard deviation, in cells, of the window over which their sums are smoothed.
SMOOTH = 1.0
#: Scores from which on a few pixels of a row differ from those of the frame or of other rows; and of all rows together
#: from the frame's.
SPOT_Z, OWN_SPOT_Z = 3.5, 2.75
#: Least share of a frame's counts where a row must agree with it to be of the same scene.
LEAST_ALIKE = 0.5
#: Skewness of a window's sum of binomial numbers, over (1 - 2 p) / (sigma^2 spread): (4 pi)^1.5 / (12 pi^2) /
#: sqrt(4 pi).
SKEWNESS = 0.1061

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Borrowed:
    """What a row borrows.

    Attributes
    ----------
    evidence
        (1, y, x) float32 counts and exposure, as good a prediction of the row's rate as so many counts would be.
    ratios
        (row,) flux of each lending row over the borrowing one's; NaN for a row that has nothing in common.
    exposures
        (row,) mean exposure that each row lends, in units of the borrowing one's.
    """

    evidence: Evidence
    ratios: Floats
    exposures: Floats

    def used(self, frame: Frame, lending: Lending) -> Used:
        """Return what a frame borrowed, for its provenance."""
        height, width = frame.counts.shape
        worth = self.evidence.exposure[0, :height, :width].cpu().numpy()[frame.exposure > 0]
        exposure = float(np.median(worth)) / float(np.median(frame.exposure[frame.exposure > 0])) if worth.size else 0.0
        rows = zip(lending.rows, self.exposures.tolist(), strict=True)
        return Used(exposure, tuple((row, each) for row, each in rows if each > 0))


def borrowed(own: Held, rows: Held, offsets: Floats, *, same_flux: bool = False) -> Borrowed | None:
    """Return what rows lend to a frame, or None if that is nothing.

    Parameters
    ----------
    own
        The frame, a batch of one.
    rows
        The lending frames, as one batch.
    offsets
        (row, axis) steps from the borrowing row.
    same_flux
        Whether rows are compared as they are, because what they counted is not proportional to the flux: with dark
        counts, or the variance of read noise.
    """
    ratios = _ratios(own, rows)
    if same_flux:
        ratios = np.where(np.isfinite(ratios), 1.0, np.nan)
    usable = np.isfinite(ratios)
    if not usable.any():
        return None
    scale = torch.tensor(np.where(usable, ratios, 0.0), dtype=rows.exposure.dtype, device=rows.exposure.device)
    scaled = replace(rows, exposure=rows.exposure * scale[:, None, None], whole=False)
    use = _accepted(own, scaled)
    use *= _agreeing(own, scaled, use, offsets)
    use *= _of_scene(own, scaled.counts, use)
    counts, exposure = scaled.counts * use, scaled.exposure * use
    moments = _moments(own, counts, exposure)
    shared = shares(moments, lags(np.concatenate([np.zeros_like(offsets[:1]), offsets])))
    evidence = _checked(own, _evidence(own, counts, exposure, shared.per_count, shared.left))
    if not bool(evidence.exposure.any()):
        return None
    return Borrowed(evidence, ratios, _lent(own, exposure, shared.per_count, evidence.exposure))


def _checked(own: Held, evidence: Evidence) -> Evidence:
    """Return the evidence where it agrees with the frame's own counts; nothing if most of it does not."""
    rows = replace(own, counts=evidence.counts, exposure=evidence.exposure, whole=False)
    everywhere = torch.ones_like(evidence.counts)
    wide = _Pools(own, rows, everywhere, BLOCK, WINDOWS, GATE_Z)
    spots = _Pools(own, rows, everywhere, SPOT_BLOCK, (SPOT_WINDOW,), OWN_SPOT_Z)
    every = torch.ones(1, dtype=torch.bool)
    for pools in (wide, spots):
        pools.stay *= pools.apart(pools.own, pools.of(every)) <= pools.limit
    use = wide.pixels() * spots.pixels(around=True)
    use *= _of_scene(own, evidence.counts, use)
    return Evidence(evidence.counts * use, evidence.exposure * use)


def _ratios(own: Held, rows: Held) -> Floats:
    """Return the flux of each row over the frame's."""
    both = own.exposure.sign() * rows.exposure.sign()
    sums = []
    for image in (own.counts, own.exposure, rows.counts, rows.exposure):
        masked = image * both
        sums.append(_blocks(masked, flux.BLOCK).double().flatten(1).cpu().numpy())
    return flux.flux_ratios(*sums)


def _accepted(own: Held, rows: Held) -> Tensor:
    """Return 1 where a row agrees with the frame by itself, (row, y, x) float32."""

    def pair(first: int, last: int) -> Pair:
        part = slice(first, last)
        return own.counts[:, part], own.exposure[:, part], rows.counts[:, part], rows.exposure[:, part]

    worst, spots = tested(pair_sums(pair, rows, halves=False), rows.crew, spot_z=SPOT_Z)
    agreeing = (worst <= GATE_Z).float()
    use = _repeated(agreeing, BLOCK)
    measured = own.exposure.sign().float()
    use = use * (1 - _repeated(spots.float(), SPOT_BLOCK) * measured)
    return use * rows.exposure.sign().float()


class _Pools:
    """Sums of rows over blocks, and which of them are still used.

    Parameters
    ----------
    own
        The frame.
    rows
        The lending frames, with exposures in units of the frame's.
    use
        (row, y, x) 1 where a row is used.
    block
        Side of the blocks.
    windows
        Windows of the tests, in pixels.
    limit
        Score from which on two pools differ.
    """

    def __init__(self, own: Held, rows: Held, use: Tensor, block: int, windows: Sequence[float], limit: float) -> None:
        self.counts, self.exposure = (_blocks(image * use, block) for image in (rows.counts, rows.exposure))
        self.own = _blocks(own.counts, block), _blocks(own.exposure, block)
        self.stay = torch.ones_like(self.counts)
        self.block, self.windows, self.limit, self.crew = block, windows, limit, own.crew

    def of(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Return counts and exposure of the pool of some rows, (1, y, x)."""
        kept = self.stay[chosen]
        return tuple((each[chosen] * kept).sum(dim=0, keepdim=True) for each in (self.counts, self.exposure))  # type: ignore[return-value]

    def apart(self, one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
        """Return how strongly two pools differ, (any, y, x)."""
        return _score(*one, *other, sigmas=[window / self.block for window in self.windows])

    def against_others(self) -> None:
        """Leave each row out where it differs from the pool of the other rows."""
        if len(self.counts) < 2:
            return
        counts, exposure = self.counts * self.stay, self.exposure * self.stay
        others = [(each.sum(dim=0, keepdim=True) - each).clamp_(min=0) for each in (counts, exposure)]
        others[1] = torch.where(others[1] > 1e-6 * exposure.amax(), others[1], 0.0)
        self.stay *= self.apart((counts, exposure), (others[0], others[1])) <= self.limit

    def sides(self, side: Tensor) -> None:
        """Where the rows before and after differ, leave out those that differ more from the frame."""
        before, after = side < 0, side > 0
        if not (bool(before.any()) and bool(after.any())):
            return
        differ = self.apart(self.of(before), self.of(after)) > self.limit
        away = [self.apart(self.own, self.of(chosen)) for chosen in (before, after)]
        for chosen, worse in ((before, away[0] > away[1]), (after, away[0] <= away[1])):
            self.stay[chosen] *= ~(differ & worse)

    def far(self, rank: Tensor) -> None:
        """Leave out rows further away where they differ from the nearest ones with the frame."""
        for nearest in NEAR:
            near, far = rank < nearest, rank >= nearest
            if not bool(far.any()):
                return
            counts, exposure = self.of(near)
            both = counts + self.own[0], exposure + self.own[1]
            self.stay[far] *= self.apart(both, self.of(far)) <= self.limit

    def pixels(self, *, around: bool = False) -> Tensor:
        """Return 1 where a row may stay, (row, y, x) float32; with one block around what is left out."""
        stay = self.stay.float()
        if around:
            stay = 1 - F.max_pool2d(1 - stay, 3, stride=1, padding=1)
        return _repeated(stay, self.block)


def _agreeing(own: Held, rows: Held, use: Tensor, offsets: Floats) -> Tensor:
    """Return 1 where rows agree with each other, as pools, (row, y, x) float32."""
    pools = _Pools(own, rows, use, BLOCK, WINDOWS, GATE_Z)
    pools.against_others()
    pools.sides(torch.tensor(sides(offsets), device=use.device))
    rank = np.argsort(np.argsort(np.linalg.norm(offsets, axis=1), kind="stable"), kind="stable")
    pools.far(torch.tensor(rank, device=use.device))
    spots = _Pools(own, rows, use, SPOT_BLOCK, (SPOT_WINDOW,), SPOT_Z)
    spots.against_others()
    return pools.pixels() * spots.pixels(around=True)


def _of_scene(own: Held, counts: Tensor, use: Tensor) -> Tensor:
    """Return 1 for rows of which at least `LEAST_ALIKE` of the frame's counts agree, (row, 1, 1) float32."""
    seen = own.counts.float() * use
    both = own.counts.float() * (counts > -1)
    share = seen.sum(dim=(1, 2)) / both.sum(dim=(1, 2)).clamp(min=1e-12)
    return (share >= LEAST_ALIKE).float()[:, None, None]


def _score(y: Tensor, n: Tensor, z: Tensor, m: Tensor, *, sigmas: Sequence[float]) -> Tensor:
    """Return how strongly two pools differ: the largest standard score of the difference in any window.

    Given each pair's sum, one part of it is binomial. With unequal exposures it is skewed: the score z is replaced by
    z - g (z^2 - 1) / 6 for the window's skewness g (Cornish and Fisher), without which rows would be left out where
    they have a count too many more often than where they have one too few.
    """
    exposure = n + m
    both = (n > 0) & (m > 0)
    share = torch.where(both, n / exposure.clamp(min=1e-12), 0.5)
    total = torch.where(both, y + z, 0.0)
    difference = torch.where(both, y - total * share, 0.0).float()
    variance = (total * share * (1 - share)).float()
    skewed = (1 - 2 * share).float()
    worst = torch.zeros_like(difference)
    for sigma in sigmas:
        spread = (windowed(variance, sigma / np.sqrt(2)) / (4 * np.pi * sigma**2)).sqrt_()
        known = spread > 1e-12
        score = windowed(difference, sigma) / spread.clamp(min=1e-12)
        skewness = SKEWNESS * skewed / (sigma**2 * spread.clamp(min=1e-12))
        score = (score - skewness.clamp(-1, 1) / 6 * (score.square() - 1)).abs_()
        worst = torch.maximum(worst, torch.where(known, score, 0.0))
    return worst


def _repeated(blocks: Tensor, block: int) -> Tensor:
    """Return values of blocks as those of their pixels."""
    return blocks.repeat_interleave(block, dim=1).repeat_interleave(block, dim=2)


def _blocks(image: Tensor, block: int) -> Tensor:
    """Return sums over blocks of (batch, y, x)."""
    return summed_columns(summed_rows(image, block), block)


def _moments(own: Held, counts: Tensor, exposure: Tensor) -> tuple[Moments, Moments]:
    """Return sums over cells that the structure function needs, from pixels and from blocks of 4 x 4."""
    all_counts = torch.cat([own.counts, counts]).float()
    all_exposure = torch.cat([own.exposure, exposure]).float()
    fine = _grams(all_counts, all_exposure, CELL)
    coarse = _grams(_blocks(all_counts, BLOCK), _blocks(all_exposure, BLOCK), CELL // BLOCK)
    return fine, coarse


def _grams(counts: Tensor, exposure: Tensor, side: int) -> Moments:
    """Return sums over cells of so many elements a side of products of rows, smoothed over cells."""
    rows, height, width = counts.shape
    used = (exposure > 0).float()
    per = torch.where(exposure > 0, 1 / exposure.clamp(min=1e-12), 0.0)
    rate = counts * per
    square = (counts * (counts - 1)) * per * per

    def celled(image: Tensor) -> Tensor:
        cut = image.view(rows, height // side, side, width // side, side)
        return cut.permute(1, 3, 0, 2, 4).reshape(-1, rows, side * side)

    x, f, g = celled(rate), celled(square), celled(used)
    e = celled(exposure).sum(dim=2)
    y = celled(counts).sum(dim=2)
    grams = torch.stack([x @ x.mT, f @ g.mT, g @ g.mT]).double()
    shape = (height // side, width // side)

    def smoothed(values: Tensor) -> Floats:
        flat = values.reshape(*shape, -1).permute(2, 0, 1)
        out = windowed(flat.contiguous().float(), SMOOTH).permute(1, 2, 0).reshape(values.shape)
        return np.asarray(out.double().cpu().numpy())

    product, squares, shared = (smoothed(each) for each in grams)
    return Moments(shape, 4 * np.pi * SMOOTH**2, product, squares, shared, smoothed(e), smoothed(y))


def _evidence(own: Held, counts: Tensor, exposure: Tensor, per_count: Floats, left: Floats) -> Evidence:
    """Return counts and exposure that predict as well as the weighted rows.

    x = sum c y / sum c n has the variance m sum c^2 n / (sum c n)^2 + m^2 left; the exposure is m over that.
    """
    weight = _spread(per_count, own)
    structure = _spread(left[..., None], own)
    c = weight.to(counts.dtype)
    y, n, n2 = torch.zeros_like(own.counts), torch.zeros_like(own.counts), torch.zeros_like(own.counts)
    for index in range(len(counts)):
        part = c[index : index + 1] * exposure[index : index + 1]
        y.addcmul_(c[index : index + 1], counts[index : index + 1])
        n += part
        n2.addcmul_(c[index : index + 1], part)
    known = n > 0
    variance = torch.where(known, n2 / n.clamp(min=1e-12).square(), 1.0) + structure
    reference = own.exposure[own.exposure > 0].median() if bool((own.exposure > 0).any()) else torch.tensor(1.0)
    worth = torch.where(known, (1 / variance).clamp(max=MOST_EXPOSURES * float(reference)), 0.0)
    return Evidence(torch.where(known, worth * y / n.clamp(min=1e-12), 0.0), worth)


def _spread(cells: Floats, own: Held) -> Tensor:
    """Return values of cells (y, x, any), interpolated to blocks, as images (any, y, x)."""
    values = torch.from_numpy(np.ascontiguousarray(np.moveaxis(cells, -1, 0))).to(own.counts.device, torch.float32)
    blocks = F.interpolate(values[None], scale_factor=CELL // BLOCK, mode="bilinear", align_corners=False)[0]
    return blocks.repeat_interleave(BLOCK, dim=1).repeat_interleave(BLOCK, dim=2)


def _lent(own: Held, exposure: Tensor, per_count: Floats, worth: Tensor) -> Floats:
    """Return the mean exposure that each row lends: the evidence's, shared in proportion of the weights."""
    weight = _spread(per_count, own) * exposure.float()
    part = weight / weight.sum(dim=0, keepdim=True).clamp(min=1e-12) * worth.float()
    measured = own.exposure.sign()
    total = (own.exposure * measured).sum()
    return np.asarray((part * measured).sum(dim=(1, 2)).double().cpu().numpy() / max(float(total), 1e-300))
