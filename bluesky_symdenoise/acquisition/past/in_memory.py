"""A stored run in memory: raw and denoised in one Dataset, each frame read and denoised when it is computed."""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.acquisition.derive.images import Found, ImageDenoiser
from bluesky_symdenoise.acquisition.derive.kept import KeptFrames
from bluesky_symdenoise.acquisition.derive.reader import RunReader
from bluesky_symdenoise.acquisition.derive.streams import Event, Stream
from bluesky_symdenoise.acquisition.derive.taker import RowTaker
from bluesky_symdenoise.acquisition.request.request import Request
from bluesky_symdenoise.acquisition.runs.stored import StoredRun, drive
from bluesky_symdenoise.catalog.find.align import merged
from bluesky_symdenoise.derived.lending import lent_by
from bluesky_symdenoise.derived.row import Row, empty_row
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.layout import row_shape, stated_shape
from bluesky_symdenoise.physics.neighbours.window import Lender, Scan

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger("bluesky_symdenoise")

Document = dict[str, Any]

_DTYPES = {"number": "f8", "string": "U64"}


class Gathered(RowTaker):
    """Collect the rows of a run without reading their images.

    Attributes
    ----------
    streams
        Streams with images, by name.
    events
        By stream, in order, wanted or not: those before the first wanted one may decide its symmetry.
    """

    # Keep the files open: they are read when frames are computed.
    reads_later = True

    def __init__(self, asked: Request) -> None:
        self._asked = asked
        self._start: Document = {}
        self.streams: dict[str, Stream] = {}
        self.events: dict[str, list[Event]] = {}

    def images(self, name: str) -> dict[str, DeferredImages]:
        """Return the images of one stream by data key."""
        stream = self.streams[name]
        lenders = self._lenders(stream)
        return {
            key: DeferredImages(stream, key, self.events[name], self._asked.columns, lenders=lenders)
            for key in stream.keys
        }

    def _lenders(self, stream: Stream) -> Callable[[int], tuple[Lender, ...]]:
        borrow, number = self._asked.borrow, len(self.events[stream.name])
        if borrow is None:
            return lambda row: ()
        scan = Scan.of(self._start, stream.name)
        return lambda row: borrow.rows(row, number, scan)

    def open(self, start: Document, descriptor: Document, keys: Sequence[str]) -> None:
        """Keep the start document, which says where rows lie."""
        self._start = start

    def columns(self, stream: Stream) -> set[str]:
        """Return all scalars that events hold."""
        keys = stream.descriptor["data_keys"]
        return {key for key, value in keys.items() if not value["shape"] and "external" not in value}

    def begin(self, stream: Stream) -> None:
        """Keep a stream."""
        self.streams[stream.name] = stream

    def take(self, stream: Stream, event: Event, row: int) -> None:
        """Keep a row."""
        self.events.setdefault(stream.name, []).append(event)


