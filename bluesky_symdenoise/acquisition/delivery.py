"""Derived runs from their journals into Tiled: in order, each once, whatever the server does meanwhile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import h5py
import hdf5plugin  # noqa: F401  (registers the filter that our files are written with)
import httpx
import numpy as np
from bluesky_tiled_plugins.writing.tiled_writer import concatenate_stream_datums
from tiled.utils import path_from_uri

from bluesky_symdenoise.acquisition.outlet import tiled_writer
from bluesky_symdenoise.acquisition.spool import Journal
from bluesky_symdenoise.catalog.writer import Emit
from bluesky_symdenoise.errors import SymDenoiseError

if TYPE_CHECKING:
    from tiled.client.container import Container

Document = dict[str, Any]
Transport = Literal["files", "http"]


def is_away(error: BaseException) -> bool:
    """Whether an error says that the server does not answer now, and may do so later."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= 500 or error.response.status_code == 429
    return isinstance(error, httpx.TransportError)


@dataclass(frozen=True)
class Delivered:
    """What a delivered run was.

    Attributes
    ----------
    raw_uid, derived_uid
        The runs.
    outcome
        In one line.
    frames, failed
        Written as denoised, and as NaN.
    """

    raw_uid: str
    derived_uid: str
    outcome: str
    frames: int
    failed: int


class Delivery:
    """Sends what a journal holds, as far as it has been written; after an error, all of it again into a new node.

    TiledWriter cannot go on with a run that it began before: the half-written node is deleted, its files are not.
    """

    def __init__(self, journal: Journal, container: Container, *, frames: Transport) -> None:
        self.journal, self._container, self._frames = journal, container, frames
        self._writer: Emit | None = None
        self._pixels: _Pixels | None = None
        self._offset = 0
        self._start: Document = {}
        self._stop: Document | None = None
        self._streams: dict[str, str] = {}
        self._events: Counter[str] = Counter()
        self._tried = False

    def advance(self) -> bool:
        """Send what has been added; whether the run is complete in Tiled, and its journal removed.

        Raises
        ------
        httpx.HTTPError
            If the server does not answer or refuses; `is_away` tells one from the other.
        """
        try:
            if self._writer is None and not self._begin():
                return False
            batch = list(self.journal.read(self._offset))
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
        self.journal.remove()
        return True

    def delivered(self) -> Delivered:
        """What the run was, once its stop document has been read."""
        stop = self._stop or _last(self.journal)
        start = self._start or _first(self.journal)
        return delivered(start, stop)

    def _begin(self) -> bool:
        """Make room for the run; whether there is anything to send."""
        self._offset, self._stop, self._streams, self._events = 0, None, {}, Counter()
        if not _first(self.journal):
            return False
        uid = self.journal.uid
        if uid in self._container:
            node = self._container[uid]
            if (node.metadata.get("stop") or {}).get("provenance", {}).get("complete"):
                self._start, self._stop = dict(node.start), dict(node.metadata["stop"])
                return True
            node.delete(recursive=True, external_only=False)
        self._pixels = _Pixels(self._container) if self._frames == "http" else None
        self._writer = tiled_writer(self._container)
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
        if self._pixels is None or not self._pixels.take(name, doc):
            self._writer(name, dict(doc))
        if name == "stop":
            self._stop = doc

    def _check_rows(self) -> None:
        """TiledWriter repeats an append whose answer was lost: a row may then be there twice."""
        for stream, count in self._events.items():
            rows = self._container[self.journal.uid][stream]["seq_num"].shape[0]
            if rows != count:
                raise httpx.ReadError(f"stream {stream} has {rows} rows in Tiled and {count} events")


class _Pixels:
    """Frames over HTTP, for a server that cannot see the files: an array node for each data key, row by row."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._uid, self._tags = "", None
        self._descriptors: dict[str, Document] = {}
        self._resources: dict[str, Document] = {}
        self._nodes: dict[str, Any] = {}

    def take(self, name: str, doc: Document) -> bool:
        """Send the frames that a document announces; whether that was all there is to send of it."""
        if name == "start":
            self._uid, self._tags = doc["uid"], doc.get("tiled_access_tags")
        elif name == "descriptor":
            self._descriptors[doc["uid"]] = doc
        elif name == "stream_resource":
            self._resources[doc["uid"]] = doc
        elif name == "stream_datum":
            self._upload(self._resources[doc["stream_resource"]], doc)
        return name in ("stream_resource", "stream_datum")

    def _upload(self, resource: Document, datum: Document) -> None:
        descriptor, key = self._descriptors[datum["descriptor"]], resource["data_key"]
        with h5py.File(path_from_uri(resource["uri"]), "r", libver="latest", swmr=True) as file:
            dataset = file[resource["parameters"]["dataset"]]
            for row in range(datum["indices"]["start"], datum["indices"]["stop"]):
                frame = np.asarray(dataset[row : row + 1])
                if resource["uid"] in self._nodes:
                    self._nodes[resource["uid"]].patch(frame, offset=(row,), extend=True)
                    continue
                stream = self._container[self._uid][descriptor["name"]].base
                self._nodes[resource["uid"]] = stream.write_array(
                    frame, key=key, dims=["time", *descriptor["data_keys"][key]["dims"]], access_tags=self._tags
                )


def send_spooled(folder: Path, client: Container, *, frames: Transport = "files") -> list[Delivered]:
    """Send to Tiled what callbacks and services left on disk because the server was away.

    Runs that are being written now are left alone, and so are those that were cut off: they are denoised again.

    Parameters
    ----------
    folder
        Root of the derived files, as given to the callback.
    client
        Catalogue for derived runs.
    frames
        How frames go there, as given to the callback.

    Raises
    ------
    SymDenoiseError
        If the server is still away or refuses a run; what was sent before stays sent.
    """
    sent = []
    for journal in Journal.left(folder):
        try:
            if journal.complete:
                delivery = Delivery(journal, client, frames=frames)
                delivery.advance()
                sent.append(delivery.delivered())
        except httpx.HTTPError as error:
            raise SymDenoiseError(
                f"derived run {journal.uid}",
                rule=f"Tiled did not take it ({(str(error) or type(error).__name__).splitlines()[0]})",
                remedy=f"its documents stay in {journal.path}: send them again when the cause is mended",
            ) from error
        finally:
            journal.release()
    return sent


def delivered(start: Document, stop: Document) -> Delivered:
    """What a derived run was, from its own documents."""
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


def _first(journal: Journal) -> Document:
    return next((doc for (_, doc), _ in journal.read(0)), {})


def _last(journal: Journal) -> Document:
    doc: Document = {}
    for (_, doc), _ in journal.read(0):  # noqa: B007
        pass
    return doc


def _merged(documents: Iterable[tuple[str, Document]]) -> Iterator[tuple[str, Document]]:
    """The same documents with runs of stream_datum made one, which spares a request for each row."""
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
