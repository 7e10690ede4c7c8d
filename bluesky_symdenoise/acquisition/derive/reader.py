"""Reader of the documents of one raw run, which hands over its rows in order with all that denoising them needs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from event_model import DocumentRouter, unpack_datum_page, unpack_event_page

from bluesky_symdenoise.acquisition.derive.complaints import Complaints
from bluesky_symdenoise.acquisition.derive.darks import Darks
from bluesky_symdenoise.acquisition.derive.images import ImageDenoiser, fits, misfit
from bluesky_symdenoise.acquisition.derive.streams import Event, Stream, said_lack
from bluesky_symdenoise.acquisition.derive.taker import RowTaker
from bluesky_symdenoise.acquisition.request.images import image_keys, no_images
from bluesky_symdenoise.acquisition.request.request import Request
from bluesky_symdenoise.acquisition.runs.counting import Counting
from bluesky_symdenoise.acquisition.runs.documents import Unreadable, refuse_unreadable
from bluesky_symdenoise.acquisition.runs.frames import AnnouncedFrames, FrameSource
from bluesky_symdenoise.acquisition.runs.legacy import LegacyFrames
from bluesky_symdenoise.acquisition.runs.replaced import Replaced
from bluesky_symdenoise.errors import SymDenoiseError

log = logging.getLogger("bluesky_symdenoise")

Document = dict[str, Any]

#: Most rows that wait for the first readable image.
HELD = 8


class RunReader(DocumentRouter):  # type: ignore[misc]
    """Take the documents of one raw run and hand over its rows.

    Parameters
    ----------
    asked
        What to do with every frame.
    taker
        Takes the rows.
    source
        Makes the frame source of a stream from its descriptor; by default files that documents announce.
    replaced
        Files that may have been replaced since they were announced.
    """

    def __init__(
        self,
        asked: Request,
        taker: RowTaker,
        *,
        source: Callable[[Document], FrameSource] | None = None,
        replaced: Replaced | None = None,
    ) -> None:
        super().__init__()
        self._asked, self._taker = asked, taker
        self._source = source or partial(AnnouncedFrames, replaced=replaced)
        self._start: Document = {}
        self._streams: dict[str, Stream] = {}
        self._by_descriptor: dict[str, Stream] = {}
        #: Uids of descriptors without a requested image.
        self._left_out: list[Document] = []
        self._resources: dict[str, Document] = {}
        self._counting = Counting()
        #: Uids of the resources of requested images.
        self._seen: set[str] = set()
        #: Descriptors of all streams by uid, with images or without.
        self._descriptors: dict[str, Document] = {}
        self._legacy = LegacyFrames(asked.beamline.handlers, replaced or Replaced())
        self._darks = Darks(asked, {})
        self._ended = False
        #: Error of the images that contradict their stated shape, until the first image is read.
        self._misfit: SymDenoiseError | None = None
        self._unopened: list[tuple[Stream, Event]] = []
        self._complaints = Complaints("")
        #: Uid of the derived run, once a stream of images has come, and (`outcome`) the result in one line.
        self.derived_uid: str | None = None
        self.outcome = "nothing to denoise: no stream"
        self.closed = False

    def __call__(self, name: str, doc: Document, validate: bool = False) -> Any:
        """Take a document; one that comes after the run was closed is ignored."""
        return None if self.closed else super().__call__(name, doc, validate)

    def start(self, doc: Document) -> None:
        """Remember the raw run; the derived one starts with its first stream of images."""
        self._start, self._complaints = doc, Complaints(doc["uid"])
        self._darks = Darks(self._asked, doc)

    def descriptor(self, doc: Document) -> None:
        """Open the derived stream, and with the first one the derived run.

        A stream's second descriptor says that its configuration changed: the rows go on where they were.
        """
        refuse_unreadable("descriptor", {"data_keys": doc["data_keys"]})
        self._descriptors[doc["uid"]] = doc
        if doc["name"] in self._streams:
            self._by_descriptor[doc["uid"]] = self._streams[doc["name"]]
            return
        asked = self._asked
        # The dark stream is read whatever streams were chosen to be denoised.
        chosen = replace(asked.recipe, streams=None) if doc["name"] == asked.beamline.dark_stream else asked.recipe
        keys = image_keys(doc, chosen)
        refused = self._taker.refused(doc["name"], keys)
        self._complaints.left_out(doc["name"], no_images(doc) | refused, asked=self._asked.recipe.data_keys)
        keys = [key for key in keys if key not in refused]
        if not keys:
            self._left_out.append(doc)
            if self.derived_uid is None:
                self.outcome = f"nothing to denoise: {self.lack}"
            return
        if any(each["name"] == doc["name"] for each in self._left_out):
            self._complaints.once(
                f"stream {doc['name']!r}: its first descriptor described no image ({no_images(self._left_out[-1])}): "
                "the events that came before this one are left out; have the device describe its image from the first"
            )
        images = {
            key: ImageDenoiser(self._asked, self._darks, key=key, start=self._start, descriptor=doc) for key in keys
        }
        if self.derived_uid is None and self._misfit is None and doc["name"] != self._asked.beamline.dark_stream:
            self._misfit = misfit(images, doc)
            if self._misfit is None:
                self._open_with(doc, keys)
        if doc["name"] != self._asked.beamline.dark_stream:
            self._complaints.missing(doc["name"], images)
        stream = Stream(
            run=self._start["uid"],
            name=doc["name"],
            keys=keys,
            descriptor=doc,
            frames=self._source(doc),
            legacy=self._legacy,
            images=images,
        )
        self._streams[stream.name] = self._by_descriptor[doc["uid"]] = stream
        if not self._is_dark(stream):
            self._taker.begin(stream)

    def stream_resource(self, doc: Document) -> None:
        """Keep the reference; which stream it belongs to is known with its first stream_datum."""
        self._resources[doc["uid"]] = doc

    def stream_datum(self, doc: Document) -> None:
        """Note where frames are, and process the rows whose event has come.

        In a step scan, an event follows each announcement. If none comes before the next announcement, and no data
        key needs one, the stream is a fly scan: each of its frames is a row.
        """
        stream = self._by_descriptor.get(doc["descriptor"])
        resource = self._resources.get(doc["stream_resource"])
        if resource is None:
            self._complaints.once(
                f"a stream_datum names resource {doc['stream_resource']!r}, which was not announced in this run: its "
                "frames cannot be found; have the device announce its files in each run"
            )
            return
        # Also for streams that were not requested: they may share a file with requested ones.
        count = self._counting.take(resource, doc, self._descriptors.get(doc["descriptor"], {}).get("name", ""))
        if stream is None or resource["data_key"] not in stream.keys:
            return
        if resource["data_key"] in stream.announced and stream.may_fly:
            stream.flown = True
        stream.announced.add(resource["data_key"])
        if isinstance(stream.frames, AnnouncedFrames):
            if resource["uid"] not in self._seen:
                self._seen.add(resource["uid"])
                self._taker.file(resource["uri"])
            stream.frames.take(resource, doc, count, descriptor=self._descriptors[doc["descriptor"]])
        self._advance()

    def resource(self, doc: Document) -> None:
        """Keep a legacy reference."""
        self._legacy.take_resource(doc)

    def datum(self, doc: Document) -> None:
        """Note where a legacy frame is."""
        self._legacy.take_datum(doc)
        self._advance()

    def datum_page(self, doc: Document) -> None:
        """Note where several legacy frames are."""
        for datum in unpack_datum_page(doc):
            self.datum(datum)

    def event(self, doc: Document) -> Document:
        """Queue the row, which is processed when all its frames have been announced."""
        stream = self._by_descriptor.get(doc["descriptor"])
        if stream is not None and stream.flown:
            self._complaints.once(
                f"stream {stream.name!r}: its events came after its frames, which were taken for those of a fly scan: "
                "the rows have no times; replay the run to give them times"
            )
        elif stream is not None:
            data = doc["data"]
            needed = self._taker.columns(stream)
            self._complaints.unreadable(stream.name, data)
            stream.waiting.append(
                Event(
                    seq_num=doc["seq_num"],
                    turn=stream.turns[doc["seq_num"]],
                    time=doc["time"],
                    images={key: data[key] for key in stream.keys if key in data},
                    columns={
                        name: data[name] for name in needed if name in data and not isinstance(data[name], Unreadable)
                    },
                )
            )
            if isinstance(stream.frames, AnnouncedFrames):
                for key in stream.keys:
                    stream.frames.pin(key, doc["seq_num"], stream.turns[doc["seq_num"]])
            stream.turns[doc["seq_num"]] += 1
            stream.announced.clear()
            self._advance()
        return doc

    def event_page(self, doc: Document) -> Document:
        """Queue the rows of several events."""
        for event in unpack_event_page(doc):
            self.event(event)
        return doc

    def stop(self, doc: Document) -> None:
        """Finish the rows that are left and close the derived run with the raw run's exit status."""
        self._ended = True
        for stream in self._dark_first():
            self._finish(stream, doc["time"])
        if self._misfit is not None:
            raise self._misfit
        self._close(exit_status=doc["exit_status"], reason=doc.get("reason", ""))

    def abandon(self, reason: str) -> None:
        """Close the derived run as incomplete: no stop document came, or rows could not be written."""
        if not self.closed:
            self._ended = False
            self._taker.abandon()
            self._close(exit_status="fail", reason=reason)

    def leave(self) -> None:
        """Release the derived run without ending it; the next process that opens it continues with its rows."""
        self._let_go()
        self._taker.leave()

    def settle(self) -> None:
        """Wait until all rows that were handed over are written."""
        self._taker.settle()

    @property
    def busy(self) -> bool:
        """Whether rows wait to be written."""
        return self._taker.busy

    @property
    def complete(self) -> bool:
        """Whether there is a derived run that ended with the raw run."""
        return self._ended and self._taker.has_run

    @property
    def complaint(self) -> str | None:
        """Problem with the folder of the derived files, in one line; None if there is none."""
        return self._taker.complaint

    @property
    def streams(self) -> Mapping[str, Stream]:
        """Streams with images, by name."""
        return self._streams

    @property
    def held(self) -> dict[str, int]:
        """Number of rows of each stream of images so far, wanted or not."""
        return {stream.name: stream.rows for stream in self._streams.values() if not self._is_dark(stream)}

    @property
    def waits_for_an_image(self) -> bool:
        """Whether the request contradicts the stated image shape, so that the first image has to show if it fits."""
        return self._misfit is not None

    @property
    def lack(self) -> str:
        """Reason why nothing is denoised: what was requested, and what the run has."""
        recipe, left_out = self._asked.recipe, self._left_out
        refused = {each["name"]: self._taker.refused(each["name"], image_keys(each, recipe)) for each in left_out}
        return said_lack(recipe, left_out, refused)

    def _open_with(self, descriptor: Document, keys: Sequence[str]) -> None:
        self._taker.open(self._start, descriptor, keys)
        self.derived_uid = self._asked.recipe.derived_uid(self._start["uid"])

    def _opened_in_spite(self, stream: Stream, event: Event, refused: SymDenoiseError) -> bool:
        """Return whether the actual images fit although the stated shape does not; the first readable one decides."""
        readable = False
        for key, images in stream.images.items():
            try:
                fitting = fits(images, stream.image(key, event).shape[-2:])
            except Exception as error:
                log.debug("run %s, %s: %s", self._start["uid"][:8], key, error)
                continue
            readable = True
            if fitting:
                self._misfit = None
                self._open_with(stream.descriptor, stream.keys)
                before, self._unopened = self._unopened, []
                for each in before:
                    self._hand_over(*each)
                return True
        self._unopened.append((stream, event))
        if readable or len(self._unopened) > HELD:
            raise refused
        return False

    def _close(self, *, exit_status: str, reason: str) -> None:
        streams = self._streams.values()
        self._taker.finish(streams)
        if self._taker.reads_later:
            self.closed = True
        else:
            self._let_go()
        outcome = self._taker.close(streams, complete=self._ended, exit_status=exit_status, reason=reason)
        self.outcome = self.outcome if outcome is None else outcome

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
        if not self._is_dark(stream):
            self._taker.end_stream(stream)

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
        """Write rows of frames that have no event; in a flown stream, those that all keys have."""
        for seq_num in stream.frames.announced():
            event = Event(seq_num=seq_num, turn=0, time=time, images={}, columns={})
            if seq_num not in stream.done and (self._ended or self._ready(stream, event)):
                self._row(stream, event)

    def _dark_first(self) -> list[Stream]:
        return sorted(self._streams.values(), key=self._is_dark, reverse=True)

    def _is_dark(self, stream: Stream) -> bool:
        return stream.name == self._asked.beamline.dark_stream

    def _row(self, stream: Stream, event: Event) -> None:
        """Hand over a row that has all its images, or keep it as a dark."""
        stream.done.add(event.seq_num)
        if self._is_dark(stream):
            self._take_darks(stream, event)
            return
        if self._misfit is not None and not self._opened_in_spite(stream, event, self._misfit):
            return
        self._hand_over(stream, event)

    def _hand_over(self, stream: Stream, event: Event) -> None:
        row, stream.rows = stream.rows, stream.rows + 1
        self._taker.take(stream, event, row)

    def _let_go(self) -> None:
        self.closed = True
        for close in (*(stream.frames.close for stream in self._streams.values()), self._legacy.close):
            try:
                close()
            except Exception as error:
                # All rows are written: close the derived run even if a raw file cannot be closed.
                log.warning("run %s: a raw file cannot be closed: %s", self._start["uid"][:8], error)

    def _take_darks(self, stream: Stream, event: Event) -> None:
        for key, images in stream.images.items():
            time = float("-inf") if event.time is None else event.time
            try:
                seconds, readout = images.exposure_time(event.columns), images.stated_readout(event.columns)
                self._darks.take(key, time, stream.image(key, event), seconds, readout)
            except Exception as error:
                # The rows of images that need this dark will say so.
                log.warning("run %s, dark of %s: %s", self._start["uid"][:8], key, error)
