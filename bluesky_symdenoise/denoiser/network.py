"""The network: from the counts of a frame, its mates and other rows to the Gamma prior of each pixel's rate."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from bluesky_symdenoise.denoiser.features import (
    ALONE,
    BLOCK_FEATURES,
    COARSEST,
    LENT_BLOCK_FEATURES,
    LENT_FEATURES,
    LOG_MEAN,
    PIXEL_FEATURES,
    features,
)

#: Rows and columns are padded to a multiple of this.
MULTIPLE = 2**COARSEST
#: Steps (row, column) to one neighbour of each pair of opposite neighbours.
TO_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))
#: Number of outputs per pixel: three, one for the logarithm of each rate (the pixel's own and its mates'), one for
#: each pair of neighbours, and one for the trust in other rows. Older weights have only the first three, five or nine.
OUTPUTS, LOG_RATES = 3, 2
KNOWN_OUTPUTS = (OUTPUTS, OUTPUTS + LOG_RATES, OUTPUTS + LOG_RATES + len(TO_NEIGHBOURS))
LENT_OUTPUT = KNOWN_OUTPUTS[-1]
#: Inputs per pixel of the layers, by the number of all: of a frame alone, with mates, and with other rows. The others,
#: logarithms of rates and of a longer exposure, only the output uses.
INPUTS = {
    len(ALONE) + 1: len(ALONE),
    PIXEL_FEATURES + LOG_RATES: PIXEL_FEATURES,
    PIXEL_FEATURES + LENT_FEATURES + LOG_RATES + 1: PIXEL_FEATURES + LENT_FEATURES,
}
#: Slope of leaky rectifiers below zero.
SLOPE = 0.1
#: Logit of the trust in other rows where the network has no doubt.
TRUST = 3.0
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
        Outputs per pixel, one of `KNOWN_OUTPUTS`, without that of other rows.
    leaky_from
        Level, the finest being 0, from which on rectifiers let a tenth of negative values through, without which
        training may leave the coarse levels dead; None for no level.
    lent
        Whether the network is one for frames that borrow photons: what they are added to, and how far they are to be
        trusted, are inputs and an output more.
    borrowing
        Network of frames that borrow photons, beside the one of those that do not; None for none.
    """

    channels: tuple[int, ...] = (32, 48, 64, 96, 96)
    conjugate: bool = True
    outputs: int = KNOWN_OUTPUTS[-1]
    leaky_from: int | None = None
    lent: bool = False
    borrowing: Architecture | None = None

    @property
    def borrows(self) -> bool:
        """Whether photons of other rows are known."""
        return self.lent or self.borrowing is not None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, without those that older weights do not have."""
        stored = asdict(self) | {"channels": list(self.channels)}
        if self.borrowing is not None:
            stored["borrowing"] = self.borrowing.to_dict()
        newer = {"leaky_from": None, "lent": False, "borrowing": None}
        return {name: value for name, value in stored.items() if name not in newer or value != newer[name]}

    def slope(self, level: int) -> float:
        """Return the slope of a level's rectifiers below zero."""
        return SLOPE if self.leaky_from is not None and level >= self.leaky_from else 0.0

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Architecture:
        """Make the architecture from the values of `to_dict`."""
        return cls(
            channels=tuple(stored["channels"]),
            conjugate=bool(stored.get("conjugate", True)),
            outputs=int(stored.get("outputs", OUTPUTS)),
            leaky_from=None if stored.get("leaky_from") is None else int(stored["leaky_from"]),
            lent=bool(stored.get("lent", False)),
            borrowing=None if stored.get("borrowing") is None else cls.from_dict(stored["borrowing"]),
        )


def _block(inside: int, outside: int, slope: float) -> nn.Sequential:
    def rectifier() -> nn.Module:
        return nn.LeakyReLU(slope, inplace=True) if slope else nn.ReLU(inplace=True)

    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, padding=1),
        rectifier(),
        nn.Conv2d(outside, outside, 3, padding=1),
        rectifier(),
    )


