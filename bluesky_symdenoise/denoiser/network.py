"""The network: from the counts of a frame and of its mates to the Gamma prior of each pixel's rate."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

#: Finest and coarsest level (powers of two) of the pyramid of local mean rates.
FINEST, COARSEST = 2, 7
#: Counts as which a coarser level is weighted when the next finer one is estimated.
PYRAMID_COUNTS = 4.0
#: Number of inputs of the layers per pixel, and per block of 2 x 2 pixels: two mean rates at each level between finest
#: and coarsest.
PIXEL_FEATURES, BLOCK_FEATURES = 6, 2 * (COARSEST - FINEST - 1)
#: Rows and columns are padded to a multiple of this.
MULTIPLE = 2**COARSEST
#: Steps (row, column) to one neighbour of each pair of opposite neighbours.
TO_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))
#: Number of outputs per pixel: three, one for the logarithm of each rate (the pixel's own and its mates'), and one for
#: each pair of neighbours. Older weights have only the first three, or five.
OUTPUTS, LOG_RATES = 3, 2
KNOWN_OUTPUTS = (OUTPUTS, OUTPUTS + LOG_RATES, OUTPUTS + LOG_RATES + len(TO_NEIGHBOURS))
#: Index of the input per pixel that is a quarter of the logarithm of the local mean rate.
LOG_MEAN = 2
#: Inputs of a frame without mates; the others are zero. Its two block means would be equal, so that only one is
#: passed.
ALONE = (0, LOG_MEAN, 3)
#: Number of sigmas at which a pixel's own counts refute its prior.
CONFLICT = 5.0
#: Number of rows of blocks (2 x 2 pixels) that the last layer processes at a time.
CACHED_ROWS = 32
_LOG_KAPPA = (-8.0, 14.0)
_LOG_RATIO = 12.0
#: For each transposed tap, the taps of a kernel of three that meet the same pixel of an image doubled by repetition.
_PARTIAL_SUMS = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])


@dataclass(frozen=True)
class Architecture:
    """Sizes of the U-Net; stored with the weights.

    Attributes
    ----------
    channels
        Channels of the levels, finest first.
    conjugate
        Whether a pixel's own counts turn the network's output into a posterior. If not, that output is the result, for
        comparisons only.
    outputs
        Outputs per pixel, one of `KNOWN_OUTPUTS`.
    """

    channels: tuple[int, ...] = (32, 48, 64, 96, 96)
    conjugate: bool = True
    outputs: int = KNOWN_OUTPUTS[-1]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self) | {"channels": list(self.channels)}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Architecture:
        """Make the architecture from the values of `to_dict`."""
        return cls(
            channels=tuple(stored["channels"]),
            conjugate=bool(stored.get("conjugate", True)),
            outputs=int(stored.get("outputs", OUTPUTS)),
        )


def pyramid_means(counts: Tensor, exposure: Tensor) -> list[Tensor]:
    """Return local mean rates at each level, finest first: each level's Gamma prior is the next coarser level.

    m_l = (Y_l + k) / (N_l + k / m_{l+1}) with k = 4 counts, from blocks of 128 down to 4 pixels.

    Parameters
    ----------
    counts, exposure
        (batch, 1, y, x), sides multiples of 128.

    Returns
    -------
    list of Tensor
        (batch, 1, y / 2^l, x / 2^l) rate > 0 for l = 2 ... 7.
    """
    block = 2**FINEST
    return means_of(*(block**2 * F.avg_pool2d(t, block) for t in (counts, exposure)))


def means_of(counts: Tensor, exposure: Tensor) -> list[Tensor]:
    """Return `pyramid_means` from sums over blocks of 4 x 4 pixels, (batch, 1, y / 4, x / 4)."""
    sums = [(counts, exposure)]
    for _ in range(FINEST, COARSEST):
        y, n = (4 * F.avg_pool2d(t, 2) for t in sums[-1])
        sums.append((y, n))
    total_counts, total_exposure = (t.sum(dim=(2, 3), keepdim=True) for t in sums[-1])
    mean = ((total_counts + 0.5) / (total_exposure + 1.0)).expand_as(sums[-1][0])
    means: list[Tensor] = []
    for y, n in reversed(sums):
        if means:
            mean = F.interpolate(mean, scale_factor=2, mode="bilinear", align_corners=False)
        mean = (y + PYRAMID_COUNTS) / (n + PYRAMID_COUNTS / mean)
        means.insert(0, mean)
    return means


def _at(level: int, mean: Tensor) -> Tensor:
    return F.interpolate(mean, scale_factor=2**level, mode="bilinear", align_corners=False)


def features(
    counts: Tensor, exposure: Tensor, mate_counts: Tensor, mate_exposure: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the network's inputs and the local mean rate that they are relative to.

    Returns
    -------
    tuple of Tensor
        (batch, 8, y, x) inputs per pixel, the last two being the logarithms of the rate over the local mean by the
        pixel and by its mates, which only the output uses; (batch, 8, y/2, x/2) inputs per block; (batch, 1, y, x)
        mean rate. Without any mate: four of either, see `ALONE`.
    """
    own = pyramid_means(counts, exposure)
    mated = bool(mate_exposure.any())
    both = pyramid_means(counts + mate_counts, exposure + mate_exposure) if mated else own
    log_mean = _at(FINEST, torch.log(own[0]))
    mean = torch.exp(log_mean)

    def stabilised(y: Tensor, n: Tensor) -> Tensor:
        difference = 2 * (torch.sqrt(y + 0.375) - torch.sqrt(n * mean + 0.375))
        return _compressed(difference) * (n > 0)

    def log_rate(y: Tensor, n: Tensor) -> Tensor:
        return torch.log((y + 0.375) / (n * mean + 0.375))

    inputs = [stabilised(counts, exposure), log_mean / 4, exposure.clamp(max=4), log_rate(counts, exposure)]
    if mated:
        inputs.insert(1, stabilised(mate_counts, mate_exposure))
        inputs[4:4] = [torch.log1p(mate_exposure) / 2, _at(FINEST, torch.log(both[0])) - log_mean]
        inputs.append(log_rate(mate_counts, mate_exposure))
    coarser = [
        _at(level - 1, torch.log(means[level - FINEST]))
        for means in ((own, both) if mated else (own,))
        for level in range(FINEST + 1, COARSEST)
    ]
    per_block = torch.cat(coarser, dim=1) - F.avg_pool2d(log_mean, 2)
    return torch.cat(inputs, dim=1), per_block, mean


