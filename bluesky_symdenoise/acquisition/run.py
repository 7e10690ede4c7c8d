"""One raw run in, one derived run out: the path that live documents and stored runs share."""

from __future__ import annotations

import logging
import socket
import time as clock
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from event_model import DocumentRouter, unpack_datum_page, unpack_event_page
from numpy.typing import NDArray

from bluesky_symdenoise.acquisition.darks import Darks
from bluesky_symdenoise.acquisition.frames import AnnouncedFrames, FrameSource
from bluesky_symdenoise.acquisition.images import Images
from bluesky_symdenoise.acquisition.legacy import LegacyFrames
from bluesky_symdenoise.acquisition.outlet import STRAIGHT, Outlet
from bluesky_symdenoise.acquisition.place import check_apart
from bluesky_symdenoise.acquisition.plan import Work, now
from bluesky_symdenoise.catalog.journal import Journal
from bluesky_symdenoise.catalog.query import SPEC
from bluesky_symdenoise.catalog.row import Row, empty_row
from bluesky_symdenoise.catalog.writer import DerivedRun, DerivedStream, Emit
from bluesky_symdenoise.errors import SymDenoiseError

log = logging.getLogger("bluesky_symdenoise")

Document = dict[str, Any]

#: Keys of a raw start document that the derived one does not take over.
_OWN_KEYS = frozenset({"uid", "time", "scan_id", "versions", "tiled_specs"})


@dataclass(frozen=True)
class Event:
    """What is needed of an event; ``images`` are those it holds itself, or their datum ids."""

    seq_num: int
    turn: int
    time: float | None
    images: Mapping[str, Any]
    columns: Mapping[str, Any]


@dataclass
class Stream:
    """What is known so far of one stream with images."""

    name: str
    keys: list[str]
    descriptor: Document
    frames: FrameSource
    images: dict[str, Images]
    #: None before the first row, and always for a stream of darks.
    derived: DerivedStream | None = None
    #: Whether frames come without events, as in a fly scan.
    flown: bool = False
    waiting: deque[Event] = field(default_factory=deque)
    #: How many events of each number there were, and the numbers of rows that are written.
    turns: Counter[int] = field(default_factory=Counter)
    done: set[int] = field(default_factory=set)
    #: Keys announced since the last event.
    announced: set[str] = field(default_factory=set)

    @property
    def may_fly(self) -> bool:
        """Whether nothing in the stream needs an event, and none has come."""
        external = (str(key.get("external", "")) for key in self.descriptor["data_keys"].values())
        return not self.turns and all(each.startswith("STREAM:") for each in external)


class DroppedError(Exception):
    """A frame that is not denoised because the denoiser is too far behind."""


