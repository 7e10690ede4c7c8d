"""What neighbouring rows lend to one row: pair tests, pools, structure function and weights, on a device.

The law is `bluesky_symdenoise.physics.neighbours.borrowed`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from bluesky_symdenoise.denoiser.device.frame import Held
from bluesky_symdenoise.denoiser.device.gate import Evidence
from bluesky_symdenoise.denoiser.device.pairs import Pair, pair_sums, summed_columns, summed_rows, tested
from bluesky_symdenoise.denoiser.device.pools import Pools, halved, regions_agree, repeated
from bluesky_symdenoise.denoiser.device.windows import windowed
from bluesky_symdenoise.physics.fold import BLOCK, GATE_Z, SPOT_BLOCK, SPOT_WINDOW, WINDOWS
from bluesky_symdenoise.physics.frame import Frame
from bluesky_symdenoise.physics.neighbours import flux
from bluesky_symdenoise.physics.neighbours.lent import Lending, Used
from bluesky_symdenoise.physics.neighbours.pools import LEAST_ALIKE, OWN_SPOT_Z, REGION_BLOCK, SPOT_Z, sides
from bluesky_symdenoise.physics.neighbours.share import (
    CELL,
    MOST_EXPOSURES,
    SCALES,
    SMOOTH,
    WHOLE,
    WINDOW,
    Moments,
    shares,
)
from bluesky_symdenoise.physics.neighbours.structure import lags

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

    def scaled(self, share: float) -> Borrowed:
        """Return a share of what is borrowed."""
        counts, exposure = self.evidence.counts * share, self.evidence.exposure * share
        return Borrowed(Evidence(counts, exposure), self.ratios, self.exposures * share)

    def used(self, frame: Frame, lending: Lending) -> Used:
        """Return what a frame borrowed, for its provenance."""
        height, width = frame.counts.shape
        measured = frame.exposure > 0
        worth = self.evidence.exposure[0, :height, :width].cpu().numpy()[measured]
        exposure = float(np.median(worth)) / float(np.median(frame.exposure[measured])) if worth.size else 0.0
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
    window = _Window(own, rows)
    ratios = window.ratios()
    if same_flux:
        ratios = np.where(np.isfinite(ratios), 1.0, np.nan)
    if not np.isfinite(ratios).any():
        return None
    window.scale(np.where(np.isfinite(ratios), ratios, 0.0))
    use = window.agreeing(offsets)
    shared = shares(window.moments(use), lags(np.concatenate([np.zeros_like(offsets[:1]), offsets])))
    evidence, exposures = window.evidence(use, shared.per_count, shared.left)
    if evidence is None:
        return None
    return Borrowed(evidence, ratios, exposures)


class _Window:
    """A frame and the rows that may lend to it.

    What tests need are sums over blocks of 2 x 2 pixels; pixels are read band by band.
    """

    def __init__(self, own: Held, rows: Held) -> None:
        self._own, self._rows, self._crew = own, rows, own.crew
        _, self._height, self._width = own.size
        self._scales = [1.0] * rows.size[0]
        images = [own.counts, own.exposure, rows.counts, rows.exposure]
        self._own_counts, self._own_exposure, self._counts, self._exposure = (self._blocks(each) for each in images)

    def _bands(self, images: int, step: int) -> list[tuple[int, int]]:
        """Return (first, last) rows of pixels that are processed at a time, of so many images."""
        return self._crew.rows(self._height, self._width * images, step=step)

    def _blocks(self, images: Tensor) -> Tensor:
        """Return sums over blocks of 2 x 2 pixels of images (any, y, x)."""
        out = images.new_empty((len(images), self._height // SPOT_BLOCK, self._width // SPOT_BLOCK))

        def task(band: tuple[int, int]) -> None:
            first, last = band
            for target, image in zip(out, images, strict=True):
                rows = summed_rows(image[None, first:last], SPOT_BLOCK)
                target[first // SPOT_BLOCK : last // SPOT_BLOCK] = summed_columns(rows, SPOT_BLOCK)[0]

        self._crew.each(task, self._bands(1, SPOT_BLOCK))
        return out

    def ratios(self) -> Floats:
        """Return the flux of each row over the frame's."""
        counts, exposure = self._own_counts, self._own_exposure
        sums: list[list[Tensor]] = [[], [], [], []]
        own = [_coarse(each) for each in (counts, exposure)]
        for index, theirs in enumerate(self._counts):
            if torch.equal(self._rows.exposure[index], self._own.exposure[0]):
                parts = [*own, _coarse(theirs[None]), own[1]]
            else:
                both = self._own.exposure.sign() * self._rows.exposure[index].sign()
                images = self._own.counts, self._own.exposure, self._rows.counts[index], self._rows.exposure[index]
                parts = [_coarse(self._blocks(image * both)) for image in images]
            for target, part in zip(sums, parts, strict=True):
                target.append(part.flatten())
        return flux.flux_ratios(*(torch.stack(each).double().cpu().numpy() for each in sums))

    def scale(self, ratios: Floats) -> None:
        """Give the rows exposures in units of the frame's."""
        self._scales = ratios.tolist()
        self._exposure *= torch.tensor(ratios, dtype=self._exposure.dtype, device=self._exposure.device)[:, None, None]

    def _scaled(self, index: int, first: int, last: int) -> Tensor:
        """Return the exposure of some rows of pixels of a frame, (1, y, x), in units of the borrowing frame's."""
        return self._rows.exposure[index : index + 1, first:last] * self._scales[index]

    def _accepted(self, index: int) -> Tensor:
        """Return 1 in blocks of 2 x 2 pixels where a row agrees with the frame by itself, (y, x) float32."""

        def pair(first: int, last: int) -> Pair:
            part = slice(first, last)
            theirs = self._rows.counts[index : index + 1, part]
            return self._own.counts[:, part], self._own.exposure[:, part], theirs, self._scaled(index, first, last)

        worst, spots = tested(pair_sums(pair, self._own, halves=False), self._crew, spot_z=SPOT_Z)
        agreeing = repeated((worst <= GATE_Z).float(), BLOCK // SPOT_BLOCK)
        return agreeing[0] * (~spots[0]).float()

    def agreeing(self, offsets: Floats) -> Tensor:
        """Return 1 in blocks of 2 x 2 pixels where a row may lend, (row, y, x) float32."""
        use = torch.stack([self._accepted(index) for index in range(len(self._counts))])
        use *= self._regions(self._counts, self._exposure, use)
        wide, spots = self._pools(self._counts * use, self._exposure * use, spot_z=SPOT_Z)
        wide.against_others()
        wide.sides(sides(offsets))
        wide.far(np.linalg.norm(offsets, axis=1).round(9), sides(offsets))
        spots.against_others()
        use *= _staying(wide, spots)
        return use * self._of_scene(use)

    def _pools(self, counts: Tensor, exposure: Tensor, *, spot_z: float) -> tuple[Pools, Pools]:
        """Return rows in blocks of 4 x 4 pixels, for windows, and of 2 x 2, for spots that differ by so much."""
        sums = self._own_counts, self._own_exposure, counts, exposure
        wide = Pools(*(halved(each) for each in sums), block=BLOCK, windows=WINDOWS, limit=GATE_Z)
        return wide, Pools(*sums, block=SPOT_BLOCK, windows=(SPOT_WINDOW,), limit=spot_z)

    def _regions(self, counts: Tensor, exposure: Tensor, use: Tensor) -> Tensor:
        """Return 1 in blocks of 2 x 2 pixels of regions where rows have the frame's rate, (row, y, x) float32."""
        used = use * self._own_exposure.sign() * exposure.sign()
        images = self._own_counts, self._own_exposure, counts, exposure
        y, n, z, m = (_coarse(image * used) for image in images)
        return repeated(regions_agree((y, n), (z, m)), REGION_BLOCK // SPOT_BLOCK)

    def _of_scene(self, use: Tensor) -> Tensor:
        """Return 1 for rows that agree where the frame has enough of its counts, (row, 1, 1) float32."""
        counts = self._own_counts.float()
        agreeing = torch.stack([(counts[0] * each).sum(dtype=torch.float64) for each in use])
        enough = agreeing >= LEAST_ALIKE * counts.sum(dtype=torch.float64).clamp(min=1e-12)
        return enough.float()[:, None, None]

    def moments(self, use: Tensor) -> list[Moments]:
        """Return sums over cells that the structure function needs, from pixels, blocks of 4 x 4 and whole cells."""
        grams = self._crew.each(partial(self._fine, use), self._bands(len(use) + 1, CELL))
        shape = (self._height // CELL, self._width // CELL)
        fine = _smoothed([torch.cat(parts) for parts in zip(*grams, strict=True)], shape)
        images = [
            torch.cat([own, theirs]).float()
            for own, theirs in (
                (self._own_counts, self._counts * use),
                (self._own_exposure, self._exposure * use),
                (self._own_exposure, self._exposure),
            )
        ]
        found = [fine]
        for block in SCALES[1:]:
            sums = [summed_columns(summed_rows(each, block // SPOT_BLOCK), block // SPOT_BLOCK) for each in images]
            found.append(_smoothed(_grams(*sums, side=CELL // block), shape))
        return found

    def _fine(self, use: Tensor, band: tuple[int, int]) -> list[Tensor]:
        """Return the sums over cells of a band of pixels."""
        first, last = band
        used = repeated(use[:, first // SPOT_BLOCK : last // SPOT_BLOCK], SPOT_BLOCK)
        scale = used.new_tensor(self._scales)[:, None, None]
        counts = torch.cat([self._own.counts[:, first:last].float(), self._rows.counts[:, first:last].float() * used])
        exposure = self._rows.exposure[:, first:last].float() * scale * used
        exposure = torch.cat([self._own.exposure[:, first:last].float(), exposure])
        return _grams(counts, exposure, exposure, side=CELL)

    def evidence(self, use: Tensor, per_count: Floats, left: Floats) -> tuple[Evidence | None, Floats]:
        """Return counts and exposure that predict as well as the weighted rows, and what each row's part in them is.

        x = sum c y / sum c n has the variance m sum c^2 n / (sum c n)^2 + m^2 left; the exposure is m over that.
        """
        weight, structure = (_spread(each, self._own) for each in (per_count, left[..., None]))
        measured = self._own.exposure[self._own.exposure > 0]
        most = MOST_EXPOSURES * float(measured.median()) if len(measured) else MOST_EXPOSURES
        out = Evidence(*(torch.zeros(self._own.size, device=use.device) for _ in range(2)))

        def task(band: tuple[int, int]) -> Tensor:
            first, last = band
            fine, coarse = (slice(first // block, last // block) for block in (SPOT_BLOCK, BLOCK))
            parts = []
            y, n, n2 = (torch.zeros((1, last - first, self._width), device=use.device) for _ in range(3))
            for index in range(len(use)):
                c = repeated(weight[index : index + 1, coarse], BLOCK)
                used = c * repeated(use[index : index + 1, fine], SPOT_BLOCK)
                part = used * self._scaled(index, first, last).float()
                y.addcmul_(used, self._rows.counts[index : index + 1, first:last].float())
                n += part
                n2.addcmul_(c, part)
                parts.append(part)
            safe = n.clamp(min=1e-12)
            variance = n2.div_(safe.square()).add_(repeated(structure[:, coarse], BLOCK))
            worth = (n > 0) / variance.clamp(min=1 / most)
            out.exposure[:, first:last] = worth
            scale = worth / safe
            out.counts[:, first:last] = scale * y
            scale *= self._own.exposure[:, first:last].sign().float()
            return torch.stack([(part * scale).sum(dtype=torch.float64) for part in parts])

        lent = torch.stack(self._crew.each(task, self._bands(1, CELL))).sum(dim=0)
        final = self._checked(out)
        if not bool(final.any()):
            return None, np.zeros(len(use))

        def mask(band: tuple[int, int]) -> None:
            keep = repeated(final[:, band[0] // SPOT_BLOCK : band[1] // SPOT_BLOCK], SPOT_BLOCK)
            for image in (out.counts, out.exposure):
                image[:, slice(*band)] *= keep

        self._crew.each(mask, self._bands(1, SPOT_BLOCK))
        if not bool(out.exposure.any()):
            return None, np.zeros(len(use))
        return out, lent.cpu().numpy() / max(float(self._own_exposure.sum(dtype=torch.float64)), 1e-300)

    def _checked(self, evidence: Evidence) -> Tensor:
        """Return 1 in blocks of 2 x 2 pixels where evidence agrees with the frame's own counts; 0 if it mostly does
        not.
        """
        counts, exposure = self._blocks(evidence.counts), self._blocks(evidence.exposure)
        both = self._pools(counts, exposure, spot_z=OWN_SPOT_Z)
        for pools in both:
            pools.against_own()
        use = _staying(*both)
        use *= self._regions(counts, exposure, use)
        return use * self._of_scene(use)


def _staying(wide: Pools, spots: Pools) -> Tensor:
    """Return 1 in blocks of 2 x 2 pixels where rows may stay, and are not beside a spot."""
    return repeated(wide.staying(), BLOCK // SPOT_BLOCK) * spots.staying(around=True)


def _coarse(blocks: Tensor) -> Tensor:
    """Return sums over blocks of 16 x 16 pixels from those over 2 x 2."""
    block = flux.BLOCK // SPOT_BLOCK
    return summed_columns(summed_rows(blocks, block), block)


def _grams(counts: Tensor, exposure: Tensor, whole: Tensor, *, side: int) -> list[Tensor]:
    """Return sums over cells of so many elements a side of products of rows, of exposures and of counts."""
    rows, height, width = counts.shape
    used = ((exposure > 0) & (exposure >= WHOLE * whole)).float()
    per = used / exposure.clamp(min=1e-12)
    rate = counts * per
    square = (counts - 1).mul_(rate).mul_(per)

    def celled(image: Tensor) -> Tensor:
        cut = image.view(rows, height // side, side, width // side, side)
        return cut.permute(1, 3, 0, 2, 4).reshape(-1, rows, side * side)

    x, f, g = celled(rate), celled(square), celled(used)
    sums = (celled(image).sum(dim=2) for image in (exposure, counts))
    return [x @ x.mT, f @ g.mT, g @ g.mT, *sums]


def _smoothed(sums: Sequence[Tensor], shape: tuple[int, int]) -> Moments:
    """Return the sums over cells, smoothed over cells."""

    def smoothed(values: Tensor) -> Floats:
        flat = values.reshape(*shape, -1).permute(2, 0, 1)
        out = windowed(flat.contiguous().float(), SMOOTH).permute(1, 2, 0).reshape(values.shape)
        return np.asarray(out.double().cpu().numpy())

    return Moments(shape, WINDOW, *(smoothed(each) for each in sums))


def _spread(cells: Floats, own: Held) -> Tensor:
    """Return values of cells (y, x, any), interpolated to blocks of 4 x 4 pixels, (any, y, x)."""
    inside = [-(-size // CELL) for size in own.shape]
    values = torch.from_numpy(np.ascontiguousarray(np.moveaxis(cells[: inside[0], : inside[1]], -1, 0)))
    values = values.to(own.counts.device, torch.float32)
    blocks = F.interpolate(values[None], scale_factor=CELL // BLOCK, mode="bilinear", align_corners=False)[0]
    _, height, width = own.size
    return F.pad(blocks, (0, width // BLOCK - blocks.shape[2], 0, height // BLOCK - blocks.shape[1]))
