"""Inputs of the network: what a frame, its mates and other rows counted, relative to a local mean rate."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

#: Finest and coarsest level (powers of two) of the pyramid of local mean rates.
FINEST, COARSEST = 2, 7
#: Counts as which a coarser level is weighted when the next finer one is estimated.
PYRAMID_COUNTS = 4.0
#: Number of inputs of the layers per pixel, and per block of 2 x 2 pixels: two mean rates at each level between finest
#: and coarsest.
PIXEL_FEATURES, BLOCK_FEATURES = 6, 2 * (COARSEST - FINEST - 1)
#: Number of further inputs per pixel, and per block, where other rows lend photons: the frame without them.
LENT_FEATURES, LENT_BLOCK_FEATURES = 3, COARSEST - FINEST - 1
#: Exposure below which a pixel has none.
LEAST_EXPOSURE = 1e-9
#: Index of the input per pixel that is a quarter of the logarithm of the local mean rate.
LOG_MEAN = 2
#: Inputs of a frame without mates; the others are zero. Its two block means would be equal, so that only one is
#: passed.
ALONE = (0, LOG_MEAN, 3)


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
    counts: Tensor,
    exposure: Tensor,
    mate_counts: Tensor,
    mate_exposure: Tensor,
    alone: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the network's inputs and the local mean rate that they are relative to.

    Parameters
    ----------
    counts, exposure
        Of the pixels; those that other rows lend included.
    mate_counts, mate_exposure
        Of their mates.
    alone
        Counts and exposure without those of other rows; None where nothing is lent.

    Returns
    -------
    tuple of Tensor
        (batch, 8, y, x) inputs per pixel, the last two being the logarithms of the rate over the local mean by the
        pixel and by its mates, which only the output uses; (batch, 8, y/2, x/2) inputs per block; (batch, 1, y, x)
        mean rate. Without any mate: four of either, see `ALONE`. Where other rows lend photons: 12 of either, the last
        one per pixel being the logarithm of `longer`.
    """
    own = pyramid_means(counts, exposure)
    mated = alone is not None or bool(mate_exposure.any())
    both = pyramid_means(counts + mate_counts, exposure + mate_exposure) if mated else own
    log_mean = _at(FINEST, torch.log(own[0]))
    mean = torch.exp(log_mean)

    def stabilised(y: Tensor, n: Tensor) -> Tensor:
        difference = 2 * (torch.sqrt(y + 0.375) - torch.sqrt(n * mean + 0.375))
        return _compressed(difference) * (n > 0)

    def log_rate(y: Tensor, n: Tensor) -> Tensor:
        return torch.log((y + 0.375) / (n * mean + 0.375))

    # The layers see a longer exposure where rows lend photons: their mean is that of counts, not of the rate.
    times = None if alone is None else _at(FINEST, longer(*(F.avg_pool2d(n, 2**FINEST) for n in (exposure, alone[1]))))
    level = log_mean if times is None else log_mean + torch.log(times)

    def relative(n: Tensor) -> Tensor:
        return n if times is None else n / times

    inputs = [stabilised(counts, exposure), level / 4, relative(exposure).clamp(max=4)]
    log_rates = [log_rate(counts, exposure)]
    if mated:
        inputs.insert(1, stabilised(mate_counts, mate_exposure))
        inputs += [torch.log1p(relative(mate_exposure)) / 2, _at(FINEST, torch.log(both[0])) - log_mean]
        log_rates.append(log_rate(mate_counts, mate_exposure))
    pyramids = [own, both] if mated else [own]
    coarser = [
        _at(each - 1, torch.log(means[each - FINEST])) for means in pyramids for each in range(FINEST + 1, COARSEST)
    ]
    per_block = torch.cat(coarser, dim=1) - F.avg_pool2d(log_mean, 2)
    if alone is not None and times is not None:
        without = pyramid_means(*alone)
        apart = [torch.log(one) - torch.log(other) for one, other in zip(without, own, strict=True)]
        # All are zero where nothing is lent.
        lent = exposure - alone[1]
        inputs += [
            stabilised(*alone) * (lent > 0),
            lent / exposure.clamp(min=LEAST_EXPOSURE),
            _at(FINEST, apart[0]),
        ]
        log_rates.append(torch.log(times))
        further = [_at(each - 1, apart[each - FINEST]) for each in range(FINEST + 1, COARSEST)]
        per_block = torch.cat([per_block, *further], dim=1)
    return torch.cat(inputs + log_rates, dim=1), per_block, mean


def longer(exposure: Tensor, alone: Tensor) -> Tensor:
    """Return how many times longer an exposure is with photons of other rows, 1 where nothing was measured without.

    Parameters
    ----------
    exposure, alone
        Sums over blocks of 4 x 4 pixels with and without photons of other rows.
    """
    return torch.where(alone > 0, exposure / alone.clamp(min=LEAST_EXPOSURE), 1.0)


def _compressed(x: Tensor) -> Tensor:
    """Return 16 asinh(x / 16), linear for noise and logarithmic for peaks; ten times as fast as `torch.asinh`."""
    size = x.abs() / 16
    return torch.copysign(16 * torch.log1p(size + size.square() / (1 + torch.sqrt(size.square() + 1))), x)
