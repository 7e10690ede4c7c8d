"""The network's inputs on a device, some rows at a time, as in `bluesky_symdenoise.denoiser.network.features`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from bluesky_symdenoise.denoiser.device.crew import Crew
from bluesky_symdenoise.denoiser.device.gate import Evidence
from bluesky_symdenoise.denoiser.device.pairs import summed_columns, summed_rows
from bluesky_symdenoise.denoiser.features import (
    ALONE,
    COARSEST,
    FINEST,
    LEAST_EXPOSURE,
    LENT_FEATURES,
    PIXEL_FEATURES,
    longer,
    means_of,
)

#: Levels of the pyramid of mean rates that are inputs per block of 2 x 2 pixels, relative to the finest.
COARSER = range(FINEST + 1, COARSEST)
#: Type of twice the size, by type: two columns of one block are moved as one element.
WIDE = {torch.float32: torch.float64, torch.bfloat16: torch.float32, torch.float16: torch.float32}


@dataclass(frozen=True)
class Profile:
    """Logarithms of one level's mean rates, interpolated along x.

    Attributes
    ----------
    values
        (batch, y / 2^level, any) values to be interpolated along y.
    factor
        Rows of the result for each row.
    """

    values: Tensor
    factor: int


class Inputs:
    """Inputs of the network for frames of one shape, and what its outputs refer to.

    Attributes
    ----------
    own, mates
        Counts and exposures (batch, y, x) float32, sides multiples of 128, with those that other rows lend; mates are
        None where there are none.
    alone
        The pixels' own without those of other rows; None where nothing is lent.
    channels
        Number of inputs per block of 2 x 2 pixels.
    log_mean
        (batch, y, x) logarithm of the local mean rate; as the next two, of the rows that `rows` was asked for.
    seen
        (batch, y + 2, x + 2) logarithm of the pixel's own rate, the nearest one in a border of one pixel.
    level
        Logarithm of the local mean of counts where other rows lend photons, whose exposure is longer; otherwise None.
    log_rates
        Logarithms of the rate over the local mean, by the pixel, and by its mates if there are any.
    """

    def __init__(self, own: Evidence, mates: Evidence | None, crew: Crew, alone: Evidence | None = None) -> None:
        self.own, self.mates, self.alone, self.crew = own, mates, alone, crew
        batch, height, width = own.counts.shape
        sums = [[own], *([] if mates is None else [[own, mates]]), *([] if alone is None else [[alone]])]
        logs = crew.each(_logs, sums)
        pyramids = logs if alone is None else logs[:-1]
        apart = None if alone is None else [one - other for one, other in zip(logs[-1], logs[0], strict=True)]
        self._mean = Profile(_wider(logs[0][0], 4)[:, 0], 4)
        self._both = None if mates is None else Profile(_wider(logs[1][0] - logs[0][0], 4)[:, 0], 4)
        self._apart = None if apart is None else Profile(_wider(apart[0], 4)[:, 0], 4)
        self._longer = None if alone is None else Profile(_wider(_longer(own, alone), 4)[:, 0], 4)
        planes = (len(ALONE) if mates is None else PIXEL_FEATURES) + (0 if alone is None else LENT_FEATURES)
        self.channels = 4 * planes + len(logs) * len(COARSER)
        self._coarser = crew.each(partial(_coarser, pyramids, apart), (FINEST, *COARSER))
        self.log_mean = own.counts.new_empty(own.counts.shape)
        self.level = None if alone is None else torch.empty_like(self.log_mean)
        # Rows that no part has written yet are read beside a part that ends without overlap: they must be numbers.
        self.seen = own.counts.new_zeros((batch, height + 2, width + 2))
        self.log_rates = [own.counts.new_empty(own.counts.shape) for _ in pyramids]

    def rates(self, part: slice) -> tuple[Tensor, Tensor | None]:
        """Return some rows of `log_rates`: by the pixel and by its mates."""
        own, *mates = (rates[:, part] for rates in self.log_rates)
        return own, mates[0] if mates else None

    def rows(self, first: int, last: int, dtype: torch.dtype, *, kept: tuple[int, int]) -> Tensor:
        """Return the inputs of rows of pixels, multiples of 4, as (batch, channels, rows / 2, x / 2), channels last.

        Parameters
        ----------
        kept
            First and last row of those of which `log_mean`, `seen` and `log_rates` are kept; each is kept once.
        """
        batch, _, width = self.own.counts.shape
        shape = (batch, (last - first) // 2, width // 2, self.channels)
        out = torch.empty(shape, dtype=dtype, device=self.log_mean.device)
        for start, stop in self.crew.rows(last - first, width, step=4):
            self._write(out[:, start // 2 : stop // 2], first + start, first + stop, kept)
        return out.permute(0, 3, 1, 2)

    def _write(self, out: Tensor, first: int, last: int, kept: tuple[int, int]) -> None:
        """Write the inputs of some rows, channels last."""
        part = slice(first, last)
        log_mean = _rows_of([self._mean], first, last)
        mean = torch.exp(log_mean)
        exposure = self.own.exposure[:, part]
        times = None if self._longer is None else _rows_of([self._longer], first, last)
        level = log_mean if times is None else torch.log(times).add_(log_mean)

        def relative(image: Tensor) -> Tensor:
            return image if times is None else image / times

        rates = [_roots(self.own.counts[:, part], exposure, mean)]
        planes = [_stabilised(*rates[0], exposure), level / 4, relative(exposure).clamp(max=4)]
        if self.mates is not None and self._both is not None:
            mates = self.mates.exposure[:, part]
            rates.append(_roots(self.mates.counts[:, part], mates, mean))
            planes.insert(1, _stabilised(*rates[1], mates))
            planes += [torch.log1p(relative(mates)).mul_(0.5), _rows_of([self._both], first, last)]
        if self.alone is not None and self._apart is not None:
            alone = self.alone.exposure[:, part]
            lent = exposure - alone
            planes += [
                _stabilised(*_roots(self.alone.counts[:, part], alone, mean), alone).mul_(lent > 0),
                lent / exposure.clamp(min=LEAST_EXPOSURE),
                _rows_of([self._apart], first, last),
            ]
        low, high = max(first, kept[0]), min(last, kept[1])
        if low < high:
            here = slice(low - first, high - first)
            self.log_mean[:, low:high] = log_mean[:, here]
            if self.level is not None:
                self.level[:, low:high] = level[:, here]
            for target, (over, under) in zip(self.log_rates, rates, strict=True):
                torch.log(over[:, here] / under[:, here], out=target[:, low:high])
            self._keep_seen(low, high)
        _unshuffle(planes, out)
        out[..., 4 * len(planes) :] = _rows_of(self._coarser, first // 2, last // 2).view(*out.shape[:3], -1)

    def _keep_seen(self, first: int, last: int) -> None:
        """Keep the logarithm of the pixels' own rates of these rows, with the border."""
        seen = self.seen[:, 1 + first : 1 + last]
        torch.add(self.log_mean[:, first:last], self.log_rates[0][:, first:last], out=seen[:, :, 1:-1])
        seen[:, :, 0], seen[:, :, -1] = seen[:, :, 1], seen[:, :, -2]
        if first == 0:
            self.seen[:, 0] = self.seen[:, 1]
        if last == self.log_mean.shape[1]:
            self.seen[:, -1] = self.seen[:, -2]


