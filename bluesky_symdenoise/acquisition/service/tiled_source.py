"""Raw runs in a Tiled catalogue as they grow: Tiled's live stream for speed, reading the catalogue for certainty."""

from __future__ import annotations

import logging
import queue
import threading
import time as clock
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx
import numpy as np
from bluesky_tiled_plugins import subscribe_to_streams
from numpy.typing import NDArray
from tiled.client.container import Container
from tiled.client.stream import LiveTableData

from bluesky_symdenoise.acquisition.runs.frames import PATIENCE_S, FrameSource, StoredFrames
from bluesky_symdenoise.acquisition.runs.stored import TiledRun
from bluesky_symdenoise.acquisition.service.sources import IDLE_S
from bluesky_symdenoise.errors import SymDenoiseError

if TYPE_CHECKING:
    from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRun
    from bluesky_tiled_plugins.streaming import BlueskyStreamSubscription, BlueskyStreamUpdate

log = logging.getLogger("bluesky_symdenoise")

Document = dict[str, Any]

#: Seconds between checks of the runs that are followed, and between searches for runs that no update announced.
LOOK_S, SEARCH_S = 1.0, 10.0
#: How many of the newest runs a search looks at, and the age in seconds from which a run without a stop document is
#: ignored.
NEWEST, FORSAKEN_S = 20, 24 * 3600.0
#: Seconds to wait, after the first frame of a stream, for its first event; without one, it is taken for a fly scan.
EVENT_S = 3.0
#: Message of Tiled's RuntimeError when a subscription is closed.
_STOPPED = "Cannot be restarted once stopped."
#: Seconds allowed for subscribing.
CONNECT_S = 15.0


