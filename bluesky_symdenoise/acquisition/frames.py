"""Where the pixels of an event are: references from documents, read when they are needed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import h5py
import hdf5plugin  # noqa: F401  (registers the filters that detectors write with)
import numpy as np
from bluesky_tiled_plugins.writing.consolidators import consolidator_factory
from numpy.typing import NDArray
from tiled.ndslice import NDSlice
from tiled.utils import path_from_uri

from bluesky_symdenoise.errors import SymDenoiseError

Document = dict[str, Any]

#: How long a frame that was announced may take to appear in its file.
PATIENCE_S = 10.0


class FrameSource(Protocol):
    """Gives the image of one event of one data key."""

    def has(self, key: str, seq_num: int) -> bool:
        """Whether the frame of this event has been announced."""
        ...

    def read(self, key: str, seq_num: int) -> NDArray[Any]:
        """The image, in the shape of the data key."""
        ...

    def announced(self) -> Sequence[int]:
        """All seq_nums for which some frame has been announced, in order."""
        ...

    def close(self) -> None:
        """Let go of the files."""
        ...


class AnnouncedFrames:
    """Frames of one stream, as stream_resource and stream_datum documents announce them in files.

    Only what was announced is read, whatever else a file holds.

    Parameters
    ----------
    descriptor
        Of the stream.
    """

    def __init__(self, descriptor: Document) -> None:
        self._descriptor = descriptor
        self._files: dict[str, _Hdf5File | _OtherFile] = {}
        self._where: dict[tuple[str, int], tuple[str, int]] = {}

    def take(self, resource: Document, datum: Document) -> None:
        """Take a stream_datum and the stream_resource that it belongs to: one row or many.

        A file is opened when it is first read.
        """
        key, uid = resource["data_key"], resource["uid"]
        if uid not in self._files:
            shape = tuple(self._descriptor["data_keys"][key]["shape"])
            is_hdf5 = resource["mimetype"] == "application/x-hdf5"
            one_file = is_hdf5 and not resource["parameters"].get("template")
            self._files[uid] = _Hdf5File(resource, shape) if one_file else _OtherFile(resource, self._descriptor)
        file = self._files[uid]
        if isinstance(file, _OtherFile):
            file.announce(datum)
        if (datum["indices"]["stop"] - datum["indices"]["start"]) != (
            datum["seq_nums"]["stop"] - datum["seq_nums"]["start"]
        ):
            raise SymDenoiseError(
                f"stream_datum with indices {datum['indices']} and seq_nums {datum['seq_nums']}",
                rule="each row belongs to one event number",
                remedy="mend the device that announces them, or replay the run from Tiled",
            )
        indices = range(datum["indices"]["start"], datum["indices"]["stop"])
        seq_nums = range(datum["seq_nums"]["start"], datum["seq_nums"]["stop"])
        for seq_num, index in zip(seq_nums, indices, strict=True):
            self._where[key, seq_num] = (uid, index)

    def has(self, key: str, seq_num: int) -> bool:
        """Whether the frame of this event has been announced."""
        return (key, seq_num) in self._where

    def announced(self) -> Sequence[int]:
        """All seq_nums for which some frame has been announced, in order."""
        return sorted({seq_num for _, seq_num in self._where})

    def read(self, key: str, seq_num: int) -> NDArray[Any]:
        """The image, in the shape of the data key.

        Raises
        ------
        SymDenoiseError
            If the file does not show it in time.
        """
        resource, index = self._where[key, seq_num]
        return self._files[resource].read(index)

    def close(self) -> None:
        """Let go of the files."""
        for file in self._files.values():
            file.close()


class _Hdf5File:
    """Rows of one dataset, sliced by h5py: other readers load all of a contiguous or virtual dataset."""

    def __init__(self, resource: Document, shape: tuple[int, ...]) -> None:
        self._path = Path(path_from_uri(resource["uri"]))
        self._dataset_name = resource["parameters"]["dataset"]
        self._shape = shape
        self._file: Any = None

    def read(self, index: int) -> NDArray[Any]:
        """Row ``index``; waits for a file that is still being written."""
        deadline = time.monotonic() + PATIENCE_S
        pause = 0.01
        while True:
            try:
                return self._read_now(index)
            except (OSError, KeyError, IndexError) as error:
                self.close()
                if time.monotonic() > deadline:
                    raise SymDenoiseError(
                        f"frame {index} of {self._path}",
                        rule=f"it was announced but could not be read for {PATIENCE_S:g} s ({error})",
                        remedy="check that this computer sees the detector's files, then replay the run",
                    ) from error
            time.sleep(pause)
            pause = min(2 * pause, 0.5)

    def _read_now(self, index: int) -> NDArray[Any]:
        if self._file is None:
            self._file = _open_for_reading(self._path)
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
        if self._file is not None:
            self._file.close()
            self._file = None


def _open_for_reading(path: Path) -> Any:
    try:
        return h5py.File(path, "r", libver="latest", swmr=True)
    except (OSError, ValueError):
        return h5py.File(path, "r")


class _OtherFile:
    """Rows of any other kind of file, through the adapter that Tiled itself would use."""

    def __init__(self, resource: Document, descriptor: Document) -> None:
        self._consolidator = consolidator_factory(resource, descriptor)
        self._shape = tuple(descriptor["data_keys"][resource["data_key"]]["shape"])
        self._uri = resource["uri"]

    def announce(self, datum: Document) -> None:
        self._consolidator.consume_stream_datum(datum)

    def read(self, index: int) -> NDArray[Any]:
        try:
            rows = self._consolidator.init_adapter().read(NDSlice(slice(index, index + 1)))
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise SymDenoiseError(
                f"frame {index} of {self._uri}",
                rule=f"it was announced but could not be read ({error})",
                remedy="check that this computer sees the detector's files, then replay the run",
            ) from error
        return np.asarray(rows).reshape(self._shape)

    def close(self) -> None:
        """Its files are opened for each read."""


class StoredFrames:
    """Frames of one stream of a stored run, row by row through its Tiled client."""

    def __init__(self, stream: Any, descriptor: Document, seq_nums: Sequence[int]) -> None:
        self._stream = stream
        self._shapes = {key: tuple(value["shape"]) for key, value in descriptor["data_keys"].items()}
        self._rows = {seq_num: row for row, seq_num in enumerate(seq_nums)}
        self._clients: dict[str, Any] = {}

    def has(self, key: str, seq_num: int) -> bool:
        """Whether the run has this row."""
        return seq_num in self._rows

    def announced(self) -> Sequence[int]:
        """All seq_nums, in order."""
        return list(self._rows)

    def read(self, key: str, seq_num: int) -> NDArray[Any]:
        """The image, in the shape of the data key."""
        if key not in self._clients:
            self._clients[key] = self._stream[key]
        row = self._rows[seq_num]
        return np.asarray(self._clients[key][row : row + 1]).reshape(self._shapes[key])

    def close(self) -> None:
        """Nothing is open."""
