"""Runs that were acquired before: their documents in order, and where the frames of each stream are."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tiled.utils import path_from_uri

from bluesky_symdenoise.acquisition.request.images import image_keys
from bluesky_symdenoise.acquisition.runs.databroker import Columns, columns_of, descriptors_of, tiled_run
from bluesky_symdenoise.acquisition.runs.frames import FrameSource, StoredFrames
from bluesky_symdenoise.acquisition.runs.given import Backup, GivenRun, Layout
from bluesky_symdenoise.acquisition.runs.raw_files import other_rows, refuse_other_rows
from bluesky_symdenoise.acquisition.runs.replaced import SLACK_S
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.layout import row_shape, stated_shape

if TYPE_CHECKING:
    from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRun

    from bluesky_symdenoise.acquisition.derive.reader import RunReader
    from bluesky_symdenoise.acquisition.request.request import Request

log = logging.getLogger("bluesky_symdenoise")

Document = dict[str, Any]
Named = tuple[str, Document]


class StoredRun(Protocol):
    """One raw run of the past.

    Attributes
    ----------
    start
        The start document, with its access tags.
    stop
        The stop document; None if there is none, or if it is not known before the documents end.
    """

    start: Document
    stop: Document | None

    @property
    def last_seen(self) -> float | None:
        """Time of the last sign of life; None if that is not known before the documents end."""
        ...

    def documents(self) -> Iterator[Named]:
        """Yield all documents but start and stop, in order; events in the order of the run."""
        ...

    def frames(self, descriptor: Document) -> FrameSource:
        """Return the source from which the frames of a stream are read."""
        ...

    def layout(self, descriptor: Document, key: str) -> Layout:
        """Return the layout of the raw images of a data key."""
        ...

    def images(self, asked: Request) -> int | None:
        """Return how many images are requested; None if that is known only after the documents have been read."""
        ...


def stored_run(run: object, *, columns: Callable[[str], Collection[str]] | None = None) -> StoredRun:
    """Return a run from any object that holds one; see `bluesky_symdenoise.replay`.

    Parameters
    ----------
    columns
        Function that returns the columns beside an image to read from a Tiled server; by default all scalars.

    Raises
    ------
    SymDenoiseError
        If the object is not a run.
    """
    if isinstance(run, str | Path):
        return Backup(Path(run))
    found = tiled_run(run)
    if found is not None:
        return TiledRun(found, columns)
    if isinstance(run, Iterable):
        return GivenRun(run)
    raise SymDenoiseError(
        f"a {type(run).__name__}",
        rule="it is not a run",
        remedy='give client["raw"][uid], a databroker Header, the path of a .jsonl backup, or (name, document) pairs',
    )


class NothingToDenoiseError(SymDenoiseError):
    """The run has no image that was requested."""


def raw_only(run: StoredRun) -> StoredRun:
    """Return the run if it is a raw one.

    Raises
    ------
    SymDenoiseError
        If the run is denoised already.
    """
    refuse_denoised(run.start)
    return run


def refuse_denoised(start: Document) -> None:
    """Raise SymDenoiseError if a start document is that of a derived run."""
    if "raw_uid" in start:
        raise SymDenoiseError(
            f"run {start['uid']}", rule="it is denoised already", remedy="give its raw run, raw_for(run)"
        )


def drive(reader: RunReader, run: StoredRun, *, stop: Callable[[], Document]) -> None:
    """Give a reader the documents of a stored run, and at the end this stop document.

    Raises
    ------
    NothingToDenoiseError
        If the run has no image that was asked for.
    """
    reader.start(run.start)
    try:
        for name, doc in run.documents():
            reader(name, doc)
        if reader.derived_uid is None and not reader.waits_for_an_image:
            raise NothingToDenoiseError(
                f"run {run.start['uid']}", rule=reader.lack, remedy="check streams and data_keys"
            )
        reader.stop(stop())
    finally:
        if not reader.closed:
            reader.leave()


class TiledRun:
    """A run of a Tiled server, in SQL or MongoDB."""

    def __init__(self, run: BlueskyRun, columns: Callable[[str], Collection[str]] | None = None) -> None:
        self.run = run
        self.start: Document = dict(run.start)
        if run.access_tags:
            self.start["tiled_access_tags"] = list(run.access_tags)
        self.stop: Document | None = run.metadata.get("stop")
        #: Data sources by image, as far as the server was asked for them.
        self._asked: dict[str, Sequence[Any]] = {}
        #: Streams by the uid of their first descriptor.
        self.streams: dict[str, StoredStream] = {}
        for name in run:
            stream = run[name]
            # A stream that was reconfigured has several descriptors; the first one is used.
            first = descriptors_of(run, stream, name)[0]
            self.streams[first["uid"]] = StoredStream(columns_of(run, stream), first, columns)

    def documents(self) -> Iterator[Named]:
        """Yield descriptors, then events by their time."""
        for stream in self.streams.values():
            yield "descriptor", stream.descriptor
        # In the order of acquisition, because a dark belongs to the images that follow it.
        events = (stream.events() for stream in self.streams.values() if _has_arrays(stream.descriptor))
        for event in heapq.merge(*events, key=_moment):
            yield "event", event

    def frames(self, descriptor: Document) -> StoredFrames:
        """Return a source that reads through Tiled: this computer need not see the files."""
        name = descriptor["name"]
        return self.streams[descriptor["uid"]].frames(lambda key, array: self.refuse_other_rows(name, key, array))

    def refuse_other_rows(self, stream: str, key: str, array: Any) -> None:
        """Raise SymDenoiseError if the server's rows of an image are not those that were announced."""
        named = {each.descriptor["name"]: each for each in self.streams.values()}
        lacking = [name for name, each in named.items() if name != stream and each.lacks(key)]
        events = len(named[stream].times)
        if lacking and array.shape[0] != events:
            raise other_rows(
                f"image {stream}/{key}",
                f"it has {array.shape[0]} rows and {events} events, and stream {lacking[0]!r} has no rows: Tiled's "
                "writer stored them together and does not keep which rows belong to which stream",
            )
        name = f"{stream}/{key}"
        refuse_other_rows(name, array, self._sources(name, array), self._used)
        self._warn_of_later_files(name, array)

    def _sources(self, name: str, array: Any) -> Sequence[Any]:
        """Return the data sources of an image, for which the server is asked once."""
        if name not in self._asked:
            self._asked[name] = (array.data_sources() or ()) if hasattr(array, "data_sources") else ()
        return self._asked[name]

    def _warn_of_later_files(self, name: str, array: Any) -> None:
        """Warn if a raw file changed after the run: a later run may have written a file of this name."""
        if self.stop is None:
            return
        for source in self._sources(name, array):
            for asset in source.assets:
                try:
                    changed = path_from_uri(asset.data_uri).stat().st_mtime
                except (OSError, ValueError):
                    # Only the server needs to read this file.
                    continue
                if changed > self.stop["time"] + SLACK_S:
                    log.warning(
                        "run %s, %s: %s changed %.0f s after the run had ended: if a later run wrote a file of this "
                        "name, these frames are from that run; compare counts_in with a derived run that was made live",
                        self.start["uid"][:8],
                        name,
                        asset.data_uri,
                        changed - self.stop["time"],
                    )
                    return

    @cached_property
    def _used(self) -> dict[tuple[str, str | None], set[str]]:
        """Names of the images that are stored in each file and dataset."""
        used: dict[tuple[str, str | None], set[str]] = {}
        for stream in self.streams.values():
            for key, array in stream.external():
                name = f"{stream.descriptor['name']}/{key}"
                for source in self._sources(name, array):
                    for asset in source.assets:
                        used.setdefault((asset.data_uri, source.parameters.get("dataset")), set()).add(name)
        return used

    def layout(self, descriptor: Document, key: str) -> Layout:
        """Return the layout that the server has."""
        return self.streams[descriptor["uid"]].layout(key)

    def images(self, asked: Request) -> int:
        """Return how many images are requested."""
        return sum(stream.images(asked) for stream in self.streams.values())

    @property
    def last_seen(self) -> float:
        """Time of the last event."""
        return max([self.start["time"], *(float(moment) for each in self.streams.values() for moment in each.times)])


