"""Where the pixels of an event are: references from documents, read when they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from bluesky_tiled_plugins.writing.consolidators import consolidator_factory
from numpy.typing import NDArray
from tiled.ndslice import NDSlice
from tiled.utils import path_from_uri

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.rows import Hdf5Rows

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
        self._files: dict[str, Hdf5Rows | _OtherFile] = {}
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
            self._files[uid] = _hdf5_rows(resource, shape) if one_file else _OtherFile(resource, self._descriptor)
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


def _hdf5_rows(resource: Document, shape: tuple[int, ...]) -> Hdf5Rows:
    path = Path(path_from_uri(resource["uri"]))
    return Hdf5Rows(path, resource["parameters"]["dataset"], shape, patience=PATIENCE_S)


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
