"""Where the pixels of an event are: references from documents, read when they are needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Protocol

import httpx
import numpy as np
from bluesky_tiled_plugins.writing.consolidators import consolidator_factory
from numpy.typing import NDArray
from tiled.ndslice import NDSlice
from tiled.utils import path_from_uri

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.rows import Hdf5Rows, Patience

Document = dict[str, Any]

#: How long a frame that was announced may take to appear in its file.
PATIENCE_S = 10.0
#: Rows of a stored run in succession that a server fails to read before the others are not asked for.
REFUSALS = 2
#: Bytes of successive rows that are asked for at once.
TOGETHER = 2**20


class FrameSource(Protocol):
    """Gives the image of one event of one data key.

    After a pause a RunEngine may take points again, under the same numbers: ``turn`` says how many events of this
    number came before.
    """

    def has(self, key: str, seq_num: int, turn: int = 0) -> bool:
        """Whether the frame of this event has been announced."""
        ...

    def read(self, key: str, seq_num: int, turn: int = 0) -> NDArray[Any]:
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

    Only what was announced is read, whatever else a file holds. Of frames announced under one number the last counts.

    Parameters
    ----------
    descriptor
        Of the stream.
    """

    def __init__(self, descriptor: Document) -> None:
        self._descriptor = descriptor
        self._files: dict[str, _File] = {}
        self._rows: Counter[str] = Counter()
        self._where: dict[tuple[str, int], list[tuple[_File, int]]] = {}

    def take(self, resource: Document, datum: Document) -> None:
        """Take a stream_datum and the stream_resource that it belongs to: one row or many.

        A file is opened when it is first read.
        """
        key, uid = resource["data_key"], resource["uid"]
        indices = range(datum["indices"]["start"], datum["indices"]["stop"])
        seq_nums = range(datum["seq_nums"]["start"], datum["seq_nums"]["stop"])
        if len(indices) != len(seq_nums):
            raise SymDenoiseError(
                f"stream_datum with indices {datum['indices']} and seq_nums {datum['seq_nums']}",
                rule="each row belongs to one event number",
                remedy="mend the device that announces them, or replay the run from Tiled",
            )
        if uid not in self._files:
            # A key's next file may count its rows from 0, or go on where the file before it ended.
            goes_on = self._rows[key] > 0 and indices.start == self._rows[key]
            self._files[uid] = _file(resource, self._descriptor, first=indices.start if goes_on else 0)
        file = self._files[uid]
        self._rows[key] += len(indices)
        file.announce(indices, datum)
        for seq_num, index in zip(seq_nums, indices, strict=True):
            self._where.setdefault((key, seq_num), []).append((file, index))

    def has(self, key: str, seq_num: int, turn: int = 0) -> bool:
        """Whether the frame of this event has been announced."""
        return len(self._where.get((key, seq_num), ())) > turn

    def announced(self) -> Sequence[int]:
        """All seq_nums for which some frame has been announced, in order."""
        return sorted({seq_num for _, seq_num in self._where})

    def read(self, key: str, seq_num: int, turn: int = 0) -> NDArray[Any]:
        """The image, in the shape of the data key.

        Raises
        ------
        SymDenoiseError
            If the file does not show it in time.
        """
        file, index = self._where[key, seq_num][-1]
        return file.read(index)

    def close(self) -> None:
        """Let go of the files."""
        for file in self._files.values():
            file.close()


class _File(Protocol):
    def announce(self, indices: range, datum: Document) -> None: ...

    def read(self, index: int) -> NDArray[Any]: ...

    def close(self) -> None: ...


def _file(resource: Document, descriptor: Document, *, first: int) -> _File:
    is_hdf5 = resource["mimetype"] == "application/x-hdf5"
    if is_hdf5 and not resource["parameters"].get("template"):
        return _Hdf5File(resource, descriptor, first=first)
    return _OtherFile(resource, descriptor, first=first)


class _Hdf5File:
    """Rows of one HDF5 dataset, announced by their index in it, or by that index plus ``first``."""

    def __init__(self, resource: Document, descriptor: Document, *, first: int) -> None:
        shape = tuple(descriptor["data_keys"][resource["data_key"]]["shape"])
        path = Path(path_from_uri(resource["uri"]))
        self._rows = Hdf5Rows(path, resource["parameters"]["dataset"], shape, patience=PATIENCE_S)
        self._first = first

    def announce(self, indices: range, datum: Document) -> None:
        """The file knows its rows."""

    def read(self, index: int) -> NDArray[Any]:
        return self._rows.read(index - self._first)

    def close(self) -> None:
        self._rows.close()


