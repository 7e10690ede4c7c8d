"""Identity of a model without loading it: its file is checked here, which does not need torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bluesky_symdenoise.denoiser import registry
from bluesky_symdenoise.denoiser.released import RELEASED
from bluesky_symdenoise.errors import SymDenoiseError

#: Name of the default model.
DEFAULT_MODEL = "fast"
#: Algorithm of new work, part of every recipe; see `bluesky_symdenoise.denoiser.released`.
ALGORITHM = RELEASED[-1]
#: Remedy for a model file that cannot be used.
REMEDY = "install the package again, import the model again, or write the file again with `symdenoise train`"


@dataclass(frozen=True)
class ModelFile:
    """A file of weights whose sha256 is the recorded one.

    Attributes
    ----------
    content
        The bytes of the safetensors file.
    source
        The file.
    record
        The record stored beside it.
    """

    name: str
    version: str
    sha256: str
    content: bytes
    source: Any
    record: dict[str, Any]


def sha256_of(content: bytes) -> str:
    """Return the SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def model_file(name: str | Path | None = None) -> ModelFile:
    """Return a model by name, of the package or of the registry, or one in a safetensors file by its path.

    Raises
    ------
    SymDenoiseError
        If there is none of that name, or its sha256 is not the one recorded beside it.
    """
    if name is None or (isinstance(name, str) and not name.endswith(".safetensors")):
        return registered_file(registry.entry(name or DEFAULT_MODEL))
    return _checked(Path(name), Path(name).with_suffix(".json"))


def registered_file(entry: registry.Entry) -> ModelFile:
    """Return a model of the package or of the registry; raises as `model_file` does."""
    return _checked(entry.weights, entry.weights.parent / f"{entry.name}.json")


def _checked(source: Any, record: Any) -> ModelFile:
    try:
        content, described = source.read_bytes(), json.loads(record.read_text())
        recorded, name, version = (str(described[key]) for key in ("sha256", "name", "version"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SymDenoiseError(f"model {source}", rule=f"it cannot be read ({error})", remedy=REMEDY) from error
    digest = sha256_of(content)
    if digest != recorded:
        raise SymDenoiseError(
            f"model {source} with sha256 {digest[:12]}",
            rule=f"{record.name} records {recorded[:12]}: the file is damaged or was replaced",
            remedy=REMEDY,
        )
    return ModelFile(name=name, version=version, sha256=digest, content=content, source=source, record=described)