@contextmanager
def endings_without_traceback() -> Iterator[None]:
    """Silence Tiled's threads that are disconnected while they try to connect: this is no error."""
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not (isinstance(args.exc_value, RuntimeError) and str(args.exc_value) == _STOPPED):
            before(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


@dataclass
class _Stream:
    """State of one growing stream; only the iterating thread writes it."""

    run: str
    descriptor: Document
    #: ``seq_num`` of the events by row.
    numbers: list[int] = field(default_factory=list)
    last: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    #: When the first frame was seen.
    seen: float | None = None
    resources: dict[str, str] = field(default_factory=dict)
    #: Rows of each ``seq_num``: a RunEngine may repeat points.
    taken: dict[int, list[int]] = field(default_factory=dict)

    def add(self, number: int) -> None:
        """Take in the event of the next row."""
        self.taken.setdefault(number, []).append(len(self.numbers))
        self.last = max(self.last, number)
        self.numbers.append(number)


@dataclass
class _Run:
    uid: str
    streams: dict[str, _Stream] = field(default_factory=dict)


class TiledSource:
    """Documents of the raw runs that grow in a catalogue, made from Tiled's live updates.

    Updates come from several threads, at least once, and not all of them where a connection or the server breaks. So an
    update is taken once (by run, key and sequence), and every run that is followed is compared with the catalogue
    repeatedly, the last time when its stop document has appeared: nothing depends on an update.

    Parameters
    ----------
    raw
        Catalogue of the raw runs, written with ``TiledWriter(..., batch_size=1)``.
    columns
        Function that returns the columns beside an image in which its settings are looked up.
    """

    def __init__(self, raw: Container, *, columns: Callable[[str], Collection[str]] = lambda _: ()) -> None:
        self._raw, self._columns = raw, columns
        self._queue: queue.SimpleQueue[BlueskyStreamUpdate] = queue.SimpleQueue()
        self._taken: dict[tuple[str, str, tuple[str, ...]], int] = {}
        self._runs: dict[str, _Run] = {}
        self._ended: set[str] = set()
        self._subscription: BlueskyStreamSubscription | None = None
        self._away = False
        self._looked = self._searched = float("-inf")

    def __iter__(self) -> Iterator[tuple[str, Document] | None]:
        self._subscribe()
        while True:
            try:
                update = self._queue.get(timeout=IDLE_S)
            except queue.Empty:
                update = None
            try:
                if update is not None:
                    yield from self._from_update(update)
                if update is None or clock.monotonic() - self._looked > LOOK_S:
                    yield from self._from_catalogue()
                    self._looked = clock.monotonic()
                if self._away:
                    self._away = False
                    log.info("the server is back")
                    self._subscribe()
            except (httpx.TransportError, httpx.HTTPStatusError) as error:
                if not self._away:
                    log.warning("the server does not answer (%s); trying again", error)
                self._away = True
                clock.sleep(LOOK_S)
            if update is None:
                yield None

    def frames(self, descriptor: Document) -> FrameSource:
        """Return a source that reads through Tiled: this machine need not see the detector's files."""
        for run in self._runs.values():
            for stream in run.streams.values():
                if stream.descriptor["uid"] == descriptor["uid"]:
                    return _Growing(self._raw, run, stream)
        raise KeyError(descriptor["uid"])

    @property
    def away(self) -> bool:
        """Whether the server did not answer the last request."""
        return self._away

    def waiting(self) -> int:
        """Return how many updates wait."""
        return self._queue.qsize()

    def settled(self, uid: str) -> None:
        """Stop following a run."""
        self._runs.pop(uid, None)
        self._ended.add(uid)

    def close(self) -> None:
        """Disconnect; threads of a connection that hangs are left to end with the process."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            leaving = threading.Thread(target=subscription.disconnect, daemon=True)
            leaving.start()
            leaving.join(CONNECT_S)

    def _subscribe(self) -> None:
        """Connect, starting with the first update that the server keeps. Without live updates, polling goes on."""
        self.close()
        self._taken.clear()
        made: list[BlueskyStreamSubscription] = []

        def subscribe() -> None:
            try:
                made.append(subscribe_to_streams(self._raw, self._queue.put, streams=None, start=0))
            except Exception as error:
                log.warning("no live updates from the server (%s)", error)

        # Tiled waits forever for a connection that is refused.
        connecting = threading.Thread(target=subscribe, name="symdenoise-subscribe", daemon=True)
        connecting.start()
        connecting.join(CONNECT_S)
        if made:
            self._subscription = made[0]
        else:
            log.warning("the server gives no live updates (is streaming_cache set?): checking every %g s", LOOK_S)

    def _from_update(self, update: BlueskyStreamUpdate) -> Iterator[tuple[str, Document]]:
        node = (update.run_uid, update.stream_name, update.data_keys)
        if update.run_uid in self._ended or update.sequence <= self._taken.get(node, 0):
            return
        if update.run_uid not in self._runs:
            # This reads the whole run, including what the update announces.
            yield from self._begin(update.run_uid)
        elif (stream := self._runs[update.run_uid].streams.get(update.stream_name)) is None:
            yield from self._compare(self._runs[update.run_uid], self._raw[update.run_uid])
        elif isinstance(update.update, LiveTableData):
            table = update.update.data()
            if not stream.numbers:
                yield from self._compare(self._runs[update.run_uid], self._raw[update.run_uid])
            elif int(table["seq_num"].iloc[0]) == max(stream.numbers) + 1:
                yield from _events(
                    stream, {str(name): list(table[name]) for name in table.columns}, first=len(stream.numbers)
                )
            else:
                # These rows are known already, or are repeated points: only the catalogue tells which rows they are.
                yield from self._missing(stream, self._raw[update.run_uid][update.stream_name])
        else:
            patch = update.update.patch
            end = patch.offset[0] + patch.shape[0] if patch else update.update.shape[0]
            yield from _announced(stream, update.data_keys[0], end, ended=False)
        self._taken[node] = update.sequence

    def _from_catalogue(self) -> Iterator[tuple[str, Document]]:
        if clock.monotonic() - self._searched > SEARCH_S:
            self._searched = clock.monotonic()
            for found in self._raw.sort(("start.time", -1)).values().head(NEWEST):
                uid = found.start["uid"]
                fresh = clock.time() - found.start["time"] < FORSAKEN_S
                if fresh and uid not in self._runs and uid not in self._ended and not found.metadata.get("stop"):
                    yield from self._begin(uid)
        for run in list(self._runs.values()):
            if run.uid not in self._raw:
                stop = {"run_start": run.uid, "time": clock.time(), "exit_status": "abort", "reason": "it was deleted"}
            else:
                stored = self._raw[run.uid]
                stop = stored.metadata.get("stop")
                yield from self._compare(run, stored)
            if stop:
                yield "stop", dict(stop)
                self.settled(run.uid)

    def _begin(self, uid: str) -> Iterator[tuple[str, Document]]:
        """Follow a run that has not ended; one that has is left to the sweep."""
        stored = self._raw[uid]
        if "raw_uid" in stored.start or stored.metadata.get("stop"):
            self._ended.add(uid)
            return
        start = dict(stored.start)
        if stored.access_tags:
            start["tiled_access_tags"] = list(stored.access_tags)
        run = self._runs[uid] = _Run(uid)
        yield "start", start
        yield from self._compare(run, stored)

    def _compare(self, run: _Run, stored: BlueskyRun) -> Iterator[tuple[str, Document]]:
        """Yield documents for everything in the catalogue that has not been yielded yet."""
        for descriptor in stored.descriptors:
            if descriptor["name"] not in run.streams:
                run.streams[descriptor["name"]] = _Stream(run.uid, descriptor)
                yield "descriptor", descriptor
        ended = bool(stored.metadata.get("stop"))
        for name, stream in run.streams.items():
            node = stored[name]
            names = set(node)
            external = (key for key, described in stream.descriptor["data_keys"].items() if "external" in described)
            rows = {key: node[key].shape[0] for key in external if key in names}
            # Read the table, which grows with the run, only if events are missing.
            if "seq_num" in names and (ended or len(stream.numbers) < max(rows.values(), default=0)):
                yield from self._missing(stream, node)
            for key, end in rows.items():
                yield from _announced(stream, key, end, ended=ended)

    def _missing(self, stream: _Stream, node: Any) -> Iterator[tuple[str, Document]]:
        """Yield the events that the catalogue has beyond those that were given."""
        wanted = {"seq_num", "time"}.union(*(self._columns(key) for key in stream.descriptor["data_keys"]))
        yield from _events(stream, {name: node[name].read() for name in sorted(wanted & set(node))}, first=0)


def _announced(stream: _Stream, key: str, end: int, *, ended: bool) -> Iterator[tuple[str, Document]]:
    """Return the rows of an image up to `end`; row i belongs to the ith event."""
    begin = stream.rows.get(key, 0)
    if end <= begin:
        return
    stream.seen = stream.seen or clock.monotonic()
    if not (stream.numbers or ended or clock.monotonic() - stream.seen > EVENT_S):
        # Until the first event comes, these frames cannot be told from those of a fly scan.
        return
    if key not in stream.resources:
        stream.resources[key] = str(uuid4())
        yield "stream_resource", {"uid": stream.resources[key], "data_key": key, "run_start": stream.run}
    stream.rows[key] = end
    indices = {"start": begin, "stop": end}
    yield (
        "stream_datum",
        {
            "stream_resource": stream.resources[key],
            "descriptor": stream.descriptor["uid"],
            "indices": indices,
            "seq_nums": {"start": begin + 1, "stop": end + 1},
        },
    )


def _events(stream: _Stream, columns: Mapping[str, Sequence[Any]], *, first: int) -> Iterator[tuple[str, Document]]:
    """Yield those events of these rows, the first of which has this index, that have not been given yet."""
    # The table grows while its columns are read one after the other: take only the rows that all columns have.
    rows = min(len(column) for column in columns.values())
    for row in range(len(stream.numbers) - first, rows):
        data = {name: column[row] for name, column in columns.items()}
        stream.add(int(data.pop("seq_num")))
        yield (
            "event",
            {
                "descriptor": stream.descriptor["uid"],
                "seq_num": stream.numbers[-1],
                "time": float(data.pop("time")),
                "data": data,
            },
        )


@dataclass(frozen=True)
class _LiveArrays:
    """Images of one stream as they are when they are looked up, each with one request."""

    raw: Container
    run: str
    stream: str

    def __getitem__(self, key: str) -> Any:
        return Container.__getitem__(self.raw, (self.run, self.stream, key))


class _Growing:
    """Frames of one stream that grows, through Tiled."""

    def __init__(self, raw: Container, run: _Run, stream: _Stream) -> None:
        self._raw, self._run, self._stream = raw, run, stream
        self._stored: StoredFrames | None = None
        self._known = 0
        #: By data key, the number of images in the run when its rows were last checked, and the error found, if any.
        self._checked: dict[str, tuple[int, SymDenoiseError | None]] = {}

    def has(self, key: str, seq_num: int, turn: int = 0) -> bool:
        """Return whether the catalogue has this row."""
        row = self._row(seq_num, turn)
        return row is not None and row < self._stream.rows.get(key, 0)

    def _row(self, seq_num: int, turn: int) -> int | None:
        """Return the row of the event; frames without events are numbered after those that have one."""
        stream = self._stream
        if seq_num > stream.last:
            return None if turn else len(stream.numbers) + seq_num - stream.last - 1
        rows = stream.taken.get(seq_num, ())
        return rows[turn] if turn < len(rows) else None

    def read(self, key: str, seq_num: int, turn: int = 0) -> NDArray[Any]:
        """Return the image, in the shape of the data key."""
        deadline = clock.monotonic() + PATIENCE_S
        while True:
            try:
                return self._read_now(key, seq_num, turn)
            except SymDenoiseError as error:
                if error is self._checked.get(key, (0, None))[1]:
                    raise
                # Tiled answers 422 where the file has grown beyond what was announced a moment ago.
                self._stored = None
                if clock.monotonic() > deadline:
                    raise
            clock.sleep(0.1)

    def _read_now(self, key: str, seq_num: int, turn: int) -> NDArray[Any]:
        row = self._row(seq_num, turn)
        if self._stored is None or row is None or row >= self._known:
            # Clients keep the shape that an array had when they were made.
            numbers = self.announced()
            self._known = min(len(numbers), *self._stream.rows.values())
            images = _LiveArrays(self._raw, self._run.uid, self._stream.descriptor["name"])
            self._stored = StoredFrames(images, numbers, check=self._check)
        return np.asarray(self._stored.read(key, seq_num, turn))

    def _check(self, key: str, array: Any) -> None:
        """Refuse rows that belong to other images; checked again when the run gets images of another key or stream."""
        images = sum(len(stream.rows) for stream in self._run.streams.values())
        if self._checked.get(key, (0, None))[0] != images:
            try:
                TiledRun(self._raw[self._run.uid]).refuse_other_rows(self._stream.descriptor["name"], key, array)
            except SymDenoiseError as error:
                self._checked[key] = images, error
            else:
                self._checked[key] = images, None
        refused = self._checked[key][1]
        if refused is not None:
            raise refused

    def announced(self) -> Sequence[int]:
        """Return all seq_nums by row; rows without events are numbered after those that have one."""
        numbers = self._stream.numbers
        last, rows = self._stream.last, max(self._stream.rows.values(), default=0)
        return numbers + list(range(last + 1, last + 1 + rows - len(numbers)))

    def close(self) -> None:
        """Do nothing: no file is open."""
