"""What was asked for, as a value: it is stored as provenance, hashed for identity, and replays the work."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID, uuid5

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.errors import SymDenoiseError


@dataclass(frozen=True)
class Recipe:
    """All that decides the pixels of a derived run, beside the raw run and the machine.

    Attributes
    ----------
    model_sha256
        Identity of the weights.
    algorithm
        Version of the computation around them.
    symmetry
        ``auto`` or a point group; ``auto`` is resolved with the first frame of each data key of a run.
    beam_center
        (y, x) in pixels or None.
    mask_sha256, exposure_sha256
        Of the arrays given with the recipe; None for none.
    streams, data_keys
        Names of those to denoise; None for every 2D image.
    rounding
        Intensity is stored in steps of at most this fraction of sigma (a power of two).
    sigma_bits
        Bits of the mantissa kept of sigma.
    beamline
        ``quantity=name`` for each quantity that is looked up in the run's own documents, ``quantity=sha256`` for
        each file that was named; None for none.
    """

    model_sha256: str
    algorithm: str
    symmetry: str = "auto"
    beam_center: tuple[float, float] | None = None
    mask_sha256: str | None = None
    exposure_sha256: str | None = None
    streams: tuple[str, ...] | None = None
    data_keys: tuple[str, ...] | None = None
    rounding: float = 1 / 8
    sigma_bits: int = 2
    beamline: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.beam_center is not None:
            y, x = self.beam_center
            object.__setattr__(self, "beam_center", (float(y), float(x)))

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        # Younger than recipes that were stored without it, whose hash must stay.
        return values if self.beamline is not None else {k: v for k, v in values.items() if k != "beamline"}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Recipe:
        """The inverse of `to_dict`."""
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()
        }
        return cls(**values)

    @property
    def sha256(self) -> str:
        """Of the canonical JSON of `to_dict`."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def derived_uid(self, raw_uid: str) -> str:
        """uuid5 of the raw run and this recipe: the same work has the same name."""
        try:
            return str(uuid5(UUID(raw_uid), self.sha256))
        except ValueError as error:
            raise SymDenoiseError(
                f"run uid {raw_uid!r}",
                rule="it must be a UUID, as Bluesky makes them",
                remedy="export the run with one",
            ) from error


def array_sha256(array: NDArray[Any]) -> str:
    """SHA-256 of an array's dtype, shape and C-ordered bytes."""
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
