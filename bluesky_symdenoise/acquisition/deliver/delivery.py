"""Delivery of derived runs from their spools to Tiled: in order and once each, whatever the server does meanwhile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from bluesky_symdenoise.acquisition.deliver.outlet import tiled_writer
from bluesky_symdenoise.acquisition.deliver.spool import Spool
from bluesky_symdenoise.acquisition.request.request import Work
from bluesky_symdenoise.catalog.store.containers import run_in
from bluesky_symdenoise.catalog.store.writer import Emit
from bluesky_symdenoise.errors import SymDenoiseError

Document = dict[str, Any]


def is_away(error: BaseException) -> bool:
    """Return whether an error means that the server does not answer now but may do so later."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= 500 or error.response.status_code == 429
    return isinstance(error, httpx.TransportError)


@dataclass(frozen=True)
class Delivered:
    """Summary of a derived run that was delivered.

    Attributes
    ----------
    raw_uid, derived_uid
        The runs.
    outcome
        What became of the run, in one line.
    frames, failed
        Numbers of frames written as denoised, and as NaN.
    """

    raw_uid: str
    derived_uid: str
    outcome: str
    frames: int
    failed: int


class Delivery:
    """Send what a spool holds, as far as it has been written; after an error, send all of it again into a new node.

    TiledWriter cannot go on with a run that it began before: the half-written node is deleted, its files are not.
    """

    def __init__(self, spool: Spool, work: Work) -> None:
        self.spool, self._work, self._container = spool, work, work.container
        self._writer: Emit | None = None
        self._offset = 0
        self._start: Document = {}
        self._stop: Document | None = None
        self._streams: dict[str, str] = {}
        self._events: Counter[str] = Counter()
        self._tried = False

    def advance(self) -> bool:
        """Send what has been added; return whether the run is complete in Tiled and its spool removed.

        Raises
        ------
        httpx.HTTPError
            If the server does not answer or refuses; `is_away` tells one from the other.
        """
        try:
            if self._writer is None and not self._begin():
                return False
            batch = list(self.spool.read(self._offset))
            for name, doc in _merged(item for item, _ in batch):
                self._send(name, doc)
            if batch:
                self._offset = batch[-1][1]
            if self._stop is None:
                return False
            self._check_rows()
        except BaseException:
            self._writer = None
            raise
        self.spool.remove()
        return True

    def delivered(self) -> Delivered:
        """Return the summary of the run, once its stop document has been read."""
        stop = self._stop or _last(self.spool)
        start = self._start or _first(self.spool)
        return delivered(start, stop)

    def _begin(self) -> bool:
        """Make room for the run; return whether there is anything to send."""
        self._offset, self._stop, self._streams, self._events = 0, None, {}, Counter()
        if not _first(self.spool):
            return False
        uid = self.spool.uid
        node = run_in(self._container, uid)
        if node is not None:
            if (node.metadata.get("stop") or {}).get("provenance", {}).get("complete"):
                self._start, self._stop = dict(node.start), dict(node.metadata["stop"])
                return True
            node.delete(recursive=True, external_only=False)
        self._writer = tiled_writer(self._work)
        return True

    def _send(self, name: str, doc: Document) -> None:
        if self._writer is None:
            return
        if name == "start":
            self._start = doc
        elif name == "descriptor":
            self._streams[doc["uid"]] = doc["name"]
        elif name == "event":
            self._events[self._streams[doc["descriptor"]]] += 1
        self._writer(name, dict(doc))
        if name == "stop":
            self._stop = doc

    def _check_rows(self) -> None:
        """Check that no row is there twice: TiledWriter repeats an append whose answer was lost."""
        for stream, count in self._events.items():
            rows = self._container[self.spool.uid][stream]["seq_num"].shape[0]
            if rows != count:
                raise httpx.ReadError(f"stream {stream} has {rows} rows in Tiled and {count} events")


def send_spooled(work: Work) -> list[Delivered]:
    """Send to Tiled the runs that callbacks and services left on disk because the server was away.

    Runs that are being written now are skipped, and so are runs that were interrupted: those are denoised again.

    Parameters
    ----------
    work
        Says where they wait, where derived runs go, and how their frames do.

    Raises
    ------
    SymDenoiseError
        If the server is still away or refuses a run; what was sent before stays sent.
    """
    sent = []
    for spool in Spool.left(work.folder):
        try:
            if spool.complete:
                delivery = Delivery(spool, work)
                delivery.advance()
                sent.append(delivery.delivered())
        except httpx.HTTPError as error:
            raise SymDenoiseError(
                f"derived run {spool.uid}",
                rule=f"Tiled did not take it ({(str(error) or type(error).__name__).splitlines()[0]})",
                remedy=f"its documents stay in {spool.path}: send them again when the cause is fixed",
            ) from error
        finally:
            spool.release()
    return sent


def delivered(start: Document, stop: Document) -> Delivered:
    """Return what a derived run was, from its own documents."""
    made = stop["provenance"]
    failed = sum(failure["frames"] for failure in made["failures"])
    frames = made["frames"] - failed
    outcome = f"{frames} frames denoised" + (f", {failed} failed" if failed else "")
    return Delivered(
        raw_uid=start["raw_uid"],
        derived_uid=start["uid"],
        outcome=outcome if made["complete"] else stop["reason"],
        frames=frames,
        failed=failed,
    )


def _first(spool: Spool) -> Document:
    return next((doc for (_, doc), _ in spool.read(0)), {})


def _last(spool: Spool) -> Document:
    doc: Document = {}
    for (_, doc), _ in spool.read(0):  # noqa: B007
        pass
    return doc


def _merged(documents: Iterable[tuple[str, Document]]) -> Iterator[tuple[str, Document]]:
    """Yield the same documents with consecutive stream_datum documents merged, which saves a request for each row."""
    from bluesky_tiled_plugins.writing.tiled_writer import concatenate_stream_datums

    data: dict[str, Document] = {}
    events: list[tuple[str, Document]] = []
    for name, doc in documents:
        if name == "stream_datum":
            before = data.get(doc["stream_resource"])
            if before is not None and not _adjacent(before, doc):
                yield "stream_datum", before
                before = None
            data[doc["stream_resource"]] = doc if before is None else concatenate_stream_datums(before, doc)
        elif name == "event":
            events.append((name, doc))
        else:
            yield from (("stream_datum", each) for each in data.values())
            yield from events
            data, events = {}, []
            yield name, doc
    yield from (("stream_datum", each) for each in data.values())
    yield from events


def _adjacent(before: Document, after: Document) -> bool:
    return before["descriptor"] == after["descriptor"] and all(
        before[each]["stop"] == after[each]["start"] for each in ("indices", "seq_nums")
    )
