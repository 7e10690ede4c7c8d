"""Rows of one HDF5 dataset, one at a time, also while a detector still writes them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.opened import open_for_reading
from bluesky_symdenoise.files.virtual import missing_source


class Patience:
    """Wait for data that a detector is still writing.

    After one failed wait, a file gets no more time until one of its frames was read: a scan whose files are gone
    costs one wait, not one per frame.

    Parameters
    ----------
    seconds
        Time in seconds that a frame may take to appear.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._in_vain = seconds, False

    def read(
        self, attempt: Callable[[], NDArray[Any]], *, value: str, again: Callable[[], None] = lambda: None
    ) -> NDArray[Any]:
        """Return what `attempt` returns, as soon as it succeeds.

        Parameters
        ----------
        value
            Name of what is read, for the error.
        again
            Called after each failed attempt: closes a file that was opened too early.

        Raises
        ------
        SymDenoiseError
            If the data do not appear in time.
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
        Path of the file, which is opened for each row and closed again.
    dataset
        Name of the dataset in the file: rows stacked as (row, 1, y, x), or laid end to end as (frame, y, x).
    frames
        Number of frames in one row, if rows are laid end to end; None if that is not known.
    patience
        Seconds that a row may take to appear.
    """

    def __init__(self, path: Path, dataset: str, *, frames: int | None, patience: float) -> None:
        self._path, self._dataset_name, self._frames, self._patience = path, dataset, frames, Patience(patience)

    def count(self) -> int:
        """Return how many whole rows the dataset has now; 0 while it cannot be read, or has none."""
        try:
            with open_for_reading(self._path) as file:
                dataset = file[self._dataset_name]
                if not isinstance(dataset, h5py.Dataset) or not dataset.shape:
                    return 0
                return int(dataset.shape[0]) // self._per_row(dataset)
        except (OSError, KeyError, ValueError, RuntimeError):
            return 0

    def read(self, index: int) -> NDArray[Any]:
        """Return row ``index`` in the shape that the file has; wait for a file that is still being written.

        Raises
        ------
        SymDenoiseError
            If the row does not appear in time.
        """
        return self._patience.read(lambda: self._read_now(index), value=f"frame {index} of {self._path}")

    def _read_now(self, index: int) -> NDArray[Any]:
        # Open the file for each row: an open file would keep the detector from opening it for writing, and only a
        # newly opened file shows new rows. Do not refresh: if the file was not made for SWMR and this process has it
        # open elsewhere, HDF5 2.0 corrupts memory.
        with open_for_reading(self._path) as file:
            dataset = file[self._dataset_name]
            if dataset.ndim == 2:
                # The dataset is a single image.
                wanted, rows = slice(None), 1
            else:
                per_row = self._per_row(dataset)
                wanted, rows = slice(index * per_row, (index + 1) * per_row), dataset.shape[0] // per_row
            if index >= rows:
                raise IndexError(f"the dataset has {rows} rows so far, in shape {dataset.shape}")
            if missing := missing_source(dataset, wanted):
                raise OSError(f"{missing} with its pixels is missing")
            image = np.asarray(dataset[wanted])
        return image[0] if image.ndim > 3 else image

    def _per_row(self, dataset: Any) -> int:
        """Return how many entries of the first axis make one row."""
        if dataset.ndim > 3:
            return 1
        if dataset.ndim == 3 and self._frames is None:
            raise SymDenoiseError(
                f"dataset {self._dataset_name} of shape {dataset.shape} in {self._path.name}",
                rule="the number of frames per event is not stated",
                remedy="have the device state the shape (frames, y, x) of an event",
            )
        return max(1, self._frames or 1) if dataset.ndim == 3 else max(1, int(dataset.shape[0]))
