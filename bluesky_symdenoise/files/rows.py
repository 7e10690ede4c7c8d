"""Rows of one HDF5 dataset, one at a time, also while a detector still writes them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  (registers the filters that detectors write with)
import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.errors import SymDenoiseError


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
        self._path, self._dataset_name, self._shape, self._patience = path, dataset, shape, patience
        self._file: Any = None

    def read(self, index: int) -> NDArray[Any]:
        """Row ``index``; waits for a file that is still being written.

        Raises
        ------
        SymDenoiseError
            If the row does not appear in time.
        """
        deadline = time.monotonic() + self._patience
        pause = 0.01
        while True:
            try:
                return self._read_now(index)
            except (OSError, KeyError, IndexError) as error:
                self.close()
                if time.monotonic() > deadline:
                    raise SymDenoiseError(
                        f"frame {index} of {self._path}",
                        rule=f"it was announced but could not be read for {self._patience:g} s ({error})",
                        remedy="check that this computer sees the detector's files, then replay the run",
                    ) from error
            time.sleep(pause)
            pause = min(2 * pause, 0.5)

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
