"""Models of one server process: each is loaded once per device, and one frame at a time goes through it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bluesky_symdenoise.denoiser.infer import Denoiser
    from bluesky_symdenoise.denoiser.weights import Model

#: The float64 arrays of a large frame take many times its memory, so only one frame is computed at a time.
INFERENCE = threading.BoundedSemaphore(1)
_LOADING = threading.Lock()


def served_denoiser(name: str, sha256: str, *, algorithm: str, device: str, threads: int) -> Denoiser:
    """Return the denoiser of a recipe's algorithm and weights, of the package or of the server's registry.

    Raises
    ------
    SymDenoiseError
        If the server has no such model or algorithm.
    """
    with _LOADING:
        return _denoiser(_Wanted(name, sha256), algorithm, device, threads)


@dataclass(frozen=True)
class _Wanted:
    """A model, identified without its name."""

    name: str = field(compare=False)
    sha256: str


@lru_cache(maxsize=16)
def _denoiser(wanted: _Wanted, algorithm: str, device: str, threads: int) -> Denoiser:
    # Torch takes seconds to import, and most servers are started without a lazy array being read.
    from bluesky_symdenoise.denoiser.infer import Denoiser

    return Denoiser(_model(wanted, device), device=device, threads=threads, algorithm=algorithm)


@lru_cache(maxsize=8)
def _model(wanted: _Wanted, device: str) -> Model:
    from bluesky_symdenoise.denoiser.weights import load_recorded

    # A network lives on one device, so that each device gets its own copy.
    return load_recorded(wanted.name, wanted.sha256)
