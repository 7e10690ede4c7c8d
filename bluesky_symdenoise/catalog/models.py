"""The models of one server process: each is loaded once a device, and one frame at a time goes through it."""

from __future__ import annotations

import os
import threading
from functools import lru_cache
from pathlib import Path

from bluesky_symdenoise.denoiser.identity import available
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.denoiser.weights import Model, load_model
from bluesky_symdenoise.errors import SymDenoiseError

#: Folder with further models, name.safetensors beside name.json, on the server.
MODELS_VARIABLE = "SYMDENOISE_MODELS"

#: The arrays of a large frame in float64 are many times the frame: only one frame has them at a time.
INFERENCE = threading.BoundedSemaphore(1)
_LOADING = threading.Lock()


def served_denoiser(name: str, sha256: str, *, device: str, threads: int) -> Denoiser:
    """The denoiser with the model of this name and sha256.

    Raises
    ------
    SymDenoiseError
        If the server has no such model, or one with another sha256.
    """
    with _LOADING:
        denoiser = _denoiser(name, device, threads)
    if denoiser.model.sha256 != sha256:
        raise SymDenoiseError(
            f"model {name} with sha256 {denoiser.model.sha256[:12]}",
            rule=f"the run was registered with {sha256[:12]}",
            remedy="install the version of bluesky-symdenoise in its provenance on the server, or register it again",
        )
    return denoiser


@lru_cache(maxsize=16)
def _denoiser(name: str, device: str, threads: int) -> Denoiser:
    return Denoiser(_model(name, device), device=device, threads=threads)


@lru_cache(maxsize=8)
def _model(name: str, device: str) -> Model:
    # A network lives on one device: each device has its own.
    further = os.environ.get(MODELS_VARIABLE)
    if name in available() or not further:
        return load_model(name)
    path = Path(further) / f"{name}.safetensors"
    if not path.is_file():
        raise SymDenoiseError(
            f"model {name!r}",
            rule=f"this server has {', '.join(available())} and those of {MODELS_VARIABLE}",
            remedy=f"put {name}.safetensors and {name}.json into that folder",
        )
    return load_model(path)