class _OtherFile:
    """Rows of any other kind of file, through the adapter that Tiled itself would use."""

    def __init__(self, resource: Document, descriptor: Document, *, first: int) -> None:
        # A consolidator writes into the document that it is given.
        self._consolidator = consolidator_factory(deepcopy(resource), descriptor)
        self._shape = tuple(descriptor["data_keys"][resource["data_key"]]["shape"])
        self._uri, self._first = resource["uri"], first
        self._places: dict[int, int] = {}
        self._patience = Patience(PATIENCE_S)

    def announce(self, indices: range, datum: Document) -> None:
        start, stop = indices.start - self._first, indices.stop - self._first
        self._consolidator.consume_stream_datum(dict(datum, indices={"start": start, "stop": stop}))
        for index in indices:
            self._places[index] = len(self._places)

    def read(self, index: int) -> NDArray[Any]:
        return self._patience.read(
            lambda: self._read_now(self._places[index]), value=f"frame {index} of {self._uri}", again=lambda: None
        )

    def _read_now(self, place: int) -> NDArray[Any]:
        rows = self._consolidator.init_adapter().read(NDSlice(slice(place, place + 1)))
        return np.asarray(rows).reshape(self._shape)

    def close(self) -> None:
        """Its files are opened for each read."""


class StoredFrames:
    """Frames of one stream of a stored run, through its Tiled client: several small ones with one request.

    Parameters
    ----------
    seq_nums
        Of the rows, in order.
    """

    def __init__(self, stream: Any, descriptor: Document, seq_nums: Sequence[int]) -> None:
        self._stream = stream
        self._shapes = {key: tuple(value["shape"]) for key, value in descriptor["data_keys"].items()}
        self._rows: dict[int, list[int]] = {}
        for row, seq_num in enumerate(seq_nums):
            self._rows.setdefault(seq_num, []).append(row)
        self._clients: dict[str, Any] = {}
        #: The rows that came last, by number, the one that was asked for last, and keys that give one row at a time.
        self._held: dict[str, dict[int, NDArray[Any]]] = {}
        self._last: dict[str, int] = {}
        self._singly: set[str] = set()
        self._refused: Counter[str] = Counter()

    def has(self, key: str, seq_num: int, turn: int = 0) -> bool:
        """Whether the run has this row."""
        return len(self._rows.get(seq_num, ())) > turn

    def announced(self) -> Sequence[int]:
        """All seq_nums, in order."""
        return sorted(self._rows)

    def row(self, seq_num: int, turn: int = 0) -> int:
        """Of the image, counted from 0."""
        return self._rows[seq_num][turn]

    def read(self, key: str, seq_num: int, turn: int = 0) -> NDArray[Any]:
        """The image, in the shape of the data key.

        Raises
        ------
        SymDenoiseError
            If the server cannot read it. Tiled's client tries that for the better part of a minute, so after two rows
            in succession the others are not asked for.
        """
        unreadable = SymDenoiseError(
            f"raw image {key}",
            rule="the server cannot read its file",
            remedy="see the server's log, put the file back, then replay the run or run `symdenoise catch-up`",
        )
        if self._refused[key] >= REFUSALS:
            raise unreadable
        if key not in self._clients:
            self._clients[key] = self._stream[key]
        row = self.row(seq_num, turn)
        held = self._held.setdefault(key, {})
        if row not in held:
            try:
                self._fetch(key, row)
            except httpx.HTTPStatusError as error:
                self._refused[key] += 1
                raise unreadable from error
            self._refused[key] = 0
        self._last[key] = row
        return held[row].reshape(self._shapes[key])

    def _fetch(self, key: str, row: int) -> None:
        """Get a row, and with it those around it, if one close by was read before: threads need not keep the order."""
        client, held = self._clients[key], self._held[key]
        together = max(1, TOGETHER // (int(np.prod(self._shapes[key])) * np.dtype(client.dtype).itemsize))
        for old in list(held)[: len(held) - 3 * together]:
            del held[old]
        if together > 1 and key not in self._singly and abs(row - self._last.get(key, row + 9)) <= 2:
            first = row // together * together
            try:
                images = np.asarray(client[first : min(first + together, client.shape[0])])
            except httpx.HTTPStatusError:
                # One of them cannot be read, perhaps not this one.
                images = np.empty(0)
            # They are handed out more than once.
            images.flags.writeable = False
            held.update(zip(range(first, first + len(images)), images, strict=True))
            if row in held:
                return
            self._singly.add(key)
        held[row] = np.asarray(client[row : row + 1])[0]

    def close(self) -> None:
        """Nothing is open."""
