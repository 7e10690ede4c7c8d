"""Weights on disk: safetensors with their description, checked by sha256 when they are loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from bluesky_symdenoise.denoiser.identity import REMEDY, model_file, sha256_of
from bluesky_symdenoise.denoiser.network import Architecture, PriorNet
from bluesky_symdenoise.errors import SymDenoiseError


@dataclass(frozen=True)
class Model:
    """A network with its identity."""

    net: PriorNet
    name: str
    version: str
    sha256: str

    def identity(self) -> dict[str, str]:
        """Name, version and sha256, as provenance records them."""
        return {"name": self.name, "version": self.version, "sha256": self.sha256}


def save_weights(net: PriorNet, folder: Path, *, name: str, version: str, training: dict[str, Any]) -> Path:
    """Write ``folder/name.safetensors``, architecture in its header, and ``name.json`` with sha256 and training.

    Returns
    -------
    Path
        The safetensors file.
    """
    state = {key: value.detach().cpu().contiguous() for key, value in net.state_dict().items()}
    # One entry: safetensors writes several in random order, and the same weights would have many sha256.
    content = save(state, metadata={"architecture": json.dumps(net.architecture.to_dict())})
    path = folder / f"{name}.safetensors"
    path.write_bytes(content)
    described = {"name": name, "version": version, "sha256": sha256_of(content), "training": training}
    path.with_suffix(".json").write_text(json.dumps(described, indent=2) + "\n")
    return path


def load_model(name: str | Path | None = None) -> Model:
    """A model of the package by name, or one written by `save_weights` by the path of its safetensors file.

    Raises
    ------
    SymDenoiseError
        If there is none of that name, the file is damaged, or its sha256 is not the one recorded beside it.
    """
    file = model_file(name)
    try:
        state = load(file.content)
        architecture = Architecture.from_dict(json.loads(_header(file.content)["architecture"]))
        net = PriorNet(architecture)
        net.load_state_dict(state)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise SymDenoiseError(
            f"model {file.source}", rule=f"it is no model of ours ({error})", remedy=REMEDY
        ) from error
    net.requires_grad_(False).eval()
    torch.nn.utils.convert_conv2d_weight_memory_format(net, torch.channels_last)
    return Model(net=net, name=file.name, version=file.version, sha256=file.sha256)


def _header(content: bytes) -> dict[str, str]:
    """The metadata of a safetensors file: its first 8 bytes are the length of a JSON header."""
    length = int.from_bytes(content[:8], "little")
    return dict(json.loads(content[8 : 8 + length])["__metadata__"])
