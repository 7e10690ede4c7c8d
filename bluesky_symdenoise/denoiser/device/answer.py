"""From the last layer's output to the prior, and from it to the posterior, some rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bluesky_symdenoise.denoiser.bands import FLUX_DAMPING, FLUX_ITERATIONS
from bluesky_symdenoise.denoiser.network import CONFLICT, PriorNet, combined

if TYPE_CHECKING:
    from bluesky_symdenoise.denoiser.device.crew import Crew
    from bluesky_symdenoise.denoiser.device.gate import Evidence
    from bluesky_symdenoise.denoiser.device.inputs import Inputs


@dataclass(frozen=True)
class Prior:
    """Gamma prior of each pixel's rate, (batch, y, x) float32.

    Attributes
    ----------
    mean
        Its mean.
    log_kappa
        Logarithm of its shape.
    trust
        Logit of the share of other rows' photons that is used, less `TRUST`; None where nothing is lent.
    """

    mean: Tensor
    log_kappa: Tensor
    trust: Tensor | None = None

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """The three images."""
        return self.mean, self.log_kappa, self.trust

    @classmethod
    def empty(cls, like: Tensor, *, trust: bool) -> Prior:
        """Return a prior whose values are still to be written."""
        return cls(torch.empty_like(like), torch.empty_like(like), torch.empty_like(like) if trust else None)


def answer(net: PriorNet, x: Tensor, inputs: Inputs, prior: Prior, first: int, crew: Crew) -> None:
    """Write the prior of rows of pixels, from the first one on.

    Parameters
    ----------
    x
        Output of the last layer but one, (batch, channels, rows / 2, x / 2).
    """
    head = net.head
    assert head.bias is not None
    batch, channels, rows, columns = x.shape
    weight = head.weight.view(-1, channels).T
    for start, stop in crew.rows(2 * rows, 2 * columns, step=4):
        part = slice(first + start, first + stop)
        flat = x[:, :, start // 2 : stop // 2].permute(0, 2, 3, 1).reshape(-1, channels).to(weight.dtype)
        out = torch.addmm(head.bias, flat, weight).view(batch, (stop - start) // 2, columns, -1)
        outputs = _shuffled(out)
        ratio, log_kappa = combined(
            outputs,
            inputs.log_mean[:, part],
            inputs.rates(part),
            (inputs.log_mean if inputs.level is None else inputs.level)[:, part],
            inputs.seen[:, part.start : part.stop + 2],
        )
        torch.exp(ratio.add_(inputs.log_mean[:, part]), out=prior.mean[:, part])
        prior.log_kappa[:, part] = log_kappa
        if prior.trust is not None:
            prior.trust[:, part] = outputs[-1]


def _shuffled(out: Tensor) -> list[Tensor]:
    """Return each output of the pixels of blocks, (batch, y/2, x/2, 4 outputs), as (batch, y, x)."""
    batch, rows, columns, outputs = out.shape
    # Two columns are moved as one element of 64 bits.
    pairs = out.view(torch.float64)
    planes = out.new_empty((outputs // 4, batch, 2 * rows, 2 * columns))
    for index, plane in enumerate(planes):
        wide = plane.view(torch.float64)
        for below in range(2):
            wide[:, below::2] = pairs[..., 2 * index + below]
    return list(planes)


def posterior(own: Evidence, prior: Prior, crew: Crew) -> tuple[Tensor, Tensor, Tensor]:
    """Return a frame's posterior without what its sums tell.

    Returns
    -------
    tuple of Tensor
        (batch, y, x) exposure that the prior is worth before the factor, kappa / mean; its shape kappa, reduced where
        own counts refute it (`bluesky_symdenoise.denoiser.network.unrefuted`); and (batch, 1, 1) the factor of the
        mean that makes the frame's expected counts add up to its counts.
    """
    weight, kappa = torch.empty_like(prior.mean), torch.empty_like(prior.mean)
    _, height, width = weight.shape
    parts = [slice(*rows) for rows in crew.rows(height, width, step=2)]

    def refuted(part: slice) -> Tensor:
        mean, counts, exposure = prior.mean[:, part], own.counts[:, part], own.exposure[:, part]
        expected = exposure * mean
        away = torch.sqrt(counts + 0.375).sub_(torch.sqrt(expected + 0.375)).mul_(2 / CONFLICT).square_().sub_(1)
        shape = torch.exp(prior.log_kappa[:, part])
        # min(kappa, expected / away) where away > 0: nan is 0 / 0, where nothing was measured.
        reduced = shape / (shape * away / expected).nan_to_num_(nan=0.0).clamp_(min=1)
        kappa[:, part] = reduced
        weight[:, part] = reduced / mean
        return counts.sum(dim=(1, 2), keepdim=True, dtype=torch.float64)

    def expected(part: slice) -> Tensor:
        exposure = own.exposure[:, part]
        rate = torch.addcmul(exposure, weight[:, part], (1 / factor).float())
        counts = (own.counts[:, part] + kappa[:, part]).mul_(exposure).div_(rate)
        return counts.sum(dim=(1, 2), keepdim=True, dtype=torch.float64)

    total = torch.stack(crew.each(refuted, parts)).sum(dim=0)
    factor = torch.ones_like(total)
    for _ in range(FLUX_ITERATIONS):
        now = torch.stack(crew.each(expected, parts)).sum(dim=0)
        factor = factor * (total + FLUX_DAMPING) / (now + FLUX_DAMPING)
    return weight, kappa, factor


def result(
    exposure: Tensor,
    used: Evidence,
    others: Sequence[Evidence],
    kappa: Tensor,
    weight: Tensor,
    crew: Crew,
    gain: Tensor | None = None,
) -> Tensor:
    """Return expected counts and their standard deviation, (batch, 2, y, x); NaN where nothing was measured.

    Parameters
    ----------
    exposure
        Of the pixels.
    used
        Counts and exposures of the pixels, with those of other rows as far as they are used.
    others
        Mates, and what other rows lend, as far as there are any.
    kappa, weight
        Shape of the prior, and the exposure that it is worth: kappa / mean.
    gain
        (batch, 1, 1) factor of the result; None for 1.
    """
    batch, height, width = kappa.shape
    out = kappa.new_empty((batch, 2, height, width))

    def task(rows: tuple[int, int]) -> None:
        part = slice(*rows)
        own = exposure[:, part]
        shape = used.counts[:, part] + kappa[:, part]
        # A pixel seen only by its mates or in other rows is returned at the median exposure, which is 1.
        measured = own.sign()
        scale = (own + (1 - measured)).div_(used.exposure[:, part] + weight[:, part])
        seen = measured
        for other in others:
            seen = seen + other.exposure[:, part]
        # 0 / 0 is NaN.
        scale.mul_(seen / seen)
        if gain is not None:
            scale.mul_(gain)
        torch.mul(shape, scale, out=out[:, 0, part])
        torch.mul(shape.sqrt_(), scale, out=out[:, 1, part])

    crew.each(task, crew.rows(height, width, step=2))
    return out
