"""Rows of a stored image in untrusted files, which must be unchanged since they were registered."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.checks import refuse_outside
from bluesky_symdenoise.files.format import Format
from bluesky_symdenoise.files.formats import by_mimetype

#: Modification time in ns and size in bytes of a file.
Stamp = tuple[int, int]


@dataclass(frozen=True)
class Source:
    """Rows of an image in one file, in a sequence of files, or in a folder.

    Attributes
    ----------
    mimetype
        Media type as Tiled names it.
    paths
        Files in the order of their rows, or one folder.
    roots
        Folders, resolved, that the files and all they refer to must lie in; one for each path.
    stamps
        Stamp of each path when it was registered.
    shape, dtype
        Shape and dtype of all rows (row, ..., y, x), as registered.
    dataset
        Name of the dataset in each file, where the format has names for them.
    """

    mimetype: str
    paths: tuple[Path, ...]
    roots: tuple[Path, ...]
    stamps: tuple[Stamp, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    dataset: str | None = None

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape (..., y, x) of one row."""
        return self.shape[1:]

    def identity(self, row: int, others: Iterable[int] = ()) -> tuple[Any, ...]:
        """Return what distinguishes this row from any other row of any source: its files as they are now.

        Parameters
        ----------
        others
            Rows whose files count, too, because the row is computed from them as well.

        Raises
        ------
        SymDenoiseError
            If a file is gone, has changed since it was registered, or a link leads elsewhere.
        """
        own = self.files(row)
        also = dict.fromkeys(number for other in others for number in self.files(other) if number not in own)
        return tuple(self._checked(number) for number in (*own, *also)), self.dataset, self.shape, row

    def read(self, row: int) -> NDArray[Any]:
        """Return one row (..., y, x).

        Raises
        ------
        SymDenoiseError
            If it cannot be read, or its files are not what was registered.
        """
        read = self._format.stored
        if read is None:
            raise SymDenoiseError(
                f"an image in {self.mimetype}", rule="the server does not read it", remedy="replay the run"
            )
        try:
            return read(self, row)
        except FileNotFoundError as error:
            raise _gone(self.paths[0]) from error
        except (OSError, KeyError, ValueError, IndexError, TypeError, RuntimeError, ArithmeticError) as error:
            if isinstance(error, SymDenoiseError):
                raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise SymDenoiseError(
                f"row {row} of {self.paths[0].name}",
                rule=f"it cannot be read ({reason})",
                remedy="check the raw run's files",
            ) from error

    @property
    def _format(self) -> Format:
        return by_mimetype(self.mimetype) or Format()

    def path(self, number: int) -> Path:
        """Return the path of a file, resolved.

        Raises
        ------
        SymDenoiseError
            If the file is gone, has changed since it was registered, or a link leads elsewhere.
        """
        return Path(self._checked(number)[0])

    def files(self, row: int) -> Sequence[int]:
        """Return the numbers of the files that hold a row."""
        if len(self.paths) == 1:
            return (0,)
        if self._format.shape is None or len(self.paths) == self.shape[0]:
            each = len(self.paths) // self.shape[0]
            return range(row * each, (row + 1) * each)
        return [number for number, _ in self.pieces(row)]

    def pieces(self, row: int) -> list[tuple[int, slice]]:
        """Return which part of which file holds a row, where files follow each other along their first axis."""
        first = self._stored_shape(0)
        per_row = math.prod(self.row_shape[: len(self.row_shape) - (len(first) - 1)])
        start, stop, pieces, offset = row * per_row, (row + 1) * per_row, [], 0
        if len(self.paths) == 1:
            return [(0, slice(start, stop))]
        for number in range(len(self.paths)):
            length = self._stored_shape(number)[0]
            low, high = max(start - offset, 0), min(stop - offset, length)
            if low < high:
                pieces.append((number, slice(low, high)))
            offset += length
            if offset >= stop:
                return pieces
        raise SymDenoiseError(
            f"row {row}", rule=f"the {len(self.paths)} files end before it", remedy="check the raw run's files"
        )

    def wrong_shape(self, shape: Sequence[int], dtype: Any) -> SymDenoiseError:
        """Return the error that a file holds something else than was registered."""
        return SymDenoiseError(
            f"file {self.paths[0].name} with {dtype} of shape {tuple(shape)}",
            rule=f"{self.dtype} in rows of {self.row_shape} were registered",
            remedy="delete the derived run and register it again",
        )

    def _stored_shape(self, number: int) -> tuple[int, ...]:
        return _shape(self._checked(number), self.mimetype, self.dataset)

    def _checked(self, number: int) -> tuple[str, Stamp]:
        path, root = self.paths[number], self.roots[number]
        try:
            resolved = path.resolve(strict=True)
            found = stamp(resolved)
        except (OSError, RuntimeError) as error:
            raise _gone(path) from error
        refuse_outside(resolved, root, path.name)
        if found != self.stamps[number]:
            raise SymDenoiseError(
                f"file {path.name}",
                rule="it has changed since the run was registered",
                remedy="delete the derived run and register it again",
            )
        return str(resolved), found


def stamp(path: Path) -> Stamp:
    """Return last change in ns and size in bytes of a file, or of all files in a folder."""
    if not path.is_dir():
        status = path.stat()
        return status.st_mtime_ns, status.st_size
    newest, size = 0, 0
    for folder, _, names in os.walk(path):
        for name in names:
            status = os.lstat(os.path.join(folder, name))
            newest, size = max(newest, status.st_mtime_ns), size + status.st_size
    return newest, size


def _gone(path: Path) -> SymDenoiseError:
    return SymDenoiseError(f"file {path.name}", rule="it is gone", remedy="put it back where it was, unchanged")


@lru_cache(maxsize=4096)
def _shape(file: tuple[str, Stamp], mimetype: str, dataset: str | None) -> tuple[int, ...]:
    """Return the shape of all rows in a file as stamped."""
    of = by_mimetype(mimetype)
    if of is None or of.shape is None:
        raise ValueError(f"files of {mimetype} are not divided between rows")
    return of.shape(Path(file[0]), dataset)
