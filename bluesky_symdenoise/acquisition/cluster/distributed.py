"""A stored run that the workers of a Dask cluster denoise and this process writes, as if it had worked alone."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx
import numpy as np

from bluesky_symdenoise.acquisition.cluster.client import checked_client, kept_on_cluster, prepared, result_of
from bluesky_symdenoise.acquisition.cluster.partition import (
    Partition,
    PartitionSetup,
    RawRows,
    TiledStream,
    checksum,
    denoise_partition,
)
from bluesky_symdenoise.acquisition.deliver.outlet import Outlet
from bluesky_symdenoise.acquisition.derive.reader import RunReader
from bluesky_symdenoise.acquisition.derive.run import DerivedRows
from bluesky_symdenoise.acquisition.derive.streams import Event, Stream
from bluesky_symdenoise.acquisition.derive.taker import PassedOn
from bluesky_symdenoise.acquisition.request.request import Request, Work
from bluesky_symdenoise.acquisition.runs.frames import StoredFrames
from bluesky_symdenoise.acquisition.runs.raw_files import raw_files
from bluesky_symdenoise.acquisition.runs.stored import StoredRun, StoredStream, TiledRun
from bluesky_symdenoise.catalog.store.parts import PartReader
from bluesky_symdenoise.derived.columns import BORROWED_FROM, rows_text
from bluesky_symdenoise.derived.lending import Window
from bluesky_symdenoise.derived.row import Row
from bluesky_symdenoise.errors import SymDenoiseError

if TYPE_CHECKING:
    from distributed import Client, Future

log = logging.getLogger("bluesky_symdenoise")

Document = dict[str, Any]

#: Pixels, and most rows, of a partition: some seconds on one core, and a file that is quickly written again.
PIXELS, ROWS = 2**21, 64
#: Pixels of a partition whose rows borrow: more, because the rows around it are read too; and lengths of the reach that
#: it has at least.
LENDING_PIXELS, REACHES = 2**25, 4
#: Number of submitted partitions for each thread of the cluster.
AHEAD = 3


@dataclass
class _Filling:
    """A partition that still accepts rows, and the setup as it was before its first row."""

    number: int
    setup: Future
    said: Document
    events: list[Event] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Sent:
    stream: Stream
    partition: Partition
    future: Future


class ClusterRows(PassedOn):
    """Take the rows of one stored run, have a cluster denoise them, and write the derived run.

    The workers are sent everything that was looked up here. Each partition comes back as a file of compressed frames,
    whose chunks are copied unchanged, in the order of the run, into the stream's one file. For each row, documents are
    sent and the journal is written as without a cluster.

    Parameters
    ----------
    work, finished_frame, outlet
        See `DerivedRows`.
    run
        A run of a Tiled catalogue.
    client
        Client of the cluster.
    """

    def __init__(
        self,
        work: Work,
        run: TiledRun,
        client: Client,
        *,
        finished_frame: Callable[[str | None], None],
        outlet: Outlet,
    ) -> None:
        self._work, self._run, self._client = work, run, client
        self._model, self._machine = prepared(client, work)
        environment = {"python": work.environment["python"], **self._machine.environment}
        self._rows = DerivedRows(work, environment=environment, finished_frame=finished_frame, outlet=outlet)
        super().__init__(self._rows)
        self._wanted = work.recipe.rows
        self._filling: dict[str, _Filling] = {}
        self._sent: deque[_Sent] = deque()
        #: The latest setup of each stream, with the decisions from which it was made.
        self._setups: dict[str, tuple[Document, Future]] = {}
        self._raw: dict[str, RawRows] = {}
        self._windows: dict[str, Window | None] = {}

    def leave(self) -> None:
        """Release the derived run; what the workers still finish is kept for the next process that continues it."""
        try:
            self._client.cancel([sent.future for sent in self._sent])
        except Exception as error:
            log.warning("the tasks of run %s could not be cancelled: %s", self._run.start["uid"][:8], error)
        super().leave()

    def take(self, stream: Stream, event: Event, row: int) -> None:
        """Send the images of one event to the cluster, and write the partitions that have come back."""
        if row in self._wanted:
            self._hand_over(stream, event, row)
        elif row < self._wanted[-1]:
            # The decisions of a row that is skipped are unknown to the worker that has the rows before it.
            if not all(images.settled for images in stream.images.values()):
                self._send(stream)
            stream.look(event)

    def _hand_over(self, stream: Stream, event: Event, row: int) -> None:
        kept = {key: self._kept(stream, key, event, row) for key in stream.keys}
        if all(kept.values()):
            self._send(stream)
            self._finish_all()
            self._rows.append(stream, event, {key: each for key, each in kept.items() if each is not None})
            return
        number = row // self._rows_together(stream)
        if stream.name in self._filling and self._filling[stream.name].number != number:
            self._send(stream)
        if stream.name not in self._filling:
            said, setup = self._setup(stream)
            self._filling[stream.name] = _Filling(number, setup, said)
        self._filling[stream.name].events.append(event)
        self._filling[stream.name].rows.append(row)
        stream.look(event)

    def _kept(self, stream: Stream, key: str, event: Event, row: int) -> Row | None:
        """Return the row that an earlier writer finished, unless a row that lends to it was missing then."""
        kept = self._rows.kept(stream, key, event)
        if kept is None or (window := self._window(stream)) is None:
            return kept
        lenders = rows_text(lender.row for lender in window.lenders(row))
        return kept if kept.scalars.get(BORROWED_FROM) == lenders else None

    def end_stream(self, stream: Stream) -> None:
        """Send what is left of a stream, and write all of it."""
        self._send(stream)
        self._finish_all()
        super().end_stream(stream)

    def _rows_together(self, stream: Stream) -> int:
        """Return how many rows make a partition: chunks of the raw file are not divided unless they are very large."""
        stored = self._stored(stream)
        pixels = sum(math.prod(stored.row_shape(key)) for key in stream.keys)
        few = max(1, min(ROWS, PIXELS // pixels))
        if (window := self._window(stream)) is not None:
            least = REACHES * window.borrow.reach
            few = max(few, min(max(least, window.borrow.span(window.scan)), max(least, LENDING_PIXELS // pixels)))
        chunk = max(stored.chunk_rows(key) for key in stream.keys)
        return few if chunk > ROWS else -(-few // chunk) * chunk

    def _window(self, stream: Stream) -> Window | None:
        """Return the rows of a stream that lend to each other; None if none do."""
        if stream.name not in self._windows:
            number, borrow = self._stored(stream).rows, self._work.recipe.borrow
            found = Window.of(borrow, number=number, start=self._run.start, stream=stream.name)
            self._windows[stream.name] = found
        return self._windows[stream.name]

    def _stored(self, stream: Stream) -> StoredStream:
        return self._run.streams[stream.descriptor["uid"]]

    def _setup(self, stream: Stream) -> tuple[Document, Future]:
        """Return the decisions made from the images so far, and the setup that carries them to the workers."""
        images = stream.images
        for key in stream.keys:
            stream.shapes.setdefault(key, self._stored(stream).row_shape(key))
        said = {key: {**each.record()[0], **each.decided} for key, each in images.items()}
        if stream.name not in self._setups or self._setups[stream.name][0] != said:
            if stream.name not in self._raw:
                self._raw[stream.name] = self._raw_rows(stream)
            plain = {each.name: getattr(self._work, each.name) for each in fields(Request)}
            asked = Request(**plain | {"model": self._model, "raw": None})
            packed = PartitionSetup(
                model=self._model,
                machine=self._machine,
                images={key: each.elsewhere(asked) for key, each in images.items()},
                shapes={key: self._stored(stream).row_shape(key) for key in stream.keys},
                raw=self._raw[stream.name],
                place=self._work.place,
                window=self._window(stream),
            ).packed()
            self._setups[stream.name] = said, kept_on_cluster(self._client, packed)
        return self._setups[stream.name]

    def _raw_rows(self, stream: Stream) -> RawRows:
        files, last = {}, {}
        refused: dict[str, SymDenoiseError] = {}
        for key in stream.keys:
            try:
                self._run.refuse_other_rows(stream.name, key, self._run.run[stream.name][key])
            except SymDenoiseError as error:
                refused[key] = error
                continue
            try:
                files[key] = raw_files(self._run.run, stream.descriptor, key)
                last[key] = checksum(np.asarray(self._run.run[stream.name][key][-1]))
            except (SymDenoiseError, httpx.HTTPStatusError, KeyError) as error:
                # A run in MongoDB has no URI.
                log.info("image %s is read through Tiled, its files are not: %s", key, error)
        there = TiledStream(self._run.run, stream.name)
        numbers = self._stored(stream).numbers
        return RawRows(files, StoredFrames(there, numbers), last, refused)

    def _send(self, stream: Stream) -> None:
        """Submit the partition being filled, and write what has come back; wait if enough are on their way."""
        filling = self._filling.pop(stream.name, None)
        if filling is None:
            return
        journal = self._rows.journal
        # `Journal.finish` deletes what is left of it with the run's other files.
        path = journal.with_name(f"{journal.stem}-{stream.name}.part-{self._token(stream, filling)}.h5")
        partition = Partition(path, journal, tuple(filling.events), tuple(filling.rows))
        name = f"symdenoise-{path.stem}-{uuid4().hex[:8]}"
        future = self._client.submit(denoise_partition, filling.setup, partition, key=name)
        self._sent.append(_Sent(stream, partition, future))
        most = max(2, AHEAD * sum(self._client.nthreads().values()))
        while self._sent and (len(self._sent) > most or self._sent[0].future.done()):
            self._finish_first()

    def _token(self, stream: Stream, filling: _Filling) -> str:
        """Return a hash of all that decides a partition's content, by which a later replay finds finished ones."""
        decides: Document = {
            "recipe": self._work.recipe.sha256,
            "version": self._machine.version,
            "environment": self._machine.environment,
            "images": filling.said,
            "rows": [(event.seq_num, event.turn) for event in filling.events],
        }
        if (window := self._window(stream)) is not None:
            # A run that has grown since has other rows after these.
            decides["borrowing"] = (window.number, filling.rows)
        return hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def _finish_all(self) -> None:
        while self._sent:
            self._finish_first()

    def _finish_first(self) -> None:
        """Copy the rows of the partition that was submitted first, and remove its file."""
        sent = self._sent[0]
        stream, events, path = sent.stream, sent.partition.events, sent.partition.path
        what = f"rows {events[0].seq_num} to {events[-1].seq_num} of {stream.name}"
        result_of(sent.future, what)
        try:
            part = PartReader(path)
        except OSError as error:
            raise SymDenoiseError(
                f"{what} in {path}",
                rule=f"a worker has written them, and this computer cannot read them ({error})",
                remedy="pass directory=..., a folder that this computer, all workers and the server see",
            ) from error
        with part:
            for event, outcomes in zip(events, part.rows(), strict=True):
                self._rows.append(stream, event, outcomes)
            self._rows.settle()
        self._sent.popleft()
        path.unlink(missing_ok=True)


def cluster_denoiser(
    work: Work, run: StoredRun, client: Client, *, finished_frame: Callable[[str | None], None], outlet: Outlet
) -> RunReader:
    """Return a reader that takes the documents of this run and has a cluster denoise it.

    Raises
    ------
    SymDenoiseError
        If the run is not in a Tiled catalogue, or the cluster has no worker that can do it.
    """
    if not isinstance(run, TiledRun):
        raise SymDenoiseError(
            f"run {run.start['uid']}",
            rule="workers read runs of a Tiled catalogue, but this one is given as documents",
            remedy="write it into a catalogue first, or replay it without a scheduler",
        )
    rows = ClusterRows(work, run, checked_client(client), finished_frame=finished_frame, outlet=outlet)
    return RunReader(work, rows, source=run.frames)