class RunDenoiser(DocumentRouter):  # type: ignore[misc]
    """Takes the documents of one raw run and writes its derived run.

    Parameters
    ----------
    work
        What to do.
    source
        Makes the frame source of a stream from its descriptor; by default files that documents announce.
    finished_frame
        Called after each frame was written with None, or with the reason why it is NaN. What it raises goes to the
        caller; the run can be left then.
    too_late
        Asked before each frame; a reason not to denoise it any more makes it NaN.
    outlet
        Where the documents of the derived run go.
    """

    def __init__(
        self,
        work: Work,
        *,
        source: Callable[[Document], FrameSource] = AnnouncedFrames,
        finished_frame: Callable[[str | None], None] = lambda _: None,
        too_late: Callable[[], str | None] = lambda: None,
        outlet: Outlet = STRAIGHT,
    ) -> None:
        super().__init__()
        self._too_late, self._outlet = too_late, outlet
        self._work, self._source, self._finished_frame = work, source, finished_frame
        self._start: Document = {}
        self._derived: DerivedRun | None = None
        self._streams: dict[str, Stream] = {}
        self._by_descriptor: dict[str, Stream] = {}
        self._resources: dict[str, Document] = {}
        self._legacy = LegacyFrames(work.beamline.handlers)
        self._darks = Darks(work, {})
        #: Frames that failed by reason, and the first reason of each kind.
        self._failures: Counter[str] = Counter()
        self._reasons: dict[tuple[str, str, str], str] = {}
        self._frames = 0
        self._begun = 0.0
        self._ended = False
        #: The derived run's uid once it is known, and what became of it in one line.
        self.derived_uid: str | None = None
        self.outcome = "nothing to denoise: no stream"
        self.closed = False
        #: What is wrong with the folder of its files, in one line.
        self.complaint: str | None = None
        self._folder = work.folder

    def __call__(self, name: str, doc: Document, validate: bool = False) -> Any:
        """Take a document; one that comes after the run was closed is none of ours."""
        return None if self.closed else super().__call__(name, doc, validate)

    def start(self, doc: Document) -> None:
        """Remember the raw run; the derived one starts with its first stream of images."""
        self._start = doc
        self._darks = Darks(self._work, doc)

    def descriptor(self, doc: Document) -> None:
        """Open the derived stream, and with the first one the derived run.

        A stream's second descriptor says that its configuration changed: the rows go on where they were.
        """
        if doc["name"] in self._streams:
            self._by_descriptor[doc["uid"]] = self._streams[doc["name"]]
            return
        keys = self._image_keys(doc)
        if not keys:
            if self._derived is None:
                self.outcome = (
                    f"nothing to denoise: no 2D image that was asked for among the data keys of stream {doc['name']} "
                    f"({', '.join(doc['data_keys'])}); check streams and data_keys"
                )
            return
        if self._derived is None and doc["name"] != self._work.beamline.dark_stream:
            self._derived = self._open(doc, keys)
        images = {key: Images(self._work, self._darks, key=key, start=self._start, descriptor=doc) for key in keys}
        stream = Stream(name=doc["name"], keys=keys, descriptor=doc, frames=self._source(doc), images=images)
        self._streams[stream.name] = self._by_descriptor[doc["uid"]] = stream

    def stream_resource(self, doc: Document) -> None:
        """Keep the reference; which stream it belongs to is known with its first stream_datum."""
        streams = (stream for stream in self._streams.values() if doc["data_key"] in stream.keys)
        if any(isinstance(stream.frames, AnnouncedFrames) for stream in streams):
            check_apart(self._folder, doc["uri"])
        self._resources[doc["uid"]] = doc

    def stream_datum(self, doc: Document) -> None:
        """Note where frames are; rows whose event has come are done now.

        A step scan follows each announcement with an event. Where none comes before the next announcement, and no
        data key needs one, the stream is flown: its frames are rows by themselves.
        """
        stream = self._by_descriptor.get(doc["descriptor"])
        resource = self._resources[doc["stream_resource"]]
        if stream is None or resource["data_key"] not in stream.keys:
            return
        if resource["data_key"] in stream.announced and stream.may_fly:
            stream.flown = True
        stream.announced.add(resource["data_key"])
        if isinstance(stream.frames, AnnouncedFrames):
            stream.frames.take(resource, doc)
        self._advance()

    def resource(self, doc: Document) -> None:
        """Keep a legacy reference."""
        self._legacy.take_resource(doc)

    def datum(self, doc: Document) -> None:
        """Note where a legacy frame is."""
        self._legacy.take_datum(doc)
        self._advance()

    def datum_page(self, doc: Document) -> None:
        """The same for several."""
        for datum in unpack_datum_page(doc):
            self.datum(datum)

    def event(self, doc: Document) -> Document:
        """Queue the row; it is done when all its frames have been announced."""
        stream = self._by_descriptor.get(doc["descriptor"])
        if stream is not None and not stream.flown:
            data = doc["data"]
            needed = set[str]().union(*(images.columns for images in stream.images.values()))
            stream.waiting.append(
                Event(
                    seq_num=doc["seq_num"],
                    turn=stream.turns[doc["seq_num"]],
                    time=doc["time"],
                    images={key: data[key] for key in stream.keys if key in data},
                    columns={name: data[name] for name in needed if name in data},
                )
            )
            stream.turns[doc["seq_num"]] += 1
            stream.announced.clear()
            self._advance()
        return doc

    def event_page(self, doc: Document) -> Document:
        """The same for several."""
        for event in unpack_event_page(doc):
            self.event(event)
        return doc

    def stop(self, doc: Document) -> None:
        """Finish the rows that are left and close the derived run with the raw run's exit status."""
        self._ended = True
        for stream in self._dark_first():
            self._finish(stream, doc["time"])
        self._close(exit_status=doc["exit_status"], reason=doc.get("reason", ""))

    @property
    def complete(self) -> bool:
        """Whether there is a derived run and it ended with the raw run."""
        return self._ended and self._derived is not None

    def owns(self, descriptor_uid: str | None) -> bool:
        """Whether a descriptor belongs to this run."""
        return descriptor_uid in self._by_descriptor

    def abandon(self, reason: str) -> None:
        """Close the derived run of a raw run whose stop document never came."""
        if not self.closed:
            self._close(exit_status="fail", reason=reason)

    def leave(self) -> None:
        """Let go of the derived run without ending it: who takes it up next goes on with its rows."""
        self._let_go()
        if self._derived is not None:
            self._derived.leave()

    def _let_go(self) -> None:
        self.closed = True
        for stream in self._streams.values():
            stream.frames.close()
        self._legacy.close()

    def _close(self, *, exit_status: str, reason: str) -> None:
        self._let_go()
        if self._derived is None:
            return
        failures = [{"reason": why, "frames": count} for why, count in self._failures.items()]
        groups = {
            f"{stream.name}/{key}": images.point_group
            for stream in self._streams.values()
            for key, images in stream.images.items()
            if images.point_group is not None
        }
        self._derived.stop(
            exit_status=exit_status,
            reason=reason,
            provenance={
                "endedAtTime": now(),
                "complete": self._ended,
                "frames": self._frames,
                "failures": failures,
                "symmetry": {used: [key for key, group in groups.items() if group == used] for used in groups.values()},
                "seconds": round(clock.perf_counter() - self._begun, 3),
                "bytes": sum(stream.derived.bytes_written for stream in self._streams.values() if stream.derived),
            },
        )
        failed = sum(self._failures.values())
        self.outcome = f"{self._frames - failed} frames denoised" + (f", {failed} failed" if failed else "")

    def _image_keys(self, descriptor: Document) -> list[str]:
        recipe = self._work.recipe
        if recipe.streams is not None and descriptor["name"] not in recipe.streams:
            return []
        return [
            key
            for key, value in descriptor["data_keys"].items()
            if (recipe.data_keys is None or key in recipe.data_keys) and _is_image(value)
        ]

    def _open(self, descriptor: Document, keys: Sequence[str]) -> DerivedRun:
        work, raw_uid = self._work, self._start["uid"]
        uid = work.recipe.derived_uid(raw_uid)
        self._begun = clock.perf_counter()
        provenance = work.provenance(raw_uid, descriptor["name"], keys)
        made_with = {key: provenance[key] for key in ("recipe_sha256", "environment")}
        self._folder, self.complaint = work.folder_for(self._start)
        journal = Journal(self._folder / f"{uid}.journal", made_with=made_with)
        provenance["wasGeneratedBy"] |= {"host": socket.gethostname(), "journal": str(journal.path)}
        start = {key: value for key, value in self._start.items() if key not in _OWN_KEYS} | {
            "raw_uid": raw_uid,
            "raw_time": self._start["time"],
            "tiled_specs": [SPEC],
            "provenance": provenance,
        }
        if "scan_id" in self._start:
            start["raw_scan_id"] = self._start["scan_id"]
        arrays = {
            name: array for name, array in (("mask", work.mask), ("exposure", work.exposure)) if array is not None
        }
        self._work.place.own(journal.path)
        try:
            emit = self._outlet(work, uid, journal.path)
            derived = self._derived_run(emit, journal=journal, start=start, uid=uid, arrays=arrays)
        except BaseException:
            journal.close()
            raise
        self.derived_uid = uid
        return derived

    def _derived_run(
        self, emit: Emit, *, journal: Journal, start: Document, uid: str, arrays: Mapping[str, NDArray[Any]]
    ) -> DerivedRun:
        return DerivedRun(
            emit,
            journal=journal,
            start=start,
            uid=uid,
            time=clock.time(),
            arrays=arrays,
            created=self._work.place.own,
        )

    def _advance(self) -> None:
        """Write the rows whose frames have all been announced; darks before the images that wait for them."""
        for stream in self._dark_first():
            if stream.flown:
                self._write_announced(stream, None)
            while stream.waiting and self._ready(stream, stream.waiting[0]):
                self._row(stream, stream.waiting.popleft())
            if self._is_dark(stream) and stream.waiting:
                return

    def _finish(self, stream: Stream, time: float) -> None:
        """Write the rows of a stream that are left; those without an event get this time."""
        while stream.waiting:
            self._row(stream, stream.waiting.popleft())
        stream.flown = stream.flown or (stream.may_fly and bool(stream.frames.announced()))
        self._write_announced(stream, None if stream.flown else time)
        if stream.derived is None and not self._is_dark(stream):
            stream.derived = self._open_stream(stream)

    def _ready(self, stream: Stream, event: Event) -> bool:
        for key in stream.keys:
            image = event.images.get(key)
            if isinstance(image, str):
                if not self._legacy.has(image):
                    return False
            elif image is None and not stream.frames.has(key, event.seq_num, event.turn):
                return False
        return True

    def _write_announced(self, stream: Stream, time: float | None) -> None:
        """Rows of frames that have no event; in a flown stream those that all keys have."""
        for seq_num in stream.frames.announced():
            event = Event(seq_num=seq_num, turn=0, time=time, images={}, columns={})
            if seq_num not in stream.done and (self._ended or self._ready(stream, event)):
                self._row(stream, event)

    def _dark_first(self) -> list[Stream]:
        return sorted(self._streams.values(), key=self._is_dark, reverse=True)

    def _is_dark(self, stream: Stream) -> bool:
        return stream.name == self._work.beamline.dark_stream

    def _open_stream(self, stream: Stream) -> DerivedStream:
        assert self._derived is not None
        configuration: Document = {}
        arrays: dict[str, NDArray[Any]] = {}
        for images in stream.images.values():
            said, held = images.record()
            configuration |= said
            arrays |= held
        return self._derived.stream(
            stream.descriptor, stream.keys, arrays=arrays, configuration=configuration, flown=stream.flown
        )

    def _row(self, stream: Stream, event: Event) -> None:
        """Denoise the images of one event and write it; what fails becomes a NaN row with its reason in stop."""
        stream.done.add(event.seq_num)
        if self._is_dark(stream):
            self._take_darks(stream, event)
            return
        self._work.place.check_space(self._folder)
        if stream.derived is None:
            stream.derived = self._open_stream(stream)
        rows: dict[str, Row] = {}
        reasons: list[str | None] = []
        for key in stream.keys:
            self._frames += 1
            try:
                rows[key] = self._kept(stream, key, event) or self._denoised(stream, key, event)
            except Exception as error:
                reason = self._failed(stream, key, event, error)
                rows[key] = empty_row(stream.derived.shapes[key])
                reasons.append(reason)
            else:
                reasons.append(None)
        stream.derived.append(seq_num=event.seq_num, time=event.time, rows=rows)
        for outcome in reasons:
            self._finished_frame(outcome)

    def _kept(self, stream: Stream, key: str, event: Event) -> Row | None:
        """The row that an earlier writer finished, if it has the symmetry that an uninterrupted run would give it."""
        assert self._derived is not None
        row = self._derived.journal.kept(stream.name, key, event.seq_num, event.turn)
        return row if row is not None and stream.images[key].takes_over(row, event.columns) else None

    def _denoised(self, stream: Stream, key: str, event: Event) -> Row:
        if late := self._too_late():
            raise DroppedError(late)
        return stream.images[key].row(self._image(stream, key, event), event.columns, event.time)

    def _failed(self, stream: Stream, key: str, event: Event, error: Exception) -> str:
        """Count a failure with those of its kind, and log the first of them: a thousand frames lack one file."""
        kind = error.rule if isinstance(error, SymDenoiseError) else str(error)
        if (stream.name, key, kind) not in self._reasons:
            log.warning("run %s, %s, event %d: %s", self._start["uid"][:8], key, event.seq_num, error)
        reason = self._reasons.setdefault((stream.name, key, kind), f"{stream.name}/{key}: {error}")
        self._failures[reason] += 1
        return reason

    def _take_darks(self, stream: Stream, event: Event) -> None:
        for key, images in stream.images.items():
            time = float("-inf") if event.time is None else event.time
            try:
                self._darks.take(key, time, self._image(stream, key, event), images.exposure_time(event.columns))
            except Exception as error:
                # The images that lack it say so in their rows.
                log.warning("run %s, dark of %s: %s", self._start["uid"][:8], key, error)

    def _image(self, stream: Stream, key: str, event: Event) -> NDArray[Any]:
        held = event.images.get(key)
        if isinstance(held, str):
            return self._legacy.read(held, tuple(stream.descriptor["data_keys"][key]["shape"]))
        if held is not None:
            return np.asarray(held)
        if stream.frames.has(key, event.seq_num, event.turn):
            return stream.frames.read(key, event.seq_num, event.turn)
        raise SymDenoiseError(
            f"event {event.seq_num}",
            rule="its frame was never announced",
            remedy="replay the run when it is there",
        )


def _is_image(data_key: Document) -> bool:
    """Whether a data key holds 2D images, perhaps several an event: (..., y, x) with y and x above 1."""
    shape = data_key.get("shape") or []
    dtype = data_key.get("dtype_numpy", "<f8")
    numeric = isinstance(dtype, str) and np.dtype(dtype).kind in "iuf"
    known = None not in shape and 2 <= len(shape) <= 3
    return data_key["dtype"] == "array" and known and numeric and min(shape[-2:]) > 1
