"""Frame sources: references to the pixels of an event, from documents, which are read when needed."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx
import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.acquisition.runs.counting import Count
from bluesky_symdenoise.acquisition.runs.replaced import Replaced
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.format import Format, Rows
from bluesky_symdenoise.files.formats import by_mimetype
from bluesky_symdenoise.files.layout import frames_stated, stated_shape
from bluesky_symdenoise.files.paths import local_path
from bluesky_symdenoise.files.rows import Patience

log = logging.getLogger("bluesky_symdenoise")

Document = dict[str, Any]

#: Seconds that an announced frame may take to appear in its file.
PATIENCE_S = 10.0
#: After this many successive rows of a stored run that a server fails to read, no more rows are requested.
REFUSALS = 2
#: Bytes of successive rows that one request reads.
TOGETHER = 2**22


class FrameSource(Protocol):
    """Source of the image of one event of one data key.

    After a pause a RunEngine may repeat points under the same numbers: ``turn`` is the number of earlier events with
    this number.
    """

    def has(self, key: str, seq_num: int, turn: int = 0) -> bool:
        """Return whether the frame of this event has been announced."""
        ...

    def read(self, key: str, seq_num: int, turn: int = 0) -> NDArray[Any]:
        """Return the image, in the shape that its file has."""
        ...

    def announced(self) -> Sequence[int]:
        """Return all seq_nums for which some frame has been announced, in order."""
        ...

    def close(self) -> None:
        """Close the files."""
        ...


class AnnouncedFrames:
    """Frames of one stream, as stream_resource and stream_datum documents announce them in files.

    Only announced rows are read, whatever else a file holds. Of several frames with one number, the last is used.

    Parameters
    ----------
    descriptor
        Descriptor of the stream.
    replaced
        Files that may have been replaced by now.
    """

    def __init__(self, descriptor: Document, *, replaced: Replaced | None = None) -> None:
        self._descriptor, self._replaced = descriptor, replaced or Replaced()
        self._files: dict[str, _File] = {}
        self._where: dict[tuple[str, int], list[tuple[_File, int]]] = {}
        #: Index of the frame that belongs to an event, among those announced under its ``seq_num``, by the event's
        #: turn.
        self._pinned: dict[tuple[str, int, int], int] = {}

    def take(self, resource: Document, datum: Document, count: Count, *, descriptor: Document) -> None:
        """Take a stream_datum, with the stream_resource and descriptor that it names, and how its rows are counted.

        A file is opened when it is first read.
        """
        key, uid = resource["data_key"], resource["uid"]
        indices = range(datum["indices"]["start"], datum["indices"]["stop"])
        seq_nums = range(datum["seq_nums"]["start"], datum["seq_nums"]["stop"])
        if len(indices) != len(seq_nums):
            raise SymDenoiseError(
                f"stream_datum with indices {datum['indices']} and seq_nums {datum['seq_nums']}",
                rule="each row belongs to one event number",
                remedy="fix the device that announces them, or replay the run from Tiled",
            )
        if uid not in self._files:
            self._files[uid] = _file(resource, self._descriptor, count, self._replaced)
        file = _other_frames(key, self._descriptor, descriptor) or self._files[uid]
        for seq_num, index in zip(seq_nums, indices, strict=True):
            self._where.setdefault((key, seq_num), []).append((file, index))

    def pin(self, key: str, seq_num: int, turn: int) -> None:
        """Note that an event has come: its frame is the last one announced so far, or one that is still to come.

        Points may be repeated under their number before this event's row is read.
        """
        announced = len(self._where.get((key, seq_num), ()))
        self._pinned[key, seq_num, turn] = announced - 1 if announced > turn else turn

    def has(self, key: str, seq_num: int, turn: int = 0) -> bool:
        """Return whether the frame of this event has been announced."""
        return len(self._where.get((key, seq_num), ())) > turn

    def announced(self) -> Sequence[int]:
        """Return all seq_nums for which some frame has been announced, in order."""
        return sorted({seq_num for _, seq_num in self._where})

    def read(self, key: str, seq_num: int, turn: int = 0) -> NDArray[Any]:
        """Return the image, in the shape that its file has.

        Raises
        ------
        SymDenoiseError
            If the image does not appear in the file in time.
        """
        file, index = self._where[key, seq_num][self._pinned.get((key, seq_num, turn), -1)]
        return file.read(index)

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()


class _File(Protocol):
    def read(self, index: int) -> NDArray[Any]: ...

    def close(self) -> None: ...


def _file(resource: Document, descriptor: Document, count: Count, replaced: Replaced) -> _File:
    parameters = resource["parameters"]
    try:
        local_path(resource["uri"])
    except SymDenoiseError as error:
        return _OutOfReach(error)
    growing = (by_mimetype(resource["mimetype"]) or Format()).growing
    if growing is None or any(parameters.get(name) for name in ("template", "slice", "squeeze")):
        return _ConsolidatedFiles(resource, descriptor, count, replaced)
    return _GrowingFile(resource, descriptor, count, replaced, growing)


def _other_frames(key: str, first: Document, now: Document) -> _OutOfReach | None:
    """Return the error for a detector that was reconfigured to another number of frames per event."""
    if key not in now["data_keys"]:
        return None
    before, after = (frames_stated(stated_shape(each["data_keys"][key]["shape"])) for each in (first, now))
    if None in (before, after) or before == after:
        return None
    return _OutOfReach(
        SymDenoiseError(
            f"{after} frames in an event of {key!r}",
            rule=f"the stream began with {before}, and its rows have one shape",
            remedy="take them in a stream of its own, or in another run",
        )
    )


@dataclass(frozen=True)
class _OutOfReach:
    """Rows that can never be read."""

    reason: SymDenoiseError

    def read(self, index: int) -> NDArray[Any]:
        raise self.reason

    def close(self) -> None:
        """Do nothing: no file is open."""


class _GrowingFile:
    """Rows of one file, which a detector may still be writing."""

    def __init__(
        self,
        resource: Document,
        descriptor: Document,
        count: Count,
        replaced: Replaced,
        growing: Callable[[Path, str, int | None, float], Rows],
    ) -> None:
        stated = frames_stated(stated_shape(descriptor["data_keys"][resource["data_key"]]["shape"]))
        multiplier = resource["parameters"].get("multiplier")
        multiplier = int(float(multiplier)) if str(multiplier).removesuffix(".0").isdecimal() else None
        # If the two contradict each other, neither is used.
        frames = None if multiplier and stated not in (None, 1, multiplier) else multiplier or stated
        self._path = local_path(resource["uri"])
        self._rows = growing(self._path, resource["parameters"]["dataset"], frames, PATIENCE_S)
        self._uid, self._count, self._replaced = resource["uid"], count, replaced

    def read(self, index: int) -> NDArray[Any]:
        def read() -> NDArray[Any]:
            return self._rows.read(self._count.row(index, has=lambda row: row < self._rows.count()))

        return self._replaced.read(self._uid, lambda: [self._path], read)

    def close(self) -> None:
        """Report a strange length of the dataset; the file itself is opened for each read."""
        there, announced = self._rows.count(), self._count.stop
        if there > announced > 0 and there % announced == 0 and self._count.first == 0:
            log.warning(
                "%s holds %d times as many frames as were announced, %d and %d: if that many are taken for an event, "
                "its rows show others; have the device state the shape (frames, y, x)",
                self._path,
                there // announced,
                there,
                announced,
            )


class _ConsolidatedFiles:
    """Rows of numbered files, or of any other kind that Tiled has an adapter for.

    A consolidator of Tiled's writer gives the files. It is made anew for each row, with only the rows that it needs, so
    that the result depends on the number of the row alone.
    """

    def __init__(self, resource: Document, descriptor: Document, count: Count, replaced: Replaced) -> None:
        key = resource["data_key"]
        known = [size or 1 for size in stated_shape(descriptor["data_keys"][key]["shape"])]
        chunk = resource["parameters"].get("chunk_shape") or ()
        if len(chunk) == len(known) == 3:
            # The number of frames per file is the first axis of the chunk, whatever the other axes say.
            known[1:] = chunk[1:]
        described = descriptor["data_keys"] | {key: descriptor["data_keys"][key] | {"shape": known}}
        self._resource, self._descriptor = resource, {**descriptor, "data_keys": described}
        self._count, self._replaced, self._patience = count, replaced, Patience(PATIENCE_S)
        self._joined = (by_mimetype(resource["mimetype"]) or Format()).joined

    def read(self, index: int) -> NDArray[Any]:
        row = self._count.row(index, has=self._has)
        value = f"frame {index} of {self._resource['uri']}"
        return self._replaced.read(
            self._resource["uid"],
            lambda: self._paths(row)[1],
            lambda: self._patience.read(lambda: self._read_now(row), value=value),
        )

    def _has(self, row: int) -> bool:
        """Return whether there is a row; unknown for a file that holds several."""
        numbered, paths = self._paths(row)
        return not numbered or all(path.exists() for path in paths)

    def _paths(self, row: int) -> tuple[bool, list[Path]]:
        """Return whether rows are in separate files, and which file holds the row."""
        numbered, consolidator = self._consolidator(row)
        return numbered, [local_path(asset.data_uri) for asset in consolidator.assets]

    def _consolidator(self, row: int) -> tuple[bool, Any]:
        """Return whether rows are in separate files, and the consolidator that says in which."""
        from bluesky_tiled_plugins.writing.consolidators import consolidator_factory

        # Consolidators modify the document that they are given.
        consolidator = consolidator_factory(deepcopy(self._resource), self._descriptor)
        numbered = hasattr(consolidator, "get_datum_uri")
        first = row if numbered else 0
        consolidator.consume_stream_datum(
            {"indices": {"start": first, "stop": row + 1}, "seq_nums": {"start": first + 1, "stop": row + 2}}
        )
        return numbered, consolidator

    def _read_now(self, row: int) -> NDArray[Any]:
        from tiled.ndslice import NDSlice

        numbered, consolidator = self._consolidator(row)
        if self._joined is not None:
            return self._joined([local_path(asset.data_uri) for asset in consolidator.assets])
        place = 0 if numbered else row
        return np.asarray(consolidator.init_adapter().read(NDSlice(slice(place, place + 1))))[0]

    def close(self) -> None:
        """Do nothing: files are opened for each read."""


class StoredFrames:
    """Frames of one stream of a stored run, through its Tiled client: several small ones with one request.

    Parameters
    ----------
    stream
        Clients of the stream's arrays by data key.
    seq_nums
        The seq_nums of the rows, in order.
    check
        Called once with a data key and its client before a row of it is read; if it raises, it is called again with the
        next row.
    """

    def __init__(
        self, stream: Any, seq_nums: Sequence[int], *, check: Callable[[str, Any], None] | None = None
    ) -> None:
        self._stream, self._check = stream, check
        self._rows: dict[int, list[int]] = {}
        for row, seq_num in enumerate(seq_nums):
            self._rows.setdefault(seq_num, []).append(row)
        self._places = {row: (seq_num, turn) for seq_num, rows in self._rows.items() for turn, row in enumerate(rows)}
        self._clients: dict[str, Any] = {}
        #: By data key: the rows read last, by number; (`_last`) the last requested row; (`_singly`) keys to be read
        #: row by row.
        self._held: dict[str, dict[int, NDArray[Any]]] = {}
        self._last: dict[str, int] = {}
        self._singly: set[str] = set()
        self._refused: Counter[str] = Counter()

    def has(self, key: str, seq_num: int, turn: int = 0) -> bool:
        """Return whether the run has this row."""
        return len(self._rows.get(seq_num, ())) > turn

    def announced(self) -> Sequence[int]:
        """Return all seq_nums, in order."""
        return sorted(self._rows)

    def row(self, seq_num: int, turn: int = 0) -> int:
        """Return the row of the image, counted from 0."""
        return self._rows[seq_num][turn]

    def place(self, row: int) -> tuple[int, int]:
        """Return the seq_num of a row, and its turn among the rows of that number."""
        return self._places[row]

    def read(self, key: str, seq_num: int, turn: int = 0) -> NDArray[Any]:
        """Return the image, in the shape that the server gives it.

        Raises
        ------
        SymDenoiseError
            If the server cannot read it. Tiled's client retries for most of a minute, so after two failures in
            succession the other rows are not requested.
        """
        unreadable = SymDenoiseError(
            f"raw image {key}",
            rule="the server cannot read its file",
            remedy="see the server's log: the file is gone, has fewer rows than were announced, or lies outside the "
            "folders that the server may read (readable_storage); then replay the run or run `symdenoise catch-up`",
        )
        if self._refused[key] >= REFUSALS:
            raise unreadable
        if key not in self._clients:
            try:
                client = self._stream[key]
            except KeyError as error:
                raise SymDenoiseError(
                    f"raw image {key}",
                    rule="the server has no rows of it in this stream, though its data key is there",
                    remedy="replay the run from its documents, as a backup of TiledWriter has them",
                ) from error
            if self._check is not None:
                self._check(key, client)
            self._clients[key] = client
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
        return held[row]

    def _fetch(self, key: str, row: int) -> None:
        """Fetch a row, with its neighbours if one close by was read before: threads need not keep the order."""
        client, held = self._clients[key], self._held[key]
        together = max(1, TOGETHER // (math.prod(client.shape[1:]) * np.dtype(client.dtype).itemsize))
        for old in list(held)[: len(held) - 3 * together]:
            del held[old]
        if together > 1 and key not in self._singly and abs(row - self._last.get(key, row + 9)) <= 2:
            first = row // together * together
            try:
                images = np.asarray(client[first : min(first + together, client.shape[0])])
            except httpx.HTTPStatusError:
                # One of these rows cannot be read, perhaps another one than that requested.
                images = np.empty(0)
            # Rows may be handed out more than once.
            images.flags.writeable = False
            held.update(zip(range(first, first + len(images)), images, strict=True))
            if row in held:
                return
            self._singly.add(key)
        held[row] = np.asarray(client[row : row + 1])[0]

    def close(self) -> None:
        """Do nothing: no file is open."""
