"""The recipe of a derived run, as a value: it is stored as provenance, hashed for identity, and replays the work."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from operator import index
from typing import Any
from uuid import UUID, uuid5

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.errors import SymDenoiseError

#: Fields that stored recipes may lack.
OPTIONAL = frozenset(
    {"beamline", "frames", "analysis", "defects", "views", "sums", "fold_sha256", "noise", "readout", "borrow"}
)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the pixels of a derived run, besides the raw run and the machine.

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
        Checksums of the arrays given with the recipe; None for none.
    streams, data_keys
        Names of streams and data keys to denoise; None for every 2D image.
    rounding
        Intensity is stored in steps of at most this fraction of sigma (a power of two).
    sigma_bits
        Bits of the mantissa kept of sigma.
    beamline
        ``quantity=name`` for each quantity that is looked up in the run's own documents, ``quantity=sha256`` for
        each file that was named; None for none.
    analysis
        What is computed from every frame besides its pixels, as `bluesky_symdenoise.Ring.to_text`; None for nothing.
    frames
        Rows of each stream that were asked for, as `chosen_frames` writes them; None for all. A part of a run thus has
        another uid than the whole.
    defects
        ``keep`` if hot and dead pixels that frames show are not masked; None if they are.
    views
        8 if the network's output is averaged over so many views of each frame; None for one.
    sums
        ``agree`` if sums over boxes and rings are corrected by the frame's own; None if they are not.
    fold_sha256
        Checksum of the given map of where mates may be used; None if frames alone decide.
    noise
        ``poisson`` if it was stated that frames are photon counts; None if that was tested.
    readout
        Readout that was stated, as ``attribute=value``, maps as ``attribute=sha256:...``; None for counts.
    borrow
        Rows that may lend photons to each other, such as ``both:8`` for eight on either side; None if none may.
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
    analysis: tuple[str, ...] | None = None
    frames: str | None = None
    defects: str | None = None
    views: int | None = None
    sums: str | None = None
    fold_sha256: str | None = None
    noise: str | None = None
    readout: tuple[str, ...] | None = None
    borrow: str | None = None

    def __post_init__(self) -> None:
        if self.beam_center is not None:
            y, x = self.beam_center
            object.__setattr__(self, "beam_center", (float(y), float(x)))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        # Omit optional fields that are None: recipes stored before these fields existed must keep their hash.
        return {key: value for key, value in values.items() if value is not None or key not in OPTIONAL}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Recipe:
        """Make the recipe from the values of `to_dict`.

        Raises
        ------
        SymDenoiseError
            If it has fields that this version does not know, as a newer one may have written.
        """
        unknown = sorted(set(stored) - {each.name for each in fields(cls)})
        if unknown:
            raise SymDenoiseError(
                f"recipe with {', '.join(map(str, unknown))[:80]}",
                rule="this version does not know what that changes",
                remedy="install the version of bluesky-symdenoise in the run's provenance, or a newer one",
            )
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()
        }
        return cls(**values)

    @property
    def rows(self) -> Sequence[int]:
        """Rows of each stream that are wanted, in order; a stream may have fewer."""
        return rows_of(self.frames)

    def rows_among(self, count: int) -> list[int]:
        """Return the wanted rows of a stream of this many rows."""
        return [row for row in self.rows[:count] if row < count]

    @property
    def sha256(self) -> str:
        """Sha256 of the canonical JSON of `to_dict`."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def derived_uid(self, raw_uid: str) -> str:
        """Return uuid5 of the raw run and this recipe, so that the same work has the same name."""
        try:
            return str(uuid5(UUID(raw_uid), self.sha256))
        except ValueError as error:
            raise SymDenoiseError(
                f"run uid {raw_uid!r}",
                rule="it must be a UUID, as Bluesky makes them",
                remedy="export the run with a UUID",
            ) from error


def array_sha256(array: NDArray[Any]) -> str:
    """Return the SHA-256 of an array's dtype, shape and C-ordered bytes."""
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def chosen_frames(frames: slice | range | Sequence[int] | None) -> str | None:
    """Return the canonical text for rows of a stream: ``first:stop:step``, ``5::1`` to the end, or ``0,3,9``.

    Parameters
    ----------
    frames
        Rows, counted from 0; their order does not matter. None, and a slice that is the whole, give None.

    Raises
    ------
    SymDenoiseError
        If the value is invalid, or counts from the end: the length of a stream may not be known before its end.
    """
    if frames is None:
        return None
    if isinstance(frames, slice):
        first, step = frames.start or 0, 1 if frames.step is None else frames.step
        if first < 0 or step < 1 or (frames.stop or 0) < 0:
            raise _from_the_end(frames)
        if frames.stop is None:
            return None if (first, step) == (0, 1) else f"{first}::{step}"
        frames = range(first, frames.stop, step)
    try:
        rows = sorted({index(row) for row in frames})
    except TypeError as error:
        raise SymDenoiseError(
            f"rows={frames!r}", rule="it must be a slice, a range or a list of rows", remedy="give slice(0, 100)"
        ) from error
    if not rows or rows[0] < 0:
        raise _from_the_end(frames)
    step = rows[1] - rows[0] if len(rows) > 1 else 1
    if rows == list(range(rows[0], rows[-1] + 1, step)):
        return f"{rows[0]}:{rows[-1] + 1}:{step}"
    return ",".join(map(str, rows))


def rows_of(frames: str | None) -> Sequence[int]:
    """Return the rows, in order, that a text from `chosen_frames` stands for; None, and ``5::1``, have no end."""
    if frames is None:
        return range(sys.maxsize)
    if ":" not in frames:
        return tuple(map(int, frames.split(",")))
    first, stop, step = frames.split(":")
    return range(int(first), int(stop) if stop else sys.maxsize, int(step))


def _from_the_end(frames: object) -> SymDenoiseError:
    return SymDenoiseError(
        f"rows={frames!r}", rule="it must name at least one row, counted from 0", remedy="give slice(0, 100)"
    )
