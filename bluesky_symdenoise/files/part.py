"""Common form of every file format: consecutive frames, and how to read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.layout import is_colour

Array = NDArray[Any]
ReadFrames = Callable[[int, int], Array]
"""Frames (k, H, W) from a start to a stop."""


@dataclass(frozen=True)
class Part:
    """Consecutive frames of one dataset of one file, the file's metadata about them, and how to open it."""

    path: Path
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    open: Callable[[], AbstractContextManager[ReadFrames]]
    linked: tuple[Path, ...] = ()
    mask: NDArray[np.bool_] | None = None
    beam_center: tuple[float, float] | None = None
    symmetry: str | None = None


def stack_shape(shape: Sequence[int], dtype: np.dtype[Any], what: str) -> tuple[int, int, int]:
    """Return (n, H, W) for the shape of stored frames: (H, W), (n, H, W) or (n, 1, H, W)."""
    if is_colour(shape):
        raise SymDenoiseError(
            f"{what} of shape {tuple(shape)}",
            rule="colour images hold no counts",
            remedy="give the detector's own files",
        )
    match tuple(shape):
        case (int(h), int(w)):
            n = 1
        case (int(n), int(h), int(w)) | (int(n), 1, int(h), int(w)):
            pass
        case _:
            raise SymDenoiseError(
                f"{what} of shape {tuple(shape)}",
                rule="frames are stored as (y, x), (frame, y, x) or (frame, 1, y, x)",
                remedy="name another dataset or convert the file",
            )
    if dtype.kind not in "buif":
        raise SymDenoiseError(
            f"{what} of type {dtype}", rule="pixels must be real numbers", remedy="name another dataset"
        )
    if n * h * w == 0:
        raise SymDenoiseError(
            f"{what} of shape {tuple(shape)}", rule="holds no frame", remedy="check that data was written"
        )
    return n, h, w


@contextmanager
def readable(path: Path, what: str = "") -> Iterator[None]:
    """Turn any exception of a library about a bad file into one line that names the file."""
    try:
        yield
    except SymDenoiseError:
        raise
    except Exception as error:  # fabio raises nearly anything, AttributeError and AssertionError included
        raise SymDenoiseError(
            f"{what}{path}",
            rule=f"cannot be read ({type(error).__name__}: {error})",
            remedy="check that it is complete and of a format that h5py, tifffile, numpy or fabio reads",
        ) from error
