"""Weights to begin a training from: those of a network with fewer inputs, outputs, or dead levels."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import nn

from bluesky_symdenoise.denoiser.features import LENT_FEATURES, PIXEL_FEATURES
from bluesky_symdenoise.denoiser.network import PriorNet
from bluesky_symdenoise.errors import SymDenoiseError


@torch.no_grad()
def begin_from(net: PriorNet, parent: PriorNet, *, what: str) -> None:
    """Give a network the weights of another one, whose function it then has.

    A network for frames that borrow photons begins with the parent's for these, if it has one. Outputs and inputs that
    the parent lacks get zero weights. Levels that only the network has leaky rectifiers in keep
    their random weights, and nothing of them reaches the finer levels yet: where the parent's rectifiers let nothing
    through, its coarse levels cannot be trained any more.

    Raises
    ------
    SymDenoiseError
        If the parent has another architecture, or more outputs.
    """
    parent = parent.borrowing or parent if net.architecture.lent else parent
    mine, theirs = net.architecture, replace(parent.architecture, borrowing=None)
    alike = replace(theirs, outputs=mine.outputs, lent=mine.lent, leaky_from=mine.leaky_from)
    if alike != mine or theirs.lent > mine.lent or theirs.outputs > mine.outputs:
        raise SymDenoiseError(
            f"initial weights {what}",
            rule=f"they have {theirs}",
            remedy="start from weights of the recipe's architecture",
        )
    state = parent.state_dict()
    reborn = mine.leaky_from if mine.leaky_from != theirs.leaky_from else None
    levels = len(mine.channels)
    for name, target in net.state_dict().items():
        part, index, *_ = name.split(".")
        level = 0 if part == "head" else int(index) if part == "down" else levels - 2 - int(index)
        if reborn is not None and level >= reborn:
            continue
        source = state[name]
        if source.shape == target.shape:
            target.copy_(source)
            continue
        target.zero_()
        if name == "down.0.0.weight":
            pixel = 4 * PIXEL_FEATURES
            target[:, :pixel] = source[:, :pixel]
            begin = pixel + 4 * LENT_FEATURES
            target[:, begin : begin + source.shape[1] - pixel] = source[:, pixel:]
        else:
            target[: len(source)] = source
    if reborn is not None and 0 < reborn < levels:
        join = _first(net.up[levels - 1 - reborn])
        deep = mine.channels[reborn]
        join.weight[:, :deep] = 0
        assert join.bias is not None
        join.bias += _constant(parent, levels - 1 - reborn, deep)


def joined(alone: PriorNet, borrowing: PriorNet | None) -> PriorNet:
    """Return a network with the weights of one for frames that borrow nothing, and of one for those that do."""
    architecture = replace(alone.architecture, borrowing=None if borrowing is None else borrowing.architecture)
    device = alone.head.weight.device
    both = PriorNet(architecture).to(device)
    state = {name: value for name, value in alone.state_dict().items() if not name.startswith("other.")}
    if borrowing is not None:
        state |= {f"other.{name}": value for name, value in borrowing.state_dict().items()}
    both.load_state_dict(state)
    return both


def _constant(parent: PriorNet, index: int, deep: int) -> torch.Tensor:
    """Return what the dead levels of a network add to a level's first layer: the same everywhere."""
    x = torch.zeros(1, parent.architecture.channels[-1], 8, 8, device=parent.head.weight.device)
    skips = list(reversed(parent.architecture.channels[:-1]))
    for block, width in zip(parent.up[:index], skips, strict=False):
        x = nn.functional.interpolate(x, scale_factor=2, mode="nearest")
        x = block(torch.cat([x, x.new_zeros(1, width, *x.shape[2:])], dim=1))
    middle = x[0, :, x.shape[2] // 2, x.shape[3] // 2]
    join = _first(parent.up[index])
    return join.weight[:, :deep].sum(dim=(2, 3)) @ middle


def _first(block: nn.Module) -> nn.Conv2d:
    """Return the first convolution of a level."""
    return cast(nn.Conv2d, next(block.children()))