class StoredStream:
    """Events and frames of one stream of a run on a Tiled server."""

    def __init__(
        self, arrays: Columns, descriptor: Document, columns: Callable[[str], Collection[str]] | None = None
    ) -> None:
        self.descriptor, self._columns = descriptor, columns
        self._arrays = arrays
        self._held = set(arrays)

    @cached_property
    def _of_events(self) -> dict[str, NDArray[Any]]:
        """Numbers and times of the events, and the columns that are wanted."""
        return self._arrays.values_of({"seq_num", "time", *self._wanted()} & self._held)

    @cached_property
    def seq_nums(self) -> list[int]:
        """The seq_nums of the events; MongoDB's server has one row for each number."""
        if "seq_num" in self._held:
            return [int(number) for number in self._of_events["seq_num"]]
        return list(range(1, 1 + len(self.times)))

    @cached_property
    def times(self) -> Sequence[float]:
        """Times of the events."""
        return self._of_events["time"].tolist() if "time" in self._held else []

    @property
    def rows(self) -> int:
        """Number of rows of the images: the number of events, if there are any."""
        return max([len(self.times), *(array.shape[0] for _, array in self.external())])

    def images(self, asked: Request) -> int:
        """Return how many images are requested."""
        keys = image_keys(self.descriptor, asked.recipe)
        if not keys or self.descriptor["name"] == asked.beamline.dark_stream:
            return 0
        return len(keys) * len(asked.recipe.rows_among(self.rows))

    def layout(self, key: str) -> Layout:
        """Return the layout that the server has."""
        array = self._arrays[key]
        dims = tuple(array.dims or ())
        if len(set(dims)) < len(array.shape):
            # None are known, or Tiled gave those of equal length one name.
            dims = ("time", *(f"{key}_dim{i}" for i in range(1, len(array.shape))))
        return Layout(("time", *dims[1:]), tuple(array.shape[1:]), np.dtype(array.dtype))

    def chunk_rows(self, key: str) -> int:
        """Return how many rows of an image are stored, and thus read, together."""
        return int(self._arrays[key].chunks[0][0])

    def events(self) -> Iterator[Document]:
        """Yield event documents with the columns that are wanted; none for a stream without events."""
        columns = {name: self._of_events[name] for name in self._wanted()}
        for row, (seq_num, time) in enumerate(zip(self.seq_nums, self.times, strict=True)):
            data = {name: column[row].tolist() for name, column in columns.items()}
            yield {"descriptor": self.descriptor["uid"], "seq_num": seq_num, "time": time, "data": data}

    def frames(self, check: Callable[[str, Any], None]) -> StoredFrames:
        """Return the source of the images; `check` as in `StoredFrames`."""
        return StoredFrames(self._arrays, self.numbers, check=check)

    def external(self) -> Iterator[tuple[str, Any]]:
        """Return the data keys in files, with their clients."""
        for key, value in self.descriptor["data_keys"].items():
            if "external" in value and key in self._held:
                yield key, self._arrays[key]

    def lacks(self, key: str) -> bool:
        """Return whether events have this image by their data keys, but the server has no rows of it."""
        external = "external" in self.descriptor["data_keys"].get(key, {})
        return external and key not in self._held and len(self.times) > 0

    def row_shape(self, key: str) -> tuple[int, ...]:
        """Return the shape (..., y, x) of one image."""
        return row_shape(self._arrays[key].shape[1:], stated_shape(self.descriptor["data_keys"][key]["shape"]))

    @property
    def numbers(self) -> list[int]:
        """Numbers of the rows; those without events are numbered after those that have one."""
        numbers = list(self.seq_nums)
        last = max(numbers, default=0)
        return numbers + list(range(last + 1, last + 1 + self.rows - len(numbers)))

    def _wanted(self) -> list[str]:
        keys = self.descriptor["data_keys"]
        if self._columns is not None:
            return sorted(set[str]().union(*(self._columns(key) for key in keys)) & self._held)
        return [key for key in keys if key in self._held and not keys[key]["shape"] and "external" not in keys[key]]


def _has_arrays(descriptor: Document) -> bool:
    return any(value["dtype"] == "array" for value in descriptor["data_keys"].values())


def _moment(event: Document) -> float:
    return float(event["time"])