class PriorNet(nn.Module):
    """A U-Net on 2 x 2-unshuffled pixels that predicts the Gamma prior (mean rate, shape) of each pixel.

    Attributes
    ----------
    other
        A second one, for frames that borrow photons; None for none.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        widths = architecture.channels
        lent = 4 * LENT_FEATURES + LENT_BLOCK_FEATURES if architecture.lent else 0
        inside = (4 * PIXEL_FEATURES + BLOCK_FEATURES + lent, *widths[:-1])
        slopes = [architecture.slope(level) for level in range(len(widths))]
        self.down = nn.ModuleList(_block(*sizes) for sizes in zip(inside, widths, slopes, strict=True))
        self.up = nn.ModuleList(
            _block(widths[level + 1] + widths[level], widths[level], slopes[level])
            for level in reversed(range(len(widths) - 1))
        )
        self.head = nn.Conv2d(widths[0], 4 * (architecture.outputs + architecture.lent), 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.get_parameter("bias"))
        self.other = None if architecture.borrowing is None else PriorNet(architecture.borrowing)

    @property
    def borrowing(self) -> PriorNet | None:
        """The network of frames that borrow photons: this one, the other one, or None."""
        return self if self.architecture.lent else self.other

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
        rounded.other = None if self.other is None else self.other.in_bfloat16()
        return rounded

    def forward(self, per_pixel: Tensor, per_block: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return log of the prior's mean over the local mean, log of its shape kappa, and the trust in other rows.

        Each is (batch, 1, y, x); the trust, from 0 to 1, is None where no row lends photons.
        """
        into = INPUTS[per_pixel.shape[1]]
        at = ALONE.index(LOG_MEAN) if into == len(ALONE) else LOG_MEAN
        x = _unshuffled(per_pixel[:, :into], per_block, self.dtype)
        skips = []
        for level, block in enumerate(self.down):
            first, *others = block.children()
            if level == 0:
                whole = cast(nn.Conv2d, first)
                weight = first_weight(whole.weight, mates=into > len(ALONE), lent=into > PIXEL_FEATURES)
                x = F.conv2d(x, weight, whole.bias, padding=1)
            else:
                x = first(F.avg_pool2d(x, 2))
            for layer in others:
                x = layer(x)
            skips.append(x)
        skips.pop()
        for block in self.up:
            first, *others = block.children()
            x = _joined(cast(nn.Conv2d, first), x, skips.pop())
            for layer in others:
                x = layer(x)
        log_counts = 4 * per_pixel[:, at : at + 1]
        lent = into > PIXEL_FEATURES
        log_mean = log_counts - per_pixel[:, -1:] if lent else log_counts
        log_rates = per_pixel[:, into:-1] if lent else per_pixel[:, into:]
        seen = F.pad(log_mean + log_rates[:, :1], (1, 1, 1, 1), mode="replicate")
        # A few rows at a time stay in the processor's cache.
        rows = CACHED_ROWS if x.device.type == "cpu" else x.shape[2]
        with torch.autocast(x.device.type, enabled=False):
            parts = [
                self._answer(
                    x[:, :, first : first + rows],
                    log_mean[:, :, 2 * first : 2 * (first + rows)],
                    log_rates[:, :, 2 * first : 2 * (first + rows)],
                    log_counts[:, :, 2 * first : 2 * (first + rows)],
                    seen[:, :, 2 * first : 2 * (first + rows) + 2],
                )
                for first in range(0, x.shape[2], rows)
            ]
        ratio, log_kappa, logit = (torch.cat(each, dim=2) for each in zip(*parts, strict=True))
        return ratio, log_kappa, trusted(logit) if lent else None

    def _answer(
        self, x: Tensor, log_mean: Tensor, log_rates: Tensor, level: Tensor, seen: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the output for some rows from that of the last layer; ``seen``: log rates and a pixel around."""
        out = F.pixel_shuffle(self.head(x.to(self.head.weight.dtype)), 2)
        rates = log_rates.unbind(dim=1)
        mates = rates[1] if len(rates) > 1 else None
        ratio, log_kappa = combined(out.unbind(dim=1), log_mean[:, 0], (rates[0], mates), level[:, 0], seen[:, 0])
        return ratio.unsqueeze(1), log_kappa.unsqueeze(1), out[:, -1:]


def combined(
    out: Sequence[Tensor], log_mean: Tensor, log_rates: tuple[Tensor, Tensor | None], level: Tensor, seen: Tensor
) -> tuple[Tensor, Tensor]:
    """Return log of the prior's mean over the local mean, and log of its shape, from the outputs of the last layer.

    Parameters
    ----------
    out
        Outputs of each pixel, (batch, y, x) each; their number is one of `KNOWN_OUTPUTS`, or one more.
    log_mean, log_rates
        Logarithms of the local mean, and of the rates over it by the pixel and by its mates, if it has any;
        (batch, y, x).
    level
        Logarithm of the local mean of counts, with those of other rows; without any, the local mean itself.
    seen
        Logarithm of the pixels' own rates, with one pixel around: (batch, y + 2, x + 2).
    """
    relative, log_kappa, in_sigma = out[:OUTPUTS]
    # The layers may state a rate in two ways: relative to the mean, and as a difference of square roots, like the
    # inputs.
    difference = in_sigma / 2 * torch.rsqrt(1 + torch.exp(level))
    ratio = relative + 2 * torch.copysign(torch.log1p(difference.abs()), difference)
    # On steep slopes, the counts of a pixel and its mates are better than the layers' estimate: they are passed on.
    own, mates = log_rates
    if len(out) > OUTPUTS:
        passed = out[OUTPUTS] * own
        ratio = ratio + (passed if mates is None else passed + out[OUTPUTS + 1] * mates)
    height, width = log_mean.shape[-2:]
    for share, (down, right) in zip(out[KNOWN_OUTPUTS[1] : LENT_OUTPUT], TO_NEIGHBOURS, strict=False):
        # The same holds for its neighbours, in opposite pairs: on any slope, their mean is the pixel's rate.
        one, other = (seen[..., 1 + sign * down :, 1 + sign * right :][..., :height, :width] for sign in (1, -1))
        ratio = ratio + share * (one + other - 2 * log_mean)
    return _LOG_RATIO * torch.tanh(ratio / _LOG_RATIO), (log_kappa + 1.0).clamp(*_LOG_KAPPA)


def first_weight(weight: Tensor, *, mates: bool, lent: bool) -> Tensor:
    """Return the first convolution's weight for the inputs that there are: those that would be zero are omitted.

    Parameters
    ----------
    weight
        Of all inputs: four for each input per pixel (own and mates, then other rows), then those per block.
    mates
        Whether there are mates, or zeros in their place.
    lent
        Whether other rows lend photons.
    """
    pixel, block = 4 * PIXEL_FEATURES, weight.shape[1] - 4 * PIXEL_FEATURES
    further = 4 * LENT_FEATURES if block > BLOCK_FEATURES else 0
    begin = pixel + further
    kept = range(pixel) if mates else [4 * channel + part for channel in ALONE for part in range(4)]
    own, both = weight[:, begin : begin + BLOCK_FEATURES].chunk(2, dim=1)
    parts = [weight[:, :pixel] if mates else weight[:, list(kept)]]
    if lent:
        parts.append(weight[:, pixel:begin])
    parts += [own, both] if mates else [own + both]
    if lent:
        parts.append(weight[:, begin + BLOCK_FEATURES :])
    return torch.cat(parts, dim=1)


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


def trusted(logit: Tensor) -> Tensor:
    """Return the share of the photons of other rows that is used, from the network's output."""
    return torch.sigmoid(logit + TRUST)


def posterior(
    net: PriorNet,
    counts: Tensor,
    exposure: Tensor,
    mate_counts: Tensor,
    mate_exposure: Tensor,
    lent_counts: Tensor | None = None,
    lent_exposure: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return shape and rate of the Gamma posterior of each pixel's rate: y + kappa and n + kappa / rate0.

    Photons of other rows are added to those of the frame, which is then one of a longer exposure. What is added in the
    end is less where the network, which is shown the frame without them too, has doubts.

    Parameters
    ----------
    counts, exposure, mate_counts, mate_exposure, lent_counts, lent_exposure
        Of the pixels, their mates and perhaps other rows: (batch, 1, y, x) float32, sides multiples of 128.
    """
    if lent_counts is None or lent_exposure is None or not lent_exposure.any():
        per_pixel, per_block, mean = features(counts, exposure, mate_counts, mate_exposure)
        ratio, log_kappa, _ = net(per_pixel, per_block)
        y, n = net.own(counts, exposure)
        mean, kappa = prior(ratio, log_kappa, mean, y, n)
        return y + kappa, n + kappa / mean
    if net.borrowing is None:
        raise TypeError("a network that does not know photons of other rows")
    net = net.borrowing
    every = counts + lent_counts, exposure + lent_exposure
    per_pixel, per_block, mean = features(*every, mate_counts, mate_exposure, (counts, exposure))
    ratio, log_kappa, trust = net(per_pixel, per_block)
    assert trust is not None
    y, n = net.own(counts + trust * lent_counts, exposure + trust * lent_exposure)
    mean, kappa = prior(ratio, log_kappa, mean, y, n)
    return y + kappa, n + kappa / mean


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
