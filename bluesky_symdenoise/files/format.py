"""Definition of a file format, and the common form of its plain files: consecutive frames with a reader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.layout import is_colour

if TYPE_CHECKING:
    from bluesky_symdenoise.files.source import Source

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


@dataclass(frozen=True)
class Format:
    """A format of raw files: how plain, growing, announced and stored frames of it are read; None where they are not.

    Attributes
    ----------
    suffixes
        Endings of the names of its files, in lower case.
    mimetype
        Media type as Tiled and stream_resource documents name it.
    recognised
        Returns whether a file, by its content, is of this format; asked before any ending is looked at.
    parts
        Returns the frames of a plain file; its second argument is the name of the dataset that the user chose.
    growing
        Returns the rows of one file that a detector is writing.
    joined
        Returns the frames (k, y, x) or (y, x) that some complete files hold together, for a row announced in them.
    shape
        Returns the shape of all rows that a file holds; None where a file is never divided between rows.
    stored
        Returns one row (..., y, x) of a `Source`, whose files are not trusted: sizes and places are checked first.
    has_datasets
        Whether the frames are in a dataset of their file, which has a name.
    folder
        Whether what is named is a folder.
    """

    suffixes: tuple[str, ...] = ()
    mimetype: str | None = None
    recognised: Callable[[Path], bool] | None = None
    parts: Callable[[Path, str | None], list[Part]] | None = None
    growing: Callable[[Path, str, int | None, float], Rows] | None = None
    joined: Callable[[Sequence[Path]], Array] | None = None
    shape: Callable[[Path, str | None], tuple[int, ...]] | None = None
    stored: Callable[[Source, int], Array] | None = None
    has_datasets: bool = False
    folder: bool = False


class Rows(Protocol):
    """Rows of one file, also while a detector writes it."""

    def count(self) -> int:
        """Return how many whole rows are there now."""
        ...

    def read(self, index: int) -> Array:
        """Return a row in the shape that the file has; wait for one that is still to come."""
        ...


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


def sliced(array: Array) -> ReadFrames:
    """Return a reader of the frames of an array (..., y, x)."""
    frames = array.reshape(-1, *array.shape[-2:])
    return lambda start, stop: frames[start:stop]


@contextmanager
def readable(path: Path, what: str = "") -> Iterator[None]:
    """Turn any exception of a library about a bad file into one line that names the file."""
    try:
        yield
    except SymDenoiseError:
        raise
    except Exception as error:  # fabio raises nearly any exception, including AttributeError and AssertionError
        raise SymDenoiseError(
            f"{what}{path}",
            rule=f"cannot be read ({type(error).__name__}: {error})",
            remedy="check that it is complete and of a format that h5py, tifffile, numpy or fabio reads",
        ) from error
