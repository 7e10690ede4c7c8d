"""The network's layers in bands of rows: `bluesky_symdenoise.denoiser.network.PriorNet`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from bluesky_symdenoise.denoiser import bands
from bluesky_symdenoise.denoiser.device.answer import Prior, answer
from bluesky_symdenoise.denoiser.device.crew import Crew
from bluesky_symdenoise.denoiser.device.inputs import Inputs
from bluesky_symdenoise.denoiser.network import MULTIPLE, PriorNet, doubling_kernel, first_weight

#: Rows that a thread of a CPU processes at a time at the finest levels, and at the coarser ones.
BANDS = (64, 32, 32, 16)


@dataclass(frozen=True)
class Convolution:
    """Weight and bias of a convolution of 3 x 3, which a rectifier of this slope below zero follows."""

    weight: Tensor
    bias: Tensor | None
    slope: float = 0.0

    def __call__(self, x: Tensor, *, top: bool, bottom: bool, rectified: bool = True) -> Tensor:
        """Return the layer's output without the first and last row, but where they are at the image's edge."""
        if top and bottom:
            x = F.conv2d(x, self.weight, self.bias, padding=1)
        else:
            if top or bottom:
                x = F.pad(x, (0, 0, int(top), int(bottom)))
            x = F.conv2d(x, self.weight, self.bias, padding=(0, 1))
        return _rectified(x, self.slope) if rectified else x


@dataclass(frozen=True)
class Joining:
    """First convolution of an upward level, of its input doubled in size and of the level's own output downwards.

    Attributes
    ----------
    deep
        Weight of the transposed convolution, stride 2, that stands for repetition and a kernel of 3 x 3.
    shallow
        The convolution of the level's own output.
    """

    deep: Tensor
    shallow: Convolution

    def __call__(self, deep: Tensor, shallow: Tensor, *, top: bool, bottom: bool) -> Tensor:
        """Return the layer's output; at edges that are not the image's, a row less than the shallow input has."""
        doubled = F.conv_transpose2d(deep, self.deep, stride=2, padding=1)
        rows = slice(0 if top else 1, doubled.shape[2] - (0 if bottom else 1))
        x = self.shallow(shallow, top=top, bottom=bottom, rectified=False).add_(doubled[:, :, rows])
        return _rectified(x, self.shallow.slope)


@dataclass(frozen=True)
class Band:
    """Rows of one level that are processed at a time, of all rows from 0 to before ``end``."""

    first: int
    last: int
    end: int

    @property
    def top(self) -> bool:
        """Whether the image's first row is among them."""
        return self.first == 0

    @property
    def bottom(self) -> bool:
        """Whether the image's last row is among them."""
        return self.last == self.end


