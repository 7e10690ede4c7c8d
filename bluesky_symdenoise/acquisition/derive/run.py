"""From one raw run to one derived run: the path that live documents and stored runs share."""

from __future__ import annotations

import logging
import socket
import time as clock
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from bluesky_symdenoise.acquisition.deliver.outlet import STRAIGHT, Outlet
from bluesky_symdenoise.acquisition.derive.call_queue import CallQueue
from bluesky_symdenoise.acquisition.derive.checks import RowChecks
from bluesky_symdenoise.acquisition.derive.lending import LendingRows
from bluesky_symdenoise.acquisition.derive.making import Making
from bluesky_symdenoise.acquisition.derive.reader import HELD, RunReader
from bluesky_symdenoise.acquisition.derive.streams import Event, Stream
from bluesky_symdenoise.acquisition.derive.taker import RowTaker
from bluesky_symdenoise.acquisition.request.place import check_apart
from bluesky_symdenoise.acquisition.request.request import Work, now
from bluesky_symdenoise.acquisition.runs.frames import FrameSource
from bluesky_symdenoise.acquisition.runs.replaced import Replaced
from bluesky_symdenoise.catalog.find.query import SPEC
from bluesky_symdenoise.catalog.store.journal import Journal
from bluesky_symdenoise.catalog.store.writer import DerivedRun, DerivedStream
from bluesky_symdenoise.derived.columns import refused_keys, refused_stream
from bluesky_symdenoise.derived.row import CompressedRow, Row, empty_row, fitting
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.tilt import split_tilt

log = logging.getLogger("bluesky_symdenoise")

Document = dict[str, Any]

#: Outcome of one image: the row to store, or the reason why there is none.
Outcome = Row | CompressedRow | Exception

#: Keys of the raw start document that are not copied: catalog[scan_id] must find the raw run.
_OWN_KEYS = frozenset({"uid", "time", "scan_id", "versions", "tiled_specs"})
#: Rows, or bytes of rows, that may wait to be written while the next row is denoised, and the bytes that a row counts
#: as at least. With small frames, Tiled's requests at the beginning of a run take as long as many rows.
WAITING, WAITING_BYTES, LEAST_BYTES = 2, 2**24, 2**15


class DroppedError(Exception):
    """A frame is not denoised because the denoiser is too far behind."""