def _unshuffle(planes: Sequence[Tensor], out: Tensor) -> None:
    """Write images (batch, y, x) as four channels each of blocks of 2 x 2 pixels, (batch, y / 2, x / 2, channels)."""
    # Two columns of a block are moved as one element.
    wide = out.view(WIDE[out.dtype])
    for index, plane in enumerate(planes):
        columns = plane.to(out.dtype).view(WIDE[out.dtype])
        for below in range(2):
            wide[..., 2 * index + below] = columns[:, below::2]


def _blocks(image: Tensor) -> Tensor:
    """Return sums over 4 x 4 pixels, (batch, 1, y / 4, x / 4)."""
    block = 2**FINEST
    return summed_columns(summed_rows(image, block), block).unsqueeze(1)


def _longer(every: Evidence, alone: Evidence) -> Tensor:
    """Return how many times longer exposures are than alone, (batch, 1, y / 4, x / 4)."""
    return longer(_blocks(every.exposure), _blocks(alone.exposure))


def _roots(counts: Tensor, exposure: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Return y + 3/8 and n m + 3/8."""
    return counts + 0.375, (exposure * mean).add_(0.375)


def _stabilised(over: Tensor, under: Tensor, exposure: Tensor) -> Tensor:
    """Return 16 asinh(x / 16) of the difference x of square roots, 0 where nothing was measured."""
    x = torch.sqrt(over).sub_(torch.sqrt(under)).mul_(2)
    size = x.abs().mul_(1 / 16)
    square = size.square()
    asinh = torch.log1p(size.add_(square / torch.sqrt(square + 1).add_(1))).mul_(16)
    return torch.copysign(asinh, x).mul_(exposure.sign())


def _wider(image: Tensor, factor: int) -> Tensor:
    """Return (batch, channels, y, x) interpolated along x."""
    return F.interpolate(image, scale_factor=(1, factor), mode="bilinear", align_corners=False)


def _logs(evidence: Sequence[Evidence]) -> list[Tensor]:
    """Return logarithms of the mean rates of evidence that is added up, finest first."""
    counts, exposure = _blocks(evidence[0].counts), _blocks(evidence[0].exposure)
    for other in evidence[1:]:
        counts, exposure = counts + _blocks(other.counts), exposure + _blocks(other.exposure)
    return [torch.log(mean) for mean in means_of(counts, exposure)]


def _coarser(logs: Sequence[Sequence[Tensor]], apart: Sequence[Tensor] | None, level: int) -> Profile:
    """Return the part of one level in the inputs per block, as a profile.

    The sum of all profiles, interpolated along y, is (batch, y / 2, x / 2 * channels). A channel is a level's logarithm
    less that of the finest level, whose interpolation to blocks of 2 x 2 pixels is the mean of that to pixels; or by
    how much a level's logarithm is apart without other rows.
    """
    relative = len(COARSER) * len(logs)
    channels = relative + (0 if apart is None else len(COARSER))
    factor = 2 ** (level - 1)
    batch, _, rows, columns = logs[0][level - FINEST].shape
    values = logs[0][0].new_zeros((batch, rows, columns * factor, channels))
    if level == FINEST:
        values[..., :relative] -= _wider(logs[0][0], factor)[:, 0, :, :, None]
    else:
        for pyramid, means in enumerate([*logs, *([] if apart is None else [apart])]):
            values[..., pyramid * len(COARSER) + level - FINEST - 1] = _wider(means[level - FINEST], factor)[:, 0]
    return Profile(values.view(batch, rows, -1), factor)


def _rows_of(profiles: Sequence[Profile], first: int, last: int) -> Tensor:
    """Return rows of the sum of profiles, interpolated along y: (batch, last - first, any)."""
    weights, parts = [], []
    for profile in profiles:
        matrix, low = _interpolation(profile.factor, profile.values.shape[1], first, last, profile.values.device)
        weights.append(matrix)
        parts.append(profile.values[:, low : low + matrix.shape[1]])
    if len(profiles) == 1:
        return weights[0] @ parts[0]
    return torch.cat(weights, dim=1) @ torch.cat(parts, dim=1)


@lru_cache(2048)
def _interpolation(factor: int, size: int, first: int, last: int, device: torch.device) -> tuple[Tensor, int]:
    """Return the matrix that interpolates rows from ``first`` to ``last`` of an image, and the first row it needs.

    Parameters
    ----------
    factor, size
        Rows of the result for each row of the image, and the number of these.
    """
    place = ((torch.arange(first, last, dtype=torch.float64) + 0.5) / factor - 0.5).clamp(0, size - 1)
    below = place.floor().long().clamp(max=max(size - 2, 0))
    share = place - below
    low, high = int(below.min()), min(int(below.max()) + 2, size)
    matrix = torch.zeros(last - first, high - low, dtype=torch.float64)
    row = torch.arange(last - first)
    matrix[row, below - low] += 1 - share
    if size > 1:
        matrix[row, below - low + 1] += share
    return matrix.to(device, torch.float32), low
