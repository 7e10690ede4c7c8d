"""One raw run in, one derived run out: the path that live documents and stored runs share."""

from __future__ import annotations

import logging
import socket
import time as clock
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from bluesky_tiled_plugins import TiledWriter
from event_model import DocumentRouter
from numpy.typing import NDArray
from tiled.client.utils import ClientError

from bluesky_symdenoise.acquisition.claim import Claim, doubled
from bluesky_symdenoise.acquisition.frames import AnnouncedFrames, FrameSource
from bluesky_symdenoise.acquisition.plan import Work, now
from bluesky_symdenoise.catalog.journal import Journal
from bluesky_symdenoise.catalog.query import SPEC
from bluesky_symdenoise.catalog.row import Row, denoised_row, empty_row
from bluesky_symdenoise.catalog.writer import DerivedRun, DerivedStream
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.frame import sentinel_mask
from bluesky_symdenoise.physics.symmetry import Symmetry

log = logging.getLogger("bluesky_symdenoise")

Document = dict[str, Any]

#: Keys of a raw start document that the derived one does not take over.
_OWN_KEYS = frozenset({"uid", "time", "scan_id", "versions", "tiled_specs"})

#: Of a run that is denoised while it is acquired.
_FIRST = Claim()


@dataclass
class _Stream:
    """What is known so far of one stream with images."""

    name: str
    keys: list[str]
    frames: FrameSource
    derived: DerivedStream
    waiting: deque[tuple[int, float, Mapping[str, Any]]] = field(default_factory=deque)
    done: set[int] = field(default_factory=set)


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
    claim
        When a derived run that is there already gives way.
    """

    def __init__(
        self,
        work: Work,
        *,
        source: Callable[[Document], FrameSource] = AnnouncedFrames,
        finished_frame: Callable[[str | None], None] = lambda _: None,
        claim: Claim = _FIRST,
    ) -> None:
        super().__init__()
        self._work, self._source, self._finished_frame, self._claim = work, source, finished_frame, claim
        self._start: Document = {}
        self._derived: DerivedRun | None = None
        self._streams: dict[str, _Stream] = {}
        self._by_descriptor: dict[str, _Stream] = {}
        self._resources: dict[str, Document] = {}
        self._symmetry: dict[str, Symmetry] = {}
        self._failures: Counter[str] = Counter()
        self._frames = 0
        self._begun = 0.0
        self._ended = False
        #: The derived run's uid once it is known, and what became of it in one line.
        self.derived_uid: str | None = None
        self.outcome = "nothing to denoise: no stream"
        self.closed = False

    def __call__(self, name: str, doc: Document, validate: bool = False) -> Any:
        """Take a document; one that comes after the run was closed is none of ours."""
        return None if self.closed else super().__call__(name, doc, validate)

    def start(self, doc: Document) -> None:
        """Remember the raw run; the derived one starts with its first stream of images."""
        self._start = doc

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
        if self._derived is None:
            self._derived = self._open(doc, keys)
        frames = self._source(doc)
        stream = _Stream(name=doc["name"], keys=keys, frames=frames, derived=self._derived.stream(doc, keys))
        self._streams[stream.name] = self._by_descriptor[doc["uid"]] = stream

    def stream_resource(self, doc: Document) -> None:
        """Keep the reference; which stream it belongs to is known with its first stream_datum."""
        self._resources[doc["uid"]] = doc

    def stream_datum(self, doc: Document) -> None:
        """Note where frames are; rows whose event has come are done now."""
        stream = self._by_descriptor.get(doc["descriptor"])
        resource = self._resources[doc["stream_resource"]]
        if stream is None or resource["data_key"] not in stream.keys:
            return
        if isinstance(stream.frames, AnnouncedFrames):
            stream.frames.take(resource, doc)
        self._advance(stream)

    def event(self, doc: Document) -> Document:
        """Queue the row; it is done when all its frames have been announced."""
        stream = self._by_descriptor.get(doc["descriptor"])
        if stream is not None:
            inline = {key: doc["data"][key] for key in stream.keys if key in doc["data"]}
            stream.waiting.append((doc["seq_num"], doc["time"], inline))
            self._advance(stream)
        return doc

    def stop(self, doc: Document) -> None:
        """Finish the rows that are left and close the derived run with the raw run's exit status."""
        self._ended = True
        for stream in self._streams.values():
            while stream.waiting:
                self._row(stream, *stream.waiting.popleft())
            for seq_num in stream.frames.announced():
                if seq_num not in stream.done:
                    self._row(stream, seq_num, doc["time"], {})
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

    def _close(self, *, exit_status: str, reason: str) -> None:
        self._let_go()
        if self._derived is None:
            return
        failures = [{"reason": why, "frames": count} for why, count in self._failures.items()]
        self._derived.stop(
            exit_status=exit_status,
            reason=reason,
            provenance={
                "endedAtTime": now(),
                "complete": self._ended,
                "frames": self._frames,
                "failures": failures,
                "seconds": round(clock.perf_counter() - self._begun, 3),
                "bytes": sum(stream.derived.bytes_written for stream in self._streams.values()),
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
        journal = Journal(work.folder / f"{uid}.journal", made_with=made_with)
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
        try:
            self._claim.make_way(work.container, uid, journal=journal.path)
            derived = DerivedRun(
                TiledWriter(work.container, batch_size=1),
                journal=journal,
                start=start,
                uid=uid,
                time=clock.time(),
                arrays=arrays,
            )
            self.derived_uid = uid
            return derived
        except BaseException as error:
            journal.close()
            if isinstance(error, ClientError):
                raise _refusal(error, uid, work) from error
            if isinstance(error, httpx.TransportError):
                raise SymDenoiseError(
                    f"container {work.container.uri}",
                    rule=f"the server cannot be reached ({str(error) or type(error).__name__})",
                    remedy="start it again, then replay the run; the raw run is as it was",
                ) from error
            raise

    def _advance(self, stream: _Stream) -> None:
        while stream.waiting:
            seq_num, _, inline = stream.waiting[0]
            if any(key not in inline and not stream.frames.has(key, seq_num) for key in stream.keys):
                return
            self._row(stream, *stream.waiting.popleft())

    def _row(self, stream: _Stream, seq_num: int, time: float, inline: Mapping[str, Any]) -> None:
        """Denoise the images of one event and write it; what fails becomes a NaN row with its reason in stop."""
        if seq_num in stream.done:
            return
        rows: dict[str, Row] = {}
        reasons: list[str | None] = []
        for key in stream.keys:
            self._frames += 1
            try:
                rows[key] = self._kept(stream, key, seq_num) or self._denoised(stream, key, seq_num, inline)
            except Exception as error:
                reason = f"{stream.name}/{key}: {error}"
                self._failures[reason] += 1
                log.warning("run %s, %s, event %d: %s", self._start["uid"][:8], key, seq_num, error)
                rows[key] = empty_row(stream.derived.shapes[key])
                reasons.append(reason)
            else:
                reasons.append(None)
        stream.done.add(seq_num)
        stream.derived.append(seq_num=seq_num, time=time, rows=rows)
        for outcome in reasons:
            self._finished_frame(outcome)

    def _kept(self, stream: _Stream, key: str, seq_num: int) -> Row | None:
        """The row that an earlier writer finished, if it has the symmetry that an uninterrupted run would give it."""
        assert self._derived is not None
        row = self._derived.journal.kept(stream.name, key, seq_num)
        if row is None:
            return None
        name, center = f"{stream.name}/{key}", (row.scalars["center_y"], row.scalars["center_x"])
        made = Symmetry(row.scalars["symmetry"], None if np.isnan(center[0]) else center)
        # A frame without counts does not decide the symmetry.
        known = self._symmetry.setdefault(name, made) if row.scalars["counts_in"] > 0 else self._symmetry.get(name)
        return row if made == known else None

    def _denoised(self, stream: _Stream, key: str, seq_num: int, inline: Mapping[str, Any]) -> Row:
        if isinstance(inline.get(key), str):
            raise SymDenoiseError(
                f"event {seq_num} with a datum id for its image",
                rule="legacy resource and datum documents are not read live",
                remedy="replay the run from Tiled when it has ended",
            )
        if key in inline:
            image = np.asarray(inline[key])
        elif stream.frames.has(key, seq_num):
            image = stream.frames.read(key, seq_num)
        else:
            raise SymDenoiseError(
                f"event {seq_num}",
                rule="its frame was never announced",
                remedy="replay the run when it is there",
            )
        work = self._work
        symmetry = self._resolved(f"{stream.name}/{key}", image)
        return denoised_row(
            work.denoiser, work.recipe, image, mask=work.mask, exposure=work.exposure, symmetry=symmetry
        )

    def _resolved(self, name: str, image: NDArray[Any]) -> Symmetry:
        """The symmetry of a data key, decided with its first frame that has counts."""
        found = self._symmetry.get(name)
        if found is None:
            found = self._work.denoiser.resolve(
                image,
                mask=self._work.mask,
                exposure=self._work.exposure,
                symmetry=self._work.recipe.symmetry,
                beam_center=self._work.recipe.beam_center,
            )
            if np.any(image[~sentinel_mask(image)]):
                self._symmetry[name] = found
        return found


def _is_image(data_key: Document) -> bool:
    """Whether a data key holds 2D images, perhaps several an event: (..., y, x) with y and x above 1."""
    shape = data_key.get("shape") or []
    dtype = data_key.get("dtype_numpy", "<f8")
    numeric = isinstance(dtype, str) and np.dtype(dtype).kind in "iuf"
    known = None not in shape and 2 <= len(shape) <= 3
    return data_key["dtype"] == "array" and known and numeric and min(shape[-2:]) > 1


def _refusal(error: ClientError, uid: str, work: Work) -> SymDenoiseError:
    status = error.response.status_code
    if status == 409:
        return doubled(uid)
    if status in (401, 403):
        return SymDenoiseError(
            f"container {work.container.uri}",
            rule=f"the server refuses to let this client write ({status})",
            remedy="use an API key with the scopes create, write:metadata, write:data and register",
        )
    return SymDenoiseError(
        f"container {work.container.uri}",
        rule=f"the server did not take a new run ({error})",
        remedy="check its log, then replay the run",
    )
