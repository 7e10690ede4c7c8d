"""Losses that training minimises: the likelihood of held-out counts; for comparison, distances to a known rate."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from bluesky_symdenoise.denoiser.network import PriorNet, posterior

#: Smallest rate, counts per pixel, that is compared with a known truth.
LEAST_RATE = 1e-3


def _of_counts(a: Tensor, b: Tensor, target: Tensor, exposure: Tensor) -> Tensor:
    """Return -log negative binomial: log G(a) - log G(t + a) + log G(t + 1) - a log(b / (b + e)) - t log(e / (b + e)).

    For an expected number t, it is the mean over Poisson counts, to second order in their spread, without a term free
    of a and b: the curvature of log G(t + a) is nearly 1 / (t + a).
    """
    spread = torch.where(target == target.round(), 0.0, -target / (target + a) / 2)
    return spread + (
        torch.lgamma(a)
        - torch.lgamma(target + a)
        + torch.lgamma(target + 1)
        + a * torch.log1p(exposure / b)
        + target * torch.log1p(b / exposure)
    )


def _of_rate(a: Tensor, b: Tensor, rate: Tensor) -> Tensor:
    """Return -log Gamma density of the logarithm of the true rate."""
    scaled = b * rate.clamp(min=LEAST_RATE)
    return torch.lgamma(a) - a * torch.log(scaled) + scaled


def _squared(a: Tensor, b: Tensor, rate: Tensor) -> Tensor:
    """Return squared error of the mean, in units of the variance of the sample's mean count."""
    return (a / b - rate) ** 2 / rate.mean(dim=(1, 2, 3), keepdim=True).clamp(min=LEAST_RATE)


#: Losses by name: from which expected counts on a known truth replaces the counts as target, and the loss of such
#: pixels as a function of the posterior's shape and rate and of the true rate. None is the loss of counts.
LOSSES: dict[str, tuple[float, Callable[[Tensor, Tensor, Tensor], Tensor] | None]] = {
    "counts": (math.inf, None),
    "expected": (10.0, None),
    "rate": (0.0, _of_rate),
    "mse": (0.0, _squared),
}


def losses(
    net: PriorNet, batch: Tensor, *, bfloat16: bool, kind: str = "counts", bright_weight: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return the mean over the pixels of each sample, in float64, and the weights of the samples.

    Parameters
    ----------
    batch
        (sample, 8, y, x) as stacked by `bluesky_symdenoise.training.pairs.Sample`.
    kind
        One of `LOSSES`, for targets that are not whole numbers. For others, which were counted, it is the
        negative-binomial log-likelihood, given the posterior Gamma of the rate.
    bright_weight
        Exponent by which pixels weigh more in their sample's mean whose surroundings have more counts than the
        sample: the best output is unchanged, as the weight depends on the network's input and not on the target.
    """
    counts, exposure, mate_counts, mate_exposure, target, target_exposure, *lent = batch.split(1, dim=1)  # type: ignore[no-untyped-call]
    # A network that does not know other rows is trained without them.
    lent = lent if net.architecture.borrows else []
    with torch.autocast(batch.device.type, dtype=torch.bfloat16, enabled=bfloat16):
        shape, rate = posterior(net, counts, exposure, mate_counts, mate_exposure, *lent)
    seen = target_exposure > 0
    a, b, t, e = (
        each.double() for each in (shape, rate, torch.where(seen, target, 0.0), torch.where(seen, target_exposure, 1.0))
    )
    _, of_known = LOSSES[kind]
    of_pixel = _of_counts(a, b, t, e)
    if of_known is not None:
        of_pixel = torch.where(t == t.round(), of_pixel, of_known(a, b, t / e))
    pixels = seen * _brightness(counts, exposure) ** bright_weight if bright_weight else seen.double()
    per_sample = (of_pixel * pixels).sum(dim=(1, 2, 3)) / pixels.sum(dim=(1, 2, 3)).clamp(min=1)
    # The gradients of bright samples grow as the square root of their counts: these weights keep them from drowning
    # the others.
    weights = (1 + counts.double().mean(dim=(1, 2, 3)) / 10) ** -0.3
    return per_sample, weights


def weighted_loss(
    net: PriorNet, batch: Tensor, *, bfloat16: bool, kind: str = "counts", bright_weight: float = 0.0
) -> Tensor:
    """Return the mean of `losses` over a batch, with its weights."""
    per_sample, weights = losses(net, batch, bfloat16=bfloat16, kind=kind, bright_weight=bright_weight)
    return (per_sample * weights).mean()


def _brightness(counts: Tensor, exposure: Tensor) -> Tensor:
    """Return the mean rate of a pixel and its neighbours over its sample's, from 1 to 1000; darker ones give 1."""
    around = [F.avg_pool2d(image, 3, stride=1, padding=1) for image in (counts, exposure)]
    overall = [image.mean(dim=(1, 2, 3), keepdim=True) for image in (counts, exposure)]
    ratio = around[0] * overall[1] / (around[1] * overall[0]).clamp(min=1e-9)
    return torch.where(around[1] > 0, ratio, 1.0).clamp(1, 1000).double()