def _compressed(x: Tensor) -> Tensor:
    """Return 16 asinh(x / 16), linear for noise and logarithmic for peaks; ten times as fast as `torch.asinh`."""
    size = x.abs() / 16
    return torch.copysign(16 * torch.log1p(size + size.square() / (1 + torch.sqrt(size.square() + 1))), x)


def _block(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(outside, outside, 3, padding=1),
        nn.ReLU(inplace=True),
    )


class PriorNet(nn.Module):
    """A U-Net on 2 x 2-unshuffled pixels that predicts the Gamma prior (mean rate, shape) of each pixel."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        widths = architecture.channels
        inside = (4 * PIXEL_FEATURES + BLOCK_FEATURES, *widths[:-1])
        self.down = nn.ModuleList(_block(a, b) for a, b in zip(inside, widths, strict=True))
        self.up = nn.ModuleList(
            _block(deep + shallow, shallow)
            for deep, shallow in zip(reversed(widths[1:]), reversed(widths[:-1]), strict=True)
        )
        self.head = nn.Conv2d(widths[0], 4 * architecture.outputs, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.get_parameter("bias"))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the computation, up to the last layer."""
        return self.down[0].get_parameter("0.weight").dtype

    def own(self, counts: Tensor, exposure: Tensor) -> tuple[Tensor, Tensor]:
        """Return what a pixel's own counts and exposure add to the prior's."""
        if self.architecture.conjugate:
            return counts, exposure
        return torch.zeros_like(counts), torch.zeros_like(exposure)

    def in_bfloat16(self) -> PriorNet:
        """Return a copy with half the bits, except in the last layer, whose rounding would be that of the result."""
        rounded = copy.deepcopy(self).to(torch.bfloat16)
        rounded.head = copy.deepcopy(self.head)
        return rounded

    def forward(self, per_pixel: Tensor, per_block: Tensor) -> tuple[Tensor, Tensor]:
        """Return log of the prior's mean over the local mean, and log of its shape kappa; (batch, 1, y, x) each."""
        alone = per_pixel.shape[1] == len(ALONE) + 1
        into, at = (len(ALONE), ALONE.index(LOG_MEAN)) if alone else (PIXEL_FEATURES, LOG_MEAN)
        x = _unshuffled(per_pixel[:, :into], per_block, self.dtype)
        skips = []
        for level, block in enumerate(self.down):
            first, *others = block.children()
            if level == 0 and alone:
                whole = cast(nn.Conv2d, first)
                x = F.conv2d(x, weight_without_mates(whole), whole.bias, padding=1)
            else:
                x = first(x if level == 0 else F.avg_pool2d(x, 2))
            for layer in others:
                x = layer(x)
            skips.append(x)
        skips.pop()
        for block in self.up:
            first, *others = block.children()
            x = _joined(cast(nn.Conv2d, first), x, skips.pop())
            for layer in others:
                x = layer(x)
        log_mean = 4 * per_pixel[:, at : at + 1]
        log_rates = per_pixel[:, into:]
        seen = F.pad(log_mean + log_rates[:, :1], (1, 1, 1, 1), mode="replicate")
        # A few rows at a time stay in the processor's cache.
        rows = CACHED_ROWS if x.device.type == "cpu" else x.shape[2]
        with torch.autocast(x.device.type, enabled=False):
            parts = [
                self._answer(
                    x[:, :, first : first + rows],
                    log_mean[:, :, 2 * first : 2 * (first + rows)],
                    log_rates[:, :, 2 * first : 2 * (first + rows)],
                    seen[:, :, 2 * first : 2 * (first + rows) + 2],
                )
                for first in range(0, x.shape[2], rows)
            ]
        ratio, log_kappa = (torch.cat(each, dim=2) for each in zip(*parts, strict=True))
        return ratio, log_kappa

    def _answer(self, x: Tensor, log_mean: Tensor, log_rates: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output for some rows from that of the last layer; ``seen``: log rates and a pixel around."""
        out = F.pixel_shuffle(self.head(x.to(self.head.weight.dtype)), 2)
        ratio, log_kappa = combined(*(each.unbind(dim=1) for each in (out, log_mean, log_rates, seen)))
        return ratio.unsqueeze(1), log_kappa.unsqueeze(1)


def combined(
    out: Sequence[Tensor], log_mean: Sequence[Tensor], log_rates: Sequence[Tensor], seen: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Return log of the prior's mean over the local mean, and log of its shape, from the outputs of the last layer.

    Parameters
    ----------
    out
        Outputs of each pixel, (batch, y, x) each; their number is one of `KNOWN_OUTPUTS`.
    log_mean, log_rates
        Logarithms of the local mean, and of the rates over it by the pixel and by its mates, if it has any.
    seen
        Logarithm of the pixels' own rates, with one pixel around: (batch, y + 2, x + 2).
    """
    relative, log_kappa, in_sigma = out[:OUTPUTS]
    (mean,), (near,) = log_mean, seen
    # The layers may state a rate in two ways: relative to the mean, and as a difference of square roots, like the
    # inputs.
    difference = in_sigma / 2 * torch.rsqrt(1 + torch.exp(mean))
    ratio = relative + 2 * torch.copysign(torch.log1p(difference.abs()), difference)
    if len(out) > OUTPUTS:
        # On steep slopes, the counts of a pixel and its mates are better than the layers' estimate: they are passed
        # on.
        shares = [share * rate for share, rate in zip(out[OUTPUTS:], log_rates, strict=False)]
        ratio = ratio + (shares[0] if len(shares) == 1 else shares[0] + shares[1])
    height, width = mean.shape[-2:]
    for share, (down, right) in zip(out[KNOWN_OUTPUTS[1] :], TO_NEIGHBOURS, strict=False):
        # The same holds for its neighbours, in opposite pairs: on any slope, their mean is the pixel's rate.
        one, other = (near[..., 1 + sign * down :, 1 + sign * right :][..., :height, :width] for sign in (1, -1))
        ratio = ratio + share * (one + other - 2 * mean)
    return _LOG_RATIO * torch.tanh(ratio / _LOG_RATIO), (log_kappa + 1.0).clamp(*_LOG_KAPPA)


def weight_without_mates(first: nn.Conv2d) -> Tensor:
    """Return the first convolution's weight for the inputs of a frame without mates: zero inputs are omitted."""
    kept = [4 * channel + part for channel in ALONE for part in range(4)]
    own, both = first.weight[:, 4 * PIXEL_FEATURES :].chunk(2, dim=1)
    return torch.cat([first.weight[:, kept], own + both], dim=1)


def _unshuffled(per_pixel: Tensor, per_block: Tensor, dtype: torch.dtype) -> Tensor:
    """Return cat([pixel_unshuffle(per_pixel, 2), per_block]) in the convolutions' memory format, copied once."""
    batch, channels, height, width = per_pixel.shape
    size = (batch, 4 * channels + per_block.shape[1], height // 2, width // 2)
    x = torch.empty(size, dtype=dtype, device=per_pixel.device, memory_format=torch.channels_last)
    blocks = per_pixel.reshape(batch, channels, size[2], 2, size[3], 2).permute(0, 1, 3, 5, 2, 4)
    x[:, : 4 * channels].view(blocks.shape).copy_(blocks)
    x[:, 4 * channels :].copy_(per_block)
    return x


def _joined(first: nn.Conv2d, deep: Tensor, shallow: Tensor) -> Tensor:
    """Return first(cat([deep, doubled in size by repetition, shallow])), in less than half the time.

    Repetition followed by a kernel of 3 x 3 is a transposed convolution, stride 2, with its 4 x 4 partial sums.
    """
    channels = deep.shape[1]
    same_size = F.conv2d(shallow, first.weight[:, channels:], first.bias, padding=1)
    return same_size.add_(F.conv_transpose2d(deep, doubling_kernel(first.weight[:, :channels]), stride=2, padding=1))


def doubling_kernel(weight: Tensor) -> Tensor:
    """Return the kernel of the transposed convolution, stride 2, that equals repetition and a kernel of 3 x 3."""
    sums = _PARTIAL_SUMS.to(weight)
    return torch.einsum("au,bv,oiuv->ioab", sums, sums, weight)


def unrefuted(kappa: Tensor, mean: Tensor, counts: Tensor, exposure: Tensor) -> Tensor:
    """Return the prior's shape, reduced where own counts differ from the prior by more than `CONFLICT` sigma.

    There it is reduced until they differ by just that many: a lone bright pixel is unlike the training data, and its
    counts are better evidence than its surroundings. Twice the root of the counts has the variance 1 + n m / kappa.
    """
    expected = exposure * mean
    away = 2 * (torch.sqrt(counts + 0.375) - torch.sqrt(expected + 0.375)).abs() / CONFLICT
    return torch.where(away > 1, torch.minimum(kappa, expected / (away.square() - 1).clamp(min=1e-12)), kappa)


def posterior(
    net: PriorNet, counts: Tensor, exposure: Tensor, mate_counts: Tensor, mate_exposure: Tensor
) -> tuple[Tensor, Tensor]:
    """Return shape and rate of the Gamma posterior of each pixel's rate: y + kappa and n + kappa / rate0.

    Parameters
    ----------
    counts, exposure, mate_counts, mate_exposure
        (batch, 1, y, x) float32, sides multiples of 128.
    """
    per_pixel, per_block, mean = features(counts, exposure, mate_counts, mate_exposure)
    ratio, log_kappa = net(per_pixel, per_block)
    own_counts, own_exposure = net.own(counts, exposure)
    mean, kappa = prior(ratio, log_kappa, mean, own_counts, own_exposure)
    return own_counts + kappa, own_exposure + kappa / mean


def prior(
    ratio: Tensor, log_kappa: Tensor, mean: Tensor, own_counts: Tensor, own_exposure: Tensor
) -> tuple[Tensor, Tensor]:
    """Return mean and weight (exposure that it is worth) of the Gamma prior of each pixel's rate.

    Parameters
    ----------
    ratio, log_kappa
        Network outputs: logarithms of the prior's mean over the mates' mean, and of its weight.
    mean
        Mean of the mates, as `features` returns it.
    own_counts, own_exposure
        The pixel's own counts and exposure, which may refute the prior.
    """
    mean = mean * torch.exp(ratio)
    return mean, unrefuted(torch.exp(log_kappa), mean, own_counts, own_exposure)
