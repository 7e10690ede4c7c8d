"""The posterior of frames on one device: uploaded once, and downloaded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bluesky_symdenoise.denoiser.choices import Choices
from bluesky_symdenoise.denoiser.device.answer import Prior, posterior, result
from bluesky_symdenoise.denoiser.device.frame import Held, alike, held
from bluesky_symdenoise.denoiser.device.gate import Evidence, gated_mates
from bluesky_symdenoise.denoiser.device.inputs import Inputs
from bluesky_symdenoise.denoiser.device.layers import Layers
from bluesky_symdenoise.denoiser.device.rings import ring_mates
from bluesky_symdenoise.denoiser.sums import agreeing
from bluesky_symdenoise.physics.frame import Frame
from bluesky_symdenoise.physics.symmetry import Symmetry


def device_posterior(
    layers: Layers,
    frames: Sequence[Frame],
    symmetry: Symmetry,
    choices: Choices,
) -> NDArray[np.float32]:
    """Return expected counts and standard deviations, (frame, 2, y, x).

    Parameters
    ----------
    layers
        The network, on its device.
    frames
        Frames of one shape.
    """
    height, width = frames[0].counts.shape
    out = np.empty((len(frames), 2, height, width), np.float32)
    for kind, chosen in alike(frames).items():
        out[chosen] = _posterior(
            layers, held([frames[index] for index in chosen], layers.crew, kind), symmetry, choices
        )
    return out


def _posterior(layers: Layers, here: Held, symmetry: Symmetry, choices: Choices) -> NDArray[np.float32]:
    """Return expected counts and standard deviations of frames of one kind."""
    mates = None
    if symmetry.group == "inf" and symmetry.beam_center is not None:
        mates = ring_mates(here, symmetry)
    elif symmetry.operations:
        mates = gated_mates(here, symmetry)
    own, mates = _single(Evidence(here.counts, here.exposure)), None if mates is None else _single(mates)

    def prior(own: Evidence, mates: Evidence | None) -> Prior:
        return layers(Inputs(own, mates, layers.crew), part_pixels=choices.part_pixels)

    found = prior(own, mates) if choices.views == 1 else _averaged(prior, own, mates)
    weight, kappa, factor = posterior(own, found, layers.crew)
    if choices.agree:
        mean = found.mean * factor.float()
        each = zip(own.counts, own.exposure, kappa, mean, strict=True)
        for target, (y, n, shape, rate) in zip(weight, each, strict=True):
            y, n, shape, rate = (image[None, None] for image in (y, n, shape, rate))
            target.copy_((shape / agreeing(y, n, y, n, shape, rate, choices.ring))[0, 0])
    else:
        weight /= factor.float()
    height, width = here.shape
    out: NDArray[np.float32] = result(own, mates, kappa, weight, layers.crew)[:, :, :height, :width].cpu().numpy()
    return out


def _single(evidence: Evidence) -> Evidence:
    """Return evidence in float32, as the network takes it."""
    return Evidence(evidence.counts.float(), evidence.exposure.float())


def _averaged(prior: Callable[[Evidence, Evidence | None], Prior], own: Evidence, mates: Evidence | None) -> Prior:
    """Return the mean of priors over quarter turns and their mirror images: of means, and of logarithms of shapes."""
    total = Prior(torch.zeros_like(own.counts), torch.zeros_like(own.counts))
    views = list(product(range(4), (False, True)))
    for turns, mirrored in views:

        def turned(image: Tensor, turns: int = turns, mirrored: bool = mirrored) -> Tensor:
            image = torch.rot90(image, turns, (1, 2))
            return (image.flip(1) if mirrored else image).contiguous()

        def back(image: Tensor, turns: int = turns, mirrored: bool = mirrored) -> Tensor:
            return torch.rot90(image.flip(1) if mirrored else image, -turns, (1, 2))

        both = (None if each is None else Evidence(turned(each.counts), turned(each.exposure)) for each in (own, mates))
        seen, other = both
        assert seen is not None
        found = prior(seen, other)
        total.mean.add_(back(found.mean), alpha=1 / len(views))
        total.log_kappa.add_(back(found.log_kappa), alpha=1 / len(views))
    return total
