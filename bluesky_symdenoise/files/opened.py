"""HDF5 files, opened in the one way in which this package reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  (registers the filters that detectors write with)


def open_for_reading(path: Path) -> Any:
    """Open an HDF5 file read-only, also while another process writes it.

    It is opened as a SWMR reader or, because HDF5 refuses to open a file in both ways within a process, as a plain one.
    """
    try:
        return h5py.File(path, "r", libver="latest", swmr=True)
    except (OSError, ValueError):
        return h5py.File(path, "r")
