"""The network's layers, with the finest level in bands of rows: `bluesky_symdenoise.denoiser.network.PriorNet`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from bluesky_symdenoise.denoiser.device.answer import Prior, answer
from bluesky_symdenoise.denoiser.device.inputs import Inputs
from bluesky_symdenoise.denoiser.network import ALONE, PIXEL_FEATURES, PriorNet, doubling_kernel

#: Rows of blocks (2 x 2 pixels) of the finest level that a CPU processes at a time.
BAND = 64
#: Extra rows of pixels on either side of a part of a large frame, more than the network's receptive field.
HALO = 256


@dataclass(frozen=True)
class Convolution:
    """Weight and bias of a convolution of 3 x 3, which a ReLU follows."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor, *, top: bool, bottom: bool, relu: bool = True) -> Tensor:
        """Return the layer's output without the first and last row, but where they are at the image's edge."""
        if top and bottom:
            x = F.conv2d(x, self.weight, self.bias, padding=1)
        else:
            if top or bottom:
                x = F.pad(x, (0, 0, int(top), int(bottom)))
            x = F.conv2d(x, self.weight, self.bias, padding=(0, 1))
        return x.relu_() if relu else x


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
        return self.shallow(shallow, top=top, bottom=bottom, relu=False).add_(doubled[:, :, rows]).relu_()


class Layers:
    """The layers of a network on a device, prepared for frames with and without mates.

    Parameters
    ----------
    net
        The network, which has own counts in its posterior.
    """

    def __init__(self, net: PriorNet) -> None:
        self.net, self.dtype = net, net.dtype
        first, second = (cast(nn.Conv2d, layer) for layer in list(net.down[0].children())[::2])
        self._first = {True: _prepared(first.weight, first.bias), False: _alone(first)}
        self._second = _prepared(second.weight, second.bias)
        self._joins, self._after = [], []
        for block, deep in zip(net.up, reversed(net.architecture.channels[1:]), strict=True):
            join, after = (cast(nn.Conv2d, layer) for layer in list(block.children())[::2])
            kernel = doubling_kernel(join.weight[:, :deep]).contiguous(memory_format=torch.channels_last)
            self._joins.append(Joining(kernel, _prepared(join.weight[:, deep:], join.bias)))
            self._after.append(_prepared(after.weight, after.bias))

    @property
    def device(self) -> torch.device:
        """Device of the layers."""
        return self.net.head.weight.device

    def __call__(self, inputs: Inputs, *, part_pixels: int, band: int = BAND) -> Prior:
        """Return the prior of every pixel of a batch of frames.

        Parameters
        ----------
        part_pixels
            Frames of more pixels are processed in parts, whose overlap exceeds the receptive field.
        band
            Rows of blocks of the finest level that are processed at a time.
        """
        _, height, width = inputs.own.counts.shape
        prior = Prior.empty(inputs.own.counts)
        if height * width <= part_pixels:
            self._part(inputs, prior, (0, height), (0, height), band)
            return prior
        rows = max(HALO, part_pixels // width // HALO * HALO - 2 * HALO)
        for start in range(0, height, rows):
            stop = min(height, start + rows)
            self._part(inputs, prior, (max(0, start - HALO), min(height, stop + HALO)), (start, stop), band)
        return prior

    def _part(self, inputs: Inputs, prior: Prior, region: tuple[int, int], wanted: tuple[int, int], band: int) -> None:
        """Write the prior of the wanted rows of pixels, from a region of rows."""
        begin, end = (row // 2 for row in region)
        skips: list[Tensor] = []
        pooled: list[Tensor] = []
        bands = [(first, min(first + band, end)) for first in range(begin, end, band)]
        for first, last in bands:
            low, high = max(begin, first - 2), min(end, last + 2)
            edges = {"top": low == begin, "bottom": high == end}
            x = inputs.rows(2 * low, 2 * high, self.dtype)
            x = self._first[inputs.mates is not None](x, **edges)
            x = _trimmed(self._second(x, **edges), low if low == begin else low + 2, first, last)
            skips.append(x)
            pooled.append(F.avg_pool2d(x, 2))
        deep = self._deeper(torch.cat(pooled, dim=2))
        for index, (first, last) in enumerate(bands):
            if 2 * last <= wanted[0] or 2 * first >= wanted[1]:
                continue
            top, bottom = index == 0, index == len(bands) - 1
            around = [] if top else [skips[index - 1][:, :, -2:]]
            around += [skips[index], *([] if bottom else [skips[index + 1][:, :, :2]])]
            low = (first - begin) // 2 - (not top)
            high = (last - begin) // 2 + (not bottom)
            shallow = torch.cat(around, dim=2) if len(around) > 1 else around[0]
            x = self._joins[-1](deep[:, :, low:high], shallow, top=top, bottom=bottom)
            x = self._after[-1](x, top=top, bottom=bottom)
            start, stop = max(2 * first, wanted[0]), min(2 * last, wanted[1])
            answer(self.net, x[:, :, start // 2 - first : stop // 2 - first], inputs, prior, start)

    def _deeper(self, x: Tensor) -> Tensor:
        """Return the output of all levels but the finest, for the finest one's pooled output."""
        skips = []
        for level, block in enumerate(self.net.down):
            if level == 0:
                continue
            x = block(x if level == 1 else F.avg_pool2d(x, 2))
            skips.append(x)
        skips.pop()
        for join, after in zip(self._joins[:-1], self._after[:-1], strict=True):
            x = after(join(x, skips.pop(), top=True, bottom=True), top=True, bottom=True)
        return x


def _trimmed(x: Tensor, row: int, first: int, last: int) -> Tensor:
    """Return rows from ``first`` to before ``last`` of those that begin with a row."""
    return x[:, :, first - row : last - row]


def _prepared(weight: Tensor, bias: Tensor | None) -> Convolution:
    """Return a convolution with its weight in the memory format of the images."""
    weight = weight.detach().contiguous(memory_format=torch.channels_last)
    return Convolution(weight, None if bias is None else bias.detach())


def _alone(first: nn.Conv2d) -> Convolution:
    """Return the first convolution for the inputs of a frame without mates: zero inputs are omitted."""
    kept = [4 * channel + part for channel in ALONE for part in range(4)]
    own, both = first.weight[:, 4 * PIXEL_FEATURES :].chunk(2, dim=1)
    return _prepared(torch.cat([first.weight[:, kept], own + both], dim=1), first.bias)
