"""Weights on disk: safetensors with their description, checked by sha256 when they are loaded."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from bluesky_symdenoise.denoiser.network import Architecture, PriorNet
from bluesky_symdenoise.errors import SymDenoiseError

#: The model used where none is named.
DEFAULT_MODEL = "fast"


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


def sha256_of(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def encode(net: PriorNet) -> bytes:
    """A network as the bytes of a safetensors file, architecture in its header; `decode` is the inverse."""
    state = {key: value.detach().cpu().contiguous() for key, value in net.state_dict().items()}
    # One entry: safetensors writes several in random order, and the same weights would have many sha256.
    return save(state, metadata={"architecture": json.dumps(net.architecture.to_dict())})


def decode(content: bytes) -> PriorNet:
    """The network in the bytes of a safetensors file, ready for use.

    Raises
    ------
    SymDenoiseError
        If they are no weights of ours: another format, other tensors, or values that are not finite.
    """
    try:
        state = load(content)
        architecture = Architecture.from_dict(json.loads(_header(content)["architecture"]))
        # Shapes first, without memory: a header may claim a network of any size.
        with torch.device("meta"):
            claimed = {name: (value.shape, value.dtype) for name, value in PriorNet(architecture).state_dict().items()}
        if claimed != {name: (value.shape, value.dtype) for name, value in state.items()}:
            raise ValueError("its tensors are not those of its architecture")
        if not all(bool(value.isfinite().all()) for value in state.values()):
            raise ValueError("some of its weights are not finite")
        net = PriorNet(architecture)
        net.load_state_dict(state)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise SymDenoiseError(
            "a safetensors file", rule=f"it is no model of ours ({error})", remedy="take one that this package wrote"
        ) from error
    net.requires_grad_(False).eval()
    torch.nn.utils.convert_conv2d_weight_memory_format(net, torch.channels_last)
    return net


def save_weights(net: PriorNet, folder: Path, *, name: str, version: str, training: dict[str, Any]) -> Path:
    """Write ``folder/name.safetensors``, architecture in its header, and ``name.json`` with sha256 and training.

    Returns
    -------
    Path
        The safetensors file.
    """
    content = encode(net)
    path = folder / f"{name}.safetensors"
    path.write_bytes(content)
    described = {"name": name, "version": version, "sha256": sha256_of(content), "training": training}
    path.with_suffix(".json").write_text(json.dumps(described, indent=2) + "\n")
    return path


def available() -> list[str]:
    """Names of the models in the package."""
    return sorted(
        entry.name.removesuffix(".safetensors") for entry in _shipped().iterdir() if entry.name.endswith(".safetensors")
    )


def _shipped() -> Any:
    return files("bluesky_symdenoise.denoiser") / "models"


def load_model(name: str | Path | None = None) -> Model:
    """A model of the package by name, or one written by `save_weights` by the path of its safetensors file.

    Raises
    ------
    SymDenoiseError
        If there is none of that name, the file is damaged, or its sha256 is not the one recorded beside it.
    """
    if name is None or (isinstance(name, str) and not name.endswith(".safetensors")):
        wanted = name or DEFAULT_MODEL
        if wanted not in available():
            raise SymDenoiseError(
                f"model {wanted!r}",
                rule=f"the package has {', '.join(available()) or 'none'}",
                remedy="choose one of these, or give the path of a .safetensors file",
            )
        source: Any = _shipped() / f"{wanted}.safetensors"
        record: Any = _shipped() / f"{wanted}.json"
    else:
        source, record = Path(name), Path(name).with_suffix(".json")
    remedy = "install the package again, or write the file again with `symdenoise train`"
    try:
        content, described = source.read_bytes(), json.loads(record.read_text())
        recorded, name, version = (str(described[key]) for key in ("sha256", "name", "version"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SymDenoiseError(f"model {source}", rule=f"it cannot be read ({error})", remedy=remedy) from error
    digest = sha256_of(content)
    if digest != recorded:
        raise SymDenoiseError(
            f"model {source} with sha256 {digest[:12]}",
            rule=f"{record.name} records {recorded[:12]}: the file is damaged or was exchanged",
            remedy=remedy,
        )
    try:
        state = load(content)
        architecture = Architecture.from_dict(json.loads(_header(content)["architecture"]))
        net = PriorNet(architecture)
        net.load_state_dict(state)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise SymDenoiseError(f"model {source}", rule=f"it is no model of ours ({error})", remedy=remedy) from error
    net.requires_grad_(False).eval()
    torch.nn.utils.convert_conv2d_weight_memory_format(net, torch.channels_last)
    return Model(
        net=net,
        name=name,
        version=version,
        sha256=digest,
    )


def _header(content: bytes) -> dict[str, str]:
    """The metadata of a safetensors file: its first 8 bytes are the length of a JSON header."""
    length = int.from_bytes(content[:8], "little")
    return dict(json.loads(content[8 : 8 + length])["__metadata__"])