class DeferredImages:
    """Images of one data key of one stream, each read and denoised when it is accessed.

    Whatever the order of access, each image gets the symmetry that it has in the order of the run.

    Parameters
    ----------
    lenders
        Returns the rows that may lend photons to a row.
    """

    def __init__(
        self,
        stream: Stream,
        key: str,
        events: Sequence[Event],
        columns: Mapping[str, str],
        *,
        lenders: Callable[[int], tuple[Lender, ...]],
    ) -> None:
        self._stream, self._key, self._events, self._columns = stream, key, events, columns
        self._lenders = lenders
        #: Images that lent already, which are not read again for the next row as long as they fit into memory.
        self._kept = KeptFrames(lambda: Path(tempfile.gettempdir()))
        #: Rows that could not be read to lend, which is tried once.
        self._unreadable: set[int] = set()
        self._images = stream.images[key]
        #: State of the decisions before each row, up to the row after which nothing changes.
        self._before: list[ImageDenoiser] = []
        self._lock = threading.Lock()

    def counts(self, row: int) -> NDArray[Any]:
        """Return the raw image, in the shape of the data key."""
        with self._lock:
            return self._read(row)

    def denoised(self, row: int) -> Row:
        """Return the denoised image as it would be stored, NaN included."""
        event = self._events[row]
        try:
            with self._lock:
                images, image = self._as_of(row), self._read(row)
                lent = lent_by(self._lenders(row), self._lending, shape=image.shape)
            return images.row(image, event.columns, event.time, lent=lent)
        except Exception as error:
            # As in a derived run, one bad frame must not make the others fail.
            log.warning("row %d of %s/%s is NaN: %s", row, self._stream.name, self._key, error)
            return empty_row(self.shape, self._columns)

    def settings(self, row: int) -> Found:
        """Return what the run says of the image of a row."""
        event = self._events[row]
        return self._images.found(event.columns)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (..., y, x) of each image, as the first readable one has it."""
        for row in range(len(self._events)):
            if self._key in self._stream.shapes:
                break
            try:
                with self._lock:
                    self._read(row)
            except Exception as error:
                log.debug("row %d of %s gives no shape: %s", row, self._key, error)
        described = self._stream.described["data_keys"][self._key]
        return tuple(described["shape"])

    def _read(self, row: int) -> NDArray[Any]:
        return self._stream.image(self._key, self._events[row])

    def _lending(self, row: int) -> NDArray[Any] | None:
        """Return the image of a row that lends photons; None if it cannot be read."""
        held = self._kept.get(self._key, row)
        if held is not None:
            return held
        if row in self._unreadable:
            return None
        try:
            image = self._read(row)
        except Exception as error:
            self._unreadable.add(row)
            log.warning("row %d of %s/%s lends nothing: %s", row, self._stream.name, self._key, error)
            return None
        self._kept.keep(self._key, row, image, readable=True)
        return image

    def _as_of(self, row: int) -> ImageDenoiser:
        """Return the images in the state in which all rows before this one left them."""
        while len(self._before) < row and not self._images.settled:
            event = self._events[len(self._before)]
            self._before.append(self._images.as_now())
            try:
                image = self._read(len(self._before) - 1)
            except Exception as error:
                log.debug(
                    "row %d of %s is not used to decide the symmetry: %s", len(self._before) - 1, self._key, error
                )
            else:
                self._images.look(image, event.columns, event.time)
        if row < len(self._before):
            return self._before[row].as_now()
        return self._images if self._images.settled else self._images.as_now()


def gathered(run: StoredRun, asked: Request) -> Gathered:
    """Collect the documents of a run, ended or not."""
    found = Gathered(asked)
    reader = RunReader(asked, found, source=run.frames)
    drive(reader, run, stop=lambda: run.stop or {"time": run.start["time"], "exit_status": "fail"})
    return found


def chosen_stream(found: Gathered, asked: Request) -> str:
    """Return the one stream for a Dataset: the one that was named, else ``primary``, else the first with images.

    Raises
    ------
    SymDenoiseError
        If several were named, or the stream has no images.
    """
    named = asked.recipe.streams or ("primary",)
    if len(named) > 1:
        raise SymDenoiseError(
            f"streams={list(named)!r}", rule="a Dataset holds one stream", remedy="name one, or give into=..."
        )
    if named[0] in found.events:
        return named[0]
    if asked.recipe.streams is not None or not found.events:
        others = ", ".join(found.events) or "none"
        raise SymDenoiseError(f"stream {named[0]!r}", rule="it has no frames", remedy=f"streams with frames: {others}")
    return next(iter(found.events))


def denoised_when_read(run: StoredRun, asked: Request) -> xr.Dataset:
    """Return raw and denoised images of one stream, as `bluesky_symdenoise.aligned` does.

    Raises
    ------
    SymDenoiseError
        If there is no such stream, none of its rows was requested, or rows are to borrow from rows to come.
    """
    import xarray as xr

    found = gathered(run, asked)
    if asked.borrow is not None and asked.borrow.side == "both" and run.stop is None:
        raise SymDenoiseError(
            f"borrow='both' in run {run.start['uid']}",
            rule="it has no stop document yet, and its last rows would change with those to come",
            remedy="wait until it has ended, or give borrow='past'",
        )
    name = chosen_stream(found, asked)
    events, stream = found.events[name], found.streams[name]
    asked.refuse_missing({name: len(events)})
    rows = asked.recipe.rows_among(len(events))
    flown = events[0].time is None
    coords = {} if flown else {"time": np.array([events[row].time for row in rows])}
    columns: dict[str, Any] = {
        column: ("time", np.asarray([events[row].columns[column] for row in rows])) for column in events[0].columns
    }
    denoised: dict[str, Any] = {}
    for key, images in found.images(name).items():
        layout = run.layout(stream.descriptor, key)
        if layout.known:
            stated = stated_shape(stream.descriptor["data_keys"][key]["shape"])
            stream.shapes.setdefault(key, row_shape(layout.shape, stated))
        shape = images.shape
        same = len(layout.dims) == len(shape) + 1
        raw_dims = layout.dims if same else ("time", *(f"{key}_raw_dim{i + 1}" for i in range(len(shape))))
        columns[key] = (raw_dims, _stacked(rows, images.counts, shape, layout.dtype))
        made = _per_row(rows, images.denoised)
        dims = ("time", *(f"{key}_dim{i + 1}" for i in range(len(shape))))
        for quantity, attribute in ((key, "intensity"), (f"{key}_sigma", "sigma")):
            denoised[quantity] = (dims, _part(made, attribute, shape))
        for scalar, kind in asked.columns.items():
            denoised[f"{key}_{scalar}"] = ("time", _scalar(made, scalar, _DTYPES[kind]))
    uids = {"raw_uid": run.start["uid"], "denoised_uid": asked.recipe.derived_uid(run.start["uid"])}
    return merged(
        xr.Dataset(columns, coords=coords), xr.Dataset(denoised, coords=coords), stream=name, start=run.start, uids=uids
    )


def _per_row(rows: Sequence[int], make: Callable[[int], Any]) -> Any:
    """Return a dask array of objects, one for each row."""
    import dask.array as da

    def block(numbers: NDArray[np.int64]) -> NDArray[Any]:
        held = np.empty(1, object)
        held[0] = make(int(numbers[0]))
        return held

    numbers: Any = da.from_array(np.asarray(rows), chunks=1)  # type: ignore[no-untyped-call]
    return numbers.map_blocks(block, dtype=object, meta=np.empty(0, object))


def _of_each(made: Any, take: Callable[[Any], NDArray[Any]], shape: tuple[int, ...], dtype: Any) -> Any:
    """Return a value computed from each object, stacked."""
    return made.map_blocks(
        lambda held: np.asarray(take(held[0]), dtype).reshape(1, *shape),
        new_axis=list(range(1, len(shape) + 1)),
        chunks=(made.chunks[0], *((size,) for size in shape)),
        dtype=dtype,
        meta=np.empty((0,) * (len(shape) + 1), dtype),
    )


def _stacked(rows: Sequence[int], read: Callable[[int], Any], shape: tuple[int, ...], dtype: Any) -> Any:
    return _of_each(_per_row(rows, read), lambda image: image, shape, dtype)


def _part(made: Any, name: str, shape: tuple[int, ...]) -> Any:
    return _of_each(made, lambda row: getattr(row, name), shape, np.dtype("f4"))


def _scalar(made: Any, name: str, dtype: str) -> Any:
    return _of_each(made, lambda row: row.scalars[name], (), np.dtype(dtype))