class DerivedRows(RowTaker):
    """Denoise the rows of one raw run and write its derived run.

    Rows are written, and their documents sent, in a background thread: an exception there is raised with one of the
    next rows, at the latest by `finish`.

    Parameters
    ----------
    work
        What to do.
    making
        How rows are made.
    environment
        Properties that decide the bits of a row, if rows are computed on another computer; see `Work.environment`.
    finished_frame
        Called in that thread after each frame has been written: with None, or with the reason why it is NaN. If it
        raises, no row is written after this one.
    too_late
        Called before each frame; if it returns a reason not to denoise the frame any more, the frame becomes NaN.
    outlet
        Where the documents of the derived run go.
    """

    def __init__(
        self,
        work: Work,
        *,
        making: Making | None = None,
        environment: Document | None = None,
        finished_frame: Callable[[str | None], None] = lambda _: None,
        too_late: Callable[[], str | None] = lambda: None,
        outlet: Outlet = STRAIGHT,
    ) -> None:
        self._work, self._making, self._environment = work, making or Making(), environment
        self._finished_frame, self._too_late, self._outlet = finished_frame, too_late, outlet
        self._wanted, self._checks = work.recipe.rows, RowChecks(work)
        self._start: Document = {}
        self._calls = CallQueue()
        self._journal: Journal | None = None
        self._derived: DerivedRun | None = None
        #: Derived streams by stream name, from their first row on.
        self._opened: dict[str, DerivedStream] = {}
        #: Number of failed frames by reason, and (`_reasons`) the first full reason of each kind.
        self._failures: Counter[str] = Counter()
        self._reasons: dict[tuple[str, str, str], str] = {}
        self._frames = 0
        #: Rows that wait until the shapes of all images of their stream are known.
        self._held: dict[str, list[tuple[Event, Mapping[str, Outcome]]]] = {}
        self._shapeless: Counter[str] = Counter()
        #: Raw images of the first rows, kept until they are denoised.
        self._first: dict[tuple[str, str, int, int], NDArray[Any]] = {}
        self._begun = 0.0
        self.complaint: str | None = None
        self._folder = work.folder

    @property
    def has_run(self) -> bool:  # type: ignore[override]
        """Whether there is a derived run."""
        return self._derived is not None

    @property
    def busy(self) -> bool:  # type: ignore[override]
        """Whether rows wait to be written."""
        return self._calls.busy

    @property
    def journal(self) -> Path:
        """Path of the journal of the derived run, once that is open."""
        assert self._journal is not None
        return self._journal.path

    def settle(self) -> None:
        """Wait until all rows that were taken are written; raise the exception of the background thread, if any."""
        self._calls.wait()

    def abandon(self) -> None:
        """Discard the rows that are waiting to be written."""
        self._calls.close()

    def leave(self) -> None:
        """Release the derived run without ending it; the next process that opens it continues with its rows."""
        self._calls.close()
        if self._derived is not None:
            self._derived.leave()
        elif self._journal is not None:
            self._journal.close()

    def finish(self, streams: Collection[Stream]) -> None:
        """Write what is left: no further row comes."""
        self._calls.wait()
        if self._derived is not None:
            for stream in streams:
                if self._held.get(stream.name):
                    self._append_held(stream)
        self._calls.close()

    def close(self, streams: Collection[Stream], *, complete: bool, exit_status: str, reason: str) -> str | None:
        """End the derived run, and return what became of it in one line."""
        if self._derived is None:
            if self._journal is not None:
                self._journal.close()
            return None
        failures = [{"reason": why, "frames": count} for why, count in self._failures.items()]
        groups = {
            f"{stream.name}/{key}": images.point_group
            for stream in streams
            for key, images in stream.images.items()
            if images.point_group is not None
        }
        doubts = {
            f"{stream.name}/{key}": images.doubt
            for stream in streams
            for key, images in stream.images.items()
            if images.doubt is not None
        }
        self._derived.stop(
            exit_status=exit_status,
            reason=reason,
            provenance={
                "endedAtTime": now(),
                "complete": complete,
                "frames": self._frames,
                "failures": failures,
                # Queries split keys at dots, so that they are replaced. A group on a tilted detector is also listed
                # without the tilt.
                "symmetry": {
                    name.replace(".", "_"): [key for key, used in groups.items() if name in _names(used)]
                    for name in dict.fromkeys(name for used in groups.values() for name in _names(used))
                },
                **({"doubts": doubts} if doubts else {}),
                **(self._checks.checked(streams, too_late=self._too_late()) if complete else {}),
                "seconds": round(clock.perf_counter() - self._begun, 3),
                "bytes": sum(stream.bytes_written for stream in self._opened.values()),
            },
        )
        failed = sum(self._failures.values())
        outcome = f"{self._frames - failed} frames denoised" + (f", {failed} failed" if failed else "")
        return outcome + "".join(f"; is {name} photon counts? {why}" for name, why in doubts.items())

    def open(self, start: Document, descriptor: Document, keys: Sequence[str]) -> None:
        """Begin the derived run: the first stream with images has come."""
        self._start = start
        work, raw_uid = self._work, self._start["uid"]
        uid = work.recipe.derived_uid(raw_uid)
        self._begun = clock.perf_counter()
        provenance = self._provenance(descriptor["name"], keys)
        made_with = {key: provenance[key] for key in ("recipe_sha256", "environment")}
        self._folder, self.complaint = work.folder_for(self._start)
        if self.complaint is not None:
            log.warning("run %s: %s", raw_uid[:8], self.complaint)
        journal = Journal(self._folder / f"{uid}.journal", made_with=made_with)
        provenance["wasGeneratedBy"] |= {"host": socket.gethostname(), "journal": str(journal.path)}
        own = {key: value for key, value in self._start.items() if key not in _OWN_KEYS} | {
            "raw_uid": raw_uid,
            "raw_time": self._start["time"],
            "tiled_specs": [SPEC],
            "provenance": provenance,
        }
        if "scan_id" in self._start:
            own["raw_scan_id"] = self._start["scan_id"]
        arrays = work.arrays
        self._work.place.own(journal.path)
        try:
            emit = self._outlet(work, uid, journal.path)
        except BaseException:
            journal.close()
            raise
        self._journal = journal

        def begin() -> None:
            self._derived = self._making.derived_run(
                emit, work, journal=journal, start=own, uid=uid, time=clock.time(), arrays=arrays
            )

        self._calls.put(begin, most=WAITING)

    def _provenance(self, stream: str, keys: Sequence[str]) -> Document:
        made = self._work.provenance(self._start["uid"], stream, keys)
        return made if self._environment is None else made | {"environment": self._environment}

    def refused(self, stream: str, keys: Sequence[str]) -> dict[str, str]:
        """Return the data keys that Tiled does not accept: later, their documents would wait on disk forever."""
        remedy = "; rename the device or its stream, or denoise in memory with replay(run)"
        if reason := refused_stream(stream):
            return dict.fromkeys(keys, f"stream {stream!r}: {reason}{remedy}")
        refused = refused_keys(keys, tuple(self._work.columns), flown=False)
        return {key: f"{reason}{remedy}" for key, reason in refused.items()}

    def file(self, uri: str) -> None:
        """Refuse to write into a folder of raw files."""
        check_apart(self._folder, uri)

    def end_stream(self, stream: Stream) -> None:
        """Write the rows that wait for a shape."""
        self._calls.put(partial(self._append_held, stream), most=WAITING)

    def _ensure_open(self, stream: Stream) -> DerivedStream:
        assert self._derived is not None
        if stream.name in self._opened:
            return self._opened[stream.name]
        configuration: Document = {}
        arrays: dict[str, NDArray[Any]] = {}
        for images in stream.images.values():
            said, held = images.record()
            configuration |= said
            arrays |= held
        opened = self._derived.stream(
            stream.described, stream.keys, arrays=arrays, configuration=configuration, flown=stream.flown
        )
        self._opened[stream.name] = opened
        return opened

    def take(self, stream: Stream, event: Event, row: int) -> None:
        """Denoise the images of one event and write them, if the row is wanted; otherwise only update the decisions."""
        if row in self._wanted:
            self._write(stream, event)
        elif row < self._wanted[-1]:
            stream.look(event)

    def _write(self, stream: Stream, event: Event) -> None:
        if stream.name not in self._opened:
            if not self._making.shapes_known(stream):
                self._look_at_shapes(stream, event)
            if self._making.shapes_known(stream):
                self._calls.put(partial(self._ensure_open, stream), most=WAITING)
        outcomes: dict[str, Outcome] = {}
        for key in stream.keys:
            try:
                outcomes[key] = self.kept(stream, key, event) or self._denoised(stream, key, event)
            except Exception as error:
                outcomes[key] = error
        self.append(stream, event, outcomes)

    def _look_at_shapes(self, stream: Stream, event: Event) -> None:
        """Read the images of the first row, from which the derived stream takes its shapes."""
        for key in stream.keys:
            try:
                self._first[stream.name, key, event.seq_num, event.turn] = stream.image(key, event)
            except Exception as error:
                # The row of this image will say so.
                log.debug("run %s, %s: %s", self._start["uid"][:8], key, error)

    def append(self, stream: Stream, event: Event, outcomes: Mapping[str, Outcome]) -> None:
        """Queue the images of one event for writing; failures become NaN rows, with reasons in the stop document."""
        for key, each in outcomes.items():
            if isinstance(each, Row) and each.intensity.size:
                stream.shapes.setdefault(key, each.intensity.shape)
            if isinstance(each, (Row, CompressedRow)):
                stream.images[key].note(each, partial(stream.image, key, event), event.columns, event.time)
        self._checks.take(stream, event, outcomes)
        if not self._making.shapes_known(stream):
            self._shapeless[stream.name] += 1
            if self._shapeless[stream.name] > HELD:
                # Fall back to the stated shapes.
                for key in stream.keys:
                    stream.shapes.setdefault(key, tuple(stream.described["data_keys"][key]["shape"]))
        rows = (each for each in outcomes.values() if isinstance(each, Row))
        size = max(LEAST_BYTES, sum(row.intensity.nbytes + row.sigma.nbytes for row in rows))
        self._calls.put(partial(self._append_now, stream, event, outcomes), most=max(WAITING, WAITING_BYTES // size))

    def _append_now(self, stream: Stream, event: Event, outcomes: Mapping[str, Outcome]) -> None:
        self._work.place.check_space(self._folder)
        held = self._held.setdefault(stream.name, [])
        held.append((event, outcomes))
        # Rows before the first one with known shapes wait, but only `HELD` of them.
        if stream.name in self._opened or self._making.shapes_known(stream):
            self._append_held(stream)

    def _append_held(self, stream: Stream) -> None:
        derived = self._ensure_open(stream)
        for event, outcomes in self._held.pop(stream.name, ()):
            self._append_row(stream, derived, event, outcomes)

    def _append_row(
        self, stream: Stream, derived: DerivedStream, event: Event, outcomes: Mapping[str, Outcome]
    ) -> None:
        rows: dict[str, Row | CompressedRow] = {}
        reasons: list[str | None] = []
        for key, outcome in outcomes.items():
            self._frames += 1
            if isinstance(outcome, Row) and outcome.intensity.size:
                outcome = fitting(outcome, derived.shapes[key])
            if isinstance(outcome, Exception):
                rows[key] = empty_row(derived.shapes[key], self._work.columns)
                reasons.append(self._failed(stream, key, event, outcome))
            else:
                rows[key] = outcome
                reasons.append(None)
        derived.append(seq_num=event.seq_num, time=event.time, rows=rows)
        for reason in reasons:
            self._finished_frame(reason)

    def kept(self, stream: Stream, key: str, event: Event) -> Row | None:
        """Return the row that an earlier writer finished, if it has the symmetry that it would be given now."""
        assert self._journal is not None
        row = self._journal.kept(stream.name, key, event.seq_num, event.turn)
        image, images = partial(stream.image, key, event), stream.images[key]
        # A row for which a lender was missing is made again: the lender may be there by now.
        if row is None or not (stream.lending is None or stream.lending.lent_all(event, row.scalars)):
            return None
        return row if images.takes_over(row, image, event.columns, event.time) else None

    def _denoised(self, stream: Stream, key: str, event: Event) -> Row:
        if late := self._too_late():
            raise DroppedError(late)
        image = self._first.pop((stream.name, key, event.seq_num, event.turn), None)
        return self._making.row(stream, key, event, image)

    def _failed(self, stream: Stream, key: str, event: Event, error: Exception) -> str:
        """Count a failure with others of its kind, and log the first: one missing file may fail a thousand frames."""
        kind = error.rule if isinstance(error, SymDenoiseError) else str(error)
        if (stream.name, key, kind) not in self._reasons:
            log.warning("run %s, %s, event %d: %s", self._start["uid"][:8], key, event.seq_num, error)
        reason = self._reasons.setdefault((stream.name, key, kind), f"{stream.name}/{key}: {error}")
        self._failures[reason] += 1
        return reason


def run_denoiser(
    work: Work,
    *,
    source: Callable[[Document], FrameSource] | None = None,
    replaced: Replaced | None = None,
    finished_frame: Callable[[str | None], None] = lambda _: None,
    too_late: Callable[[], str | None] = lambda: None,
    outlet: Outlet = STRAIGHT,
) -> RunReader:
    """Return a reader that takes the documents of one raw run and writes its derived run.

    Parameters
    ----------
    source, replaced
        See `RunReader`.
    finished_frame, too_late, outlet
        See `DerivedRows`.
    """
    rows = DerivedRows(work, finished_frame=finished_frame, too_late=too_late, outlet=outlet)
    taker = rows if work.borrow is None else LendingRows(rows, work, folder=lambda: rows.journal.parent)
    return RunReader(work, taker, source=source, replaced=replaced)


def _names(symbol: str) -> tuple[str, str]:
    """Return a symmetry's symbol, and its group without the tilt."""
    return symbol, split_tilt(symbol)[0]
