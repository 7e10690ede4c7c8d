"""Weights on disk: safetensors with their description, verified by sha256 when they are loaded."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from bluesky_symdenoise.denoiser import registry
from bluesky_symdenoise.denoiser.features import COARSEST
from bluesky_symdenoise.denoiser.identity import REMEDY, ModelFile, model_file, registered_file, sha256_of
from bluesky_symdenoise.denoiser.network import KNOWN_OUTPUTS, Architecture, PriorNet
from bluesky_symdenoise.errors import SymDenoiseError

#: Largest model file that is read, in bytes; ours are many times smaller.
LARGEST = 2**30


@dataclass(frozen=True)
class Model:
    """A network with its identity."""

    net: PriorNet
    name: str
    version: str
    sha256: str

    def identity(self) -> dict[str, str]:
        """Return name, version and sha256, as provenance records them."""
        return {"name": self.name, "version": self.version, "sha256": self.sha256}


def encode(net: PriorNet) -> bytes:
    """Return a network as the bytes of a safetensors file, architecture in its header; `decode` is the inverse."""
    state = {key: value.detach().cpu().contiguous() for key, value in net.state_dict().items()}
    # Write a single metadata entry: safetensors writes several in random order, which would change the sha256.
    return save(state, metadata={"architecture": json.dumps(net.architecture.to_dict())})


def decode(content: bytes) -> PriorNet:
    """Return the network in the bytes of a safetensors file, ready for use.

    Raises
    ------
    SymDenoiseError
        If they are not weights of this package: another format, other tensors, or values that are not finite.
    """
    try:
        state = load(content)
        architecture = Architecture.from_dict(json.loads(_header(content)["architecture"]))
        for each in (architecture, architecture.borrowing):
            if each is not None and len(each.channels) >= COARSEST:
                raise ValueError(f"frames are padded for fewer than {COARSEST} levels")
            if each is not None and each.outputs not in KNOWN_OUTPUTS:
                raise ValueError(f"{each.outputs} outputs per pixel")
        if architecture.borrowing is not None and (not architecture.borrowing.lent or architecture.borrowing.borrowing):
            raise ValueError("its network for frames that borrow photons is of another kind")
        # Build the shapes first, without memory: a header may claim a network of any size.
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
            "a safetensors file",
            rule=f"it is not a model of this package ({error})",
            remedy="give one that this package wrote",
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


def load_model(name: str | Path | None = None) -> Model:
    """Return a model by name, of the package or of the registry, or one in a safetensors file by its path.

    Raises
    ------
    SymDenoiseError
        If there is none of that name, the file is damaged, or its sha256 is not the one recorded beside it.
    """
    return _model(model_file(name))


def load_recorded(name: str, sha256: str, *, version: str | None = None) -> Model:
    """Return the model that a run was made with, by the sha256 of its weights, whatever it is called here.

    Parameters
    ----------
    name, version
        Name and version of the model in the run's provenance, for the message.

    Raises
    ------
    SymDenoiseError
        If this computer has no model with that sha256.
    """
    return _model(registered_file(registry.entry_by_sha256(name, sha256, version=version)))


def import_model(path: Path, *, name: str | None = None) -> registry.Entry:
    """Add a model that `symdenoise models export` or `symdenoise train` wrote to the registry.

    Nothing in the files is executed: weights are safetensors, of a known architecture, with the recorded sha256.

    Parameters
    ----------
    path
        The safetensors file; its record (.json) is beside it, and perhaps a card (.md).
    name
        By default the one in the record, with the version at its end where the package has that name for other weights.
        Weights that are here already are then left as they are.
    """
    if path.suffix != ".safetensors":
        raise SymDenoiseError(
            f"file {path}", rule="models are imported from .safetensors files only", remedy="give an exported model"
        )
    if path.is_file() and path.stat().st_size > LARGEST:
        raise SymDenoiseError(
            f"file {path}", rule=f"it has more than {LARGEST} bytes", remedy="give an exported model, which is small"
        )
    file = model_file(path)
    _model(file)
    card = path.with_suffix(".md")
    text = card.read_text() if card.is_file() else f"# Model card: {file.name}, version {file.version}\n"
    if name is None and (here := registry.found_by_sha256(file.sha256, first=file.name)) is not None:
        return here
    return registry.add(name or _own_name(file), file.content, file.record, text)


def _own_name(file: ModelFile) -> str:
    if file.name not in registry.available():
        return file.name
    return f"{file.name}-{re.sub('[^A-Za-z0-9_-]', '-', file.version)}"


def _model(file: ModelFile) -> Model:
    try:
        net = decode(file.content)
    except SymDenoiseError as error:
        raise SymDenoiseError(f"model {file.source}", rule=error.rule, remedy=REMEDY) from error
    return Model(net=net, name=file.name, version=file.version, sha256=file.sha256)


def _header(content: bytes) -> dict[str, str]:
    """Return the metadata of a safetensors file: its first 8 bytes are the length of a JSON header."""
    length = int.from_bytes(content[:8], "little")
    return dict(json.loads(content[8 : 8 + length])["__metadata__"])
