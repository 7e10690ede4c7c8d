"""Rows of one HDF5 dataset, one at a time, also while a detector still writes them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  (registers the filters that detectors write with)
import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.errors import SymDenoiseError


class Patience:
    """Waits for what a detector is still writing.

    A file that was waited for once in vain gets no more time until one of its frames was read: a scan whose files
    are gone takes one wait, not one a frame.

    Parameters
    ----------
    seconds
        That a frame may take to appear.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._in_vain = seconds, False

    def read(self, attempt: Callable[[], NDArray[Any]], *, value: str, again: Callable[[], None]) -> NDArray[Any]:
        """What `attempt` returns, as soon as it does.

        Parameters
        ----------
        value
            What is read, for the error.
        again
            Called after each attempt that failed: lets go of a file that was opened too early.

        Raises
        ------
        SymDenoiseError
            If it does not appear in time.
        """
        deadline = time.monotonic() + (0.0 if self._in_vain else self._seconds)
        pause = 0.01
        while True:
            try:
                found = attempt()
            except SymDenoiseError:
                raise
            except (OSError, EOFError, KeyError, IndexError, ValueError) as error:
                again()
                if time.monotonic() > deadline:
                    self._in_vain = True
                    raise SymDenoiseError(
                        value,
                        rule=f"it was announced but could not be read for {self._seconds:g} s ({error})",
                        remedy="check that this computer sees the detector's files, then replay the run",
                    ) from error
            else:
                self._in_vain = False
                return found
            time.sleep(pause)
            pause = min(2 * pause, 0.5)


class Hdf5Rows:
    """Rows of one dataset, sliced by h5py: other readers load all of a contiguous or virtual dataset.

    Parameters
    ----------
    path
        Of the file; it is opened when a row is first read.
    dataset
        Its name in the file: rows stacked as (row, 1, y, x), or laid end to end as (frame, y, x).
    shape
        Of one row.
    patience
        Seconds that a row may take to appear.
    """

    def __init__(self, path: Path, dataset: str, shape: tuple[int, ...], *, patience: float) -> None:
        self._path, self._dataset_name, self._shape, self._patience = path, dataset, shape, Patience(patience)
        self._file: Any = None

    def read(self, index: int) -> NDArray[Any]:
        """Row ``index``; waits for a file that is still being written.

        Raises
        ------
        SymDenoiseError
            If the row does not appear in time.
        """
        return self._patience.read(
            lambda: self._read_now(index), value=f"frame {index} of {self._path}", again=self.close
        )

    def _read_now(self, index: int) -> NDArray[Any]:
        if self._file is None:
            self._file = open_for_reading(self._path)
        dataset = self._file[self._dataset_name]
        dataset.id.refresh()
        # Rows may be stacked as (row, 1, y, x) or laid end to end as (frame, y, x).
        if dataset.ndim > len(self._shape):
            wanted = slice(index, index + 1)
        else:
            per_row = self._shape[0]
            wanted = slice(index * per_row, (index + 1) * per_row)
        if wanted.stop > dataset.shape[0]:
            raise IndexError(f"the dataset has {dataset.shape[0]} rows so far")
        return np.asarray(dataset[wanted]).reshape(self._shape)

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def open_for_reading(path: Path) -> Any:
    """The HDF5 file, also while another process writes it."""
    try:
        return h5py.File(path, "r", libver="latest", swmr=True)
    except (OSError, ValueError):
        return h5py.File(path, "r")
