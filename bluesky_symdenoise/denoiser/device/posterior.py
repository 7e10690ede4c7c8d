"""The posterior of frames on one device: uploaded once, and downloaded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bluesky_symdenoise.denoiser.choices import Choices
from bluesky_symdenoise.denoiser.device.answer import Prior, posterior, result
from bluesky_symdenoise.denoiser.device.borrow import Borrowed, borrowed
from bluesky_symdenoise.denoiser.device.frame import Held, Kind, alike, held
from bluesky_symdenoise.denoiser.device.gate import Evidence, gated_mates
from bluesky_symdenoise.denoiser.device.inputs import Inputs
from bluesky_symdenoise.denoiser.device.layers import Layers
from bluesky_symdenoise.denoiser.device.pooled import pooled, total_kept, trusting
from bluesky_symdenoise.denoiser.device.rings import ring_mates
from bluesky_symdenoise.denoiser.sums import agreeing
from bluesky_symdenoise.physics.frame import Frame
from bluesky_symdenoise.physics.neighbours.lent import Lending
from bluesky_symdenoise.physics.symmetry import Symmetry

#: Exposures that networks were trained with which do not know other rows: of mates and these together.
OLD_EXPOSURES = 3.0


def device_posterior(
    layers: Layers,
    frames: Sequence[Frame],
    symmetry: Symmetry,
    choices: Choices,
    lent: Sequence[Borrowed | None] = (),
) -> NDArray[np.float32]:
    """Return expected counts and standard deviations, (frame, 2, y, x).

    Parameters
    ----------
    layers
        The network, on its device.
    frames
        Frames of one shape.
    lent
        What other rows lend to each frame; empty for nothing.
    """
    height, width = frames[0].counts.shape
    out = np.empty((len(frames), 2, height, width), np.float32)
    for kind, alike_ones in alike(frames).items():
        # A frame's bits do not depend on the frames that it is processed with.
        borrowing = [index for index in alike_ones if lent and lent[index] is not None]
        for chosen in (borrowing, [index for index in alike_ones if index not in borrowing]):
            if chosen:
                here = held([frames[index] for index in chosen], layers.crew, kind)
                found = [each for index in chosen if lent and (each := lent[index]) is not None]
                out[chosen] = _posterior(layers, here, symmetry, choices, _joined(found))
    return out


def lent_to(layers: Layers, frame: Frame, lending: Lending) -> Borrowed | None:
    """Return what other rows lend to a frame, or None if that is nothing; see `borrowed`."""
    if not len(lending.frames):
        return None
    kinds = [Kind.of(each) for each in (frame, *lending.frames)]
    kind = Kind(all(each.whole for each in kinds), all(each.few for each in kinds))
    own, others = (held(each, layers.crew, kind) for each in ([frame], lending.frames))
    found = borrowed(own, others, lending.offsets, same_flux=lending.same_flux)
    return found if found is None or lending.share == 1 else found.scaled(lending.share)


def _joined(found: Sequence[Borrowed]) -> Evidence | None:
    """Return what several frames borrow, as one batch."""
    if not found:
        return None
    evidence = [each.evidence for each in found]
    return Evidence(torch.cat([each.counts for each in evidence]), torch.cat([each.exposure for each in evidence]))


def _as_mates(mates: Evidence | None, lent: Evidence) -> Evidence:
    """Return mates and other rows together, worth at most `OLD_EXPOSURES`, for a network that knows mates only."""
    counts, exposure = lent.counts, lent.exposure
    if mates is not None:
        counts, exposure = counts + mates.counts, exposure + mates.exposure
    scale = OLD_EXPOSURES / exposure.clamp(min=OLD_EXPOSURES)
    return Evidence(counts * scale, exposure * scale)


def _posterior(
    layers: Layers, here: Held, symmetry: Symmetry, choices: Choices, lent: Evidence | None
) -> NDArray[np.float32]:
    """Return expected counts and standard deviations of frames of one kind."""
    mates, crew = None, layers.crew
    if symmetry.group == "inf" and symmetry.beam_center is not None:
        mates = ring_mates(here, symmetry)
    elif symmetry.operations:
        mates = gated_mates(here, symmetry)
    own, mates = _single(Evidence(here.counts, here.exposure)), None if mates is None else _single(mates)

    if lent is not None and layers.borrowing is None:
        mates, lent = _as_mates(mates, lent), None
    elif lent is not None and layers.borrowing is not None:
        layers = layers.borrowing
    others = [each for each in (mates, lent) if each is not None]

    def prior(own: Evidence, mates: Evidence | None, alone: Evidence | None) -> Prior:
        return layers(Inputs(own, mates, crew, alone), part_pixels=choices.part_pixels)

    known = (own, mates, None) if lent is None else (pooled(own, lent), mates, own)
    found = prior(*known) if choices.views == 1 else _averaged(prior, *known)
    used = own if lent is None or found.trust is None else trusting(own, lent, found.trust)
    weight, kappa, factor = posterior(used, found, crew)
    if choices.agree:
        mean = found.mean * factor.float()
        each = zip(used.counts, used.exposure, kappa, mean, strict=True)
        for target, (y, n, shape, rate) in zip(weight, each, strict=True):
            y, n, shape, rate = (image[None, None] for image in (y, n, shape, rate))
            target.copy_((shape / agreeing(y, n, y, n, shape, rate, choices.ring))[0, 0])
    else:
        weight /= factor.float()
    gain = None if lent is None else total_kept(own, used, kappa, weight, crew)
    height, width = here.shape
    out = result(own.exposure, used, others, kappa, weight, crew, gain)[:, :, :height, :width]
    return np.asarray(out.cpu().numpy())


def _single(evidence: Evidence) -> Evidence:
    """Return evidence in float32, as the network takes it."""
    return Evidence(evidence.counts.float(), evidence.exposure.float())


def _averaged(prior: Callable[..., Prior], own: Evidence, *others: Evidence | None) -> Prior:
    """Return the mean of priors over quarter turns and their mirror images: of means, and of logarithms."""
    total: Prior | None = None
    views = list(product(range(4), (False, True)))
    for turns, mirrored in views:

        def turned(image: Tensor, turns: int = turns, mirrored: bool = mirrored) -> Tensor:
            image = torch.rot90(image, turns, (1, 2))
            return (image.flip(1) if mirrored else image).contiguous()

        def back(image: Tensor, turns: int = turns, mirrored: bool = mirrored) -> Tensor:
            return torch.rot90(image.flip(1) if mirrored else image, -turns, (1, 2))

        found = prior(
            *(None if each is None else Evidence(turned(each.counts), turned(each.exposure)) for each in (own, *others))
        )
        if total is None:
            total = Prior(*(torch.zeros_like(own.counts) for _ in range(2)))
            total = total if found.trust is None else replace(total, trust=torch.zeros_like(own.counts))
        for target, each in zip(total.parts, found.parts, strict=True):
            if target is not None and each is not None:
                target.add_(back(each), alpha=1 / len(views))
    assert total is not None
    return total
