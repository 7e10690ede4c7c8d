"""An upgrade in small: an algorithm that only tests know is released beside those of today, and other weights."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr

from bluesky_symdenoise.denoiser import identity, released
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.denoiser.registry import Entry
from bluesky_symdenoise.denoiser.weights import load_model, save_weights

NEXT = "next"
#: What the next algorithm makes of every intensity.
FACTOR = 1.5


def next_algorithm(patch: pytest.MonkeyPatch) -> str:
    """Release an algorithm whose intensities are those of today's times `FACTOR`; return that of today."""
    today = released.newest()
    call = Denoiser.__call__

    def denoised(self: Denoiser, *arguments: Any, **options: Any) -> xr.Dataset:
        if self.algorithm != NEXT:
            return call(self, *arguments, **options)
        before = copy.copy(self)
        before.algorithm = today
        result = call(before, *arguments, **options)
        result["intensity"] = result["intensity"] * FACTOR
        result.attrs["algorithm"] = NEXT
        return result

    patch.setattr(Denoiser, "__call__", denoised)
    patch.setattr(released, "RELEASED", (*released.RELEASED, NEXT))
    patch.setattr(identity, "ALGORITHM", NEXT)
    return today


def other_weights(folder: Path, *, name: str = "fast", version: str = "4", by: float = 1.02) -> Path:
    """Write weights that are the shipped ones but for a factor of the last layer; return the safetensors file."""
    net = copy.deepcopy(load_model().net)
    with torch.no_grad():
        net.head.weight.mul_(by)
    folder.mkdir(parents=True, exist_ok=True)
    return save_weights(net, folder, name=name, version=version, training={})


def upgraded_package(patch: pytest.MonkeyPatch, folder: Path, *, name: str = "fast", version: str = "6") -> Entry:
    """Have the package ship other weights under the name of its own, as its next version might."""
    other_weights(folder, name=name, version=version, by=0.97)
    patch.setattr("bluesky_symdenoise.denoiser.registry._shipped", lambda: folder)
    record = json.loads((folder / f"{name}.json").read_text())
    return Entry(name, record, folder / f"{name}.safetensors", shipped=True)