class Layers:
    """The layers of a network on a device, prepared for frames with and without mates.

    Parameters
    ----------
    net
        The network, which has own counts in its posterior.
    crew
        Its device, and threads.

    Attributes
    ----------
    borrowing
        Those for frames that borrow photons; None where the network does not know such frames.
    """

    def __init__(self, net: PriorNet, crew: Crew) -> None:
        self.net, self.crew, self.dtype = net, crew, net.dtype
        self.borrowing = self if net.architecture.lent else None if net.other is None else Layers(net.other, crew)
        architecture = net.architecture
        slopes = [architecture.slope(level) for level in range(len(architecture.channels))]
        pairs = [[cast(nn.Conv2d, layer) for layer in list(block.children())[::2]] for block in net.down]
        self._down = [
            [_prepared(layer.weight, layer.bias, slope) for layer in pair]
            for pair, slope in zip(pairs, slopes, strict=True)
        ]
        whole = pairs[0][0]
        #: First convolutions, by whether there are mates and whether other rows lend photons.
        self._first = {
            (mates, lent): _prepared(first_weight(whole.weight, mates=mates, lent=lent), whole.bias, slopes[0])
            for mates, lent in product((False, True), (False, True) if architecture.lent else (False,))
        }
        self._joins, self._after = [], []
        for block, level in zip(net.up, reversed(range(len(slopes) - 1)), strict=True):
            join, after = (cast(nn.Conv2d, layer) for layer in list(block.children())[::2])
            deep = architecture.channels[level + 1]
            kernel = doubling_kernel(join.weight[:, :deep]).contiguous(memory_format=torch.channels_last)
            self._joins.append(Joining(kernel, _prepared(join.weight[:, deep:], join.bias, slopes[level])))
            self._after.append(_prepared(after.weight, after.bias, slopes[level]))

    def __call__(self, inputs: Inputs, *, part_pixels: int) -> Prior:
        """Return the prior of every pixel of a batch of frames.

        Parameters
        ----------
        part_pixels
            Frames of more pixels are processed in parts, whose overlap exceeds the receptive field.
        """
        _, height, width = inputs.own.counts.shape
        prior = Prior.empty(inputs.own.counts, trust=inputs.alone is not None)
        if height * width <= part_pixels:
            self._part(inputs, prior, (0, height), (0, height))
            return prior
        halo = bands.HALO
        rows = max(MULTIPLE, halo, part_pixels // width // MULTIPLE * MULTIPLE - 2 * halo)
        for start in range(0, height, rows):
            stop = min(height, start + rows)
            self._part(inputs, prior, (max(0, start - halo), min(height, stop + halo)), (start, stop))
        return prior

    def _part(self, inputs: Inputs, prior: Prior, region: tuple[int, int], wanted: tuple[int, int]) -> None:
        """Write the prior of the wanted rows of pixels, from a region of rows."""
        begin, end = region
        first, second = self._first[inputs.mates is not None, inputs.alone is not None], self._down[0][1]

        def of_pixels(low: int, high: int, band: Band) -> Tensor:
            kept = (begin + 2 * band.first, begin + 2 * band.last)
            return inputs.rows(begin + 2 * low, begin + 2 * high, self.dtype, kept=kept)

        skips = [self._downward(first, second, 0, (end - begin) // 2, of_pixels)]
        for level, (first, second) in enumerate(self._down[1:], start=1):
            x = torch.cat(self.crew.each(lambda band: F.avg_pool2d(band, 2), skips[-1]), dim=2)
            skips.append(self._downward(first, second, level, x.shape[2], partial(_rows, x)))
        deep = torch.cat(skips.pop(), dim=2)
        for level in range(len(skips) - 1, -1, -1):
            parts = self._bands(level, 2 * deep.shape[2])

            def upward(index: int, level: int = level, deep: Tensor = deep, bands: list[Band] = parts) -> Tensor:
                return self._upward(level, deep, skips[level], bands, index)

            if level > 0:
                deep = torch.cat(self.crew.each(upward, range(len(parts))), dim=2)
                continue

            def answered(index: int, bands: list[Band] = parts) -> None:
                rows = [begin + 2 * row for row in (bands[index].first, bands[index].last)]
                start, stop = max(rows[0], wanted[0]), min(rows[1], wanted[1])
                if start < stop:
                    x = upward(index)[:, :, (start - rows[0]) // 2 : (stop - rows[0]) // 2]
                    answer(self.net, x, inputs, prior, start, self.crew)

            self.crew.each(answered, range(len(parts)))

    def _bands(self, level: int, rows: int) -> list[Band]:
        """Return the bands of one level, the finest being 0."""
        step = BANDS[min(level, len(BANDS) - 1)] if self.crew.device.type == "cpu" else rows
        return [Band(first, min(first + step, rows), rows) for first in range(0, rows, step)]

    def _downward(
        self, first: Convolution, second: Convolution, level: int, rows: int, source: Callable[[int, int, Band], Tensor]
    ) -> list[Tensor]:
        """Return a level's output for each band, from rows of its input."""

        def task(band: Band) -> Tensor:
            low, high = max(0, band.first - 2), min(rows, band.last + 2)
            edges = {"top": low == 0, "bottom": high == rows}
            x = second(first(source(low, high, band), **edges), **edges)
            start = band.first - (0 if low == 0 else low + 2)
            return x[:, :, start : start + band.last - band.first]

        return self.crew.each(task, self._bands(level, rows))

    def _upward(self, level: int, deep: Tensor, skips: list[Tensor], bands: list[Band], index: int) -> Tensor:
        """Return the output of one band of a level on the way up."""
        band = bands[index]
        edges = {"top": band.top, "bottom": band.bottom}
        around = [] if band.top else [skips[index - 1][:, :, -2:]]
        around += [skips[index], *([] if band.bottom else [skips[index + 1][:, :, :2]])]
        shallow = torch.cat(around, dim=2) if len(around) > 1 else around[0]
        low, high = band.first // 2 - (not band.top), band.last // 2 + (not band.bottom)
        upward = len(self._joins) - 1 - level
        x = self._joins[upward](deep[:, :, low:high], shallow, **edges)
        return self._after[upward](x, **edges)


def _rows(x: Tensor, low: int, high: int, _: Band) -> Tensor:
    """Return rows of a level's input."""
    return x[:, :, low:high]


def _rectified(x: Tensor, slope: float) -> Tensor:
    """Return a layer's output after the rectifier, in place."""
    return F.leaky_relu_(x, slope) if slope else x.relu_()


def _prepared(weight: Tensor, bias: Tensor | None, slope: float) -> Convolution:
    """Return a convolution with its weight in the memory format of the images."""
    weight = weight.detach().contiguous(memory_format=torch.channels_last)
    return Convolution(weight, None if bias is None else bias.detach(), slope)
