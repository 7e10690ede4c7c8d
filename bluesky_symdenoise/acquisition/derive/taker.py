"""Interface of objects that take the rows of a run one after another."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from bluesky_symdenoise.acquisition.derive.streams import Event, Stream

Document = dict[str, Any]


class RowTaker:
    """Take the rows that a `RunReader` hands over, in the order of these methods; this base class does nothing.

    Attributes
    ----------
    reads_later
        Whether raw files are read after the run was closed.
    busy
        Whether rows that were taken are still to be written.
    has_run
        Whether there is a derived run.
    complaint
        Problem with the folder of its files, in one line; None if there is none.
    """

    reads_later = False
    busy = False
    has_run = False
    complaint: str | None = None

    def refused(self, stream: str, keys: Sequence[str]) -> dict[str, str]:
        """Return which images of a stream cannot be taken, each with the reason."""
        return {}

    def columns(self, stream: Stream) -> set[str]:
        """Return the event columns that are needed."""
        return set[str]().union(*(images.columns for images in stream.images.values()))

    def open(self, start: Document, descriptor: Document, keys: Sequence[str]) -> None:
        """Begin: a first stream with images has come."""

    def begin(self, stream: Stream) -> None:
        """Prepare for a stream with images, before its first row."""

    def file(self, uri: str) -> None:
        """Note that images are in this file."""

    def take(self, stream: Stream, event: Event, row: int) -> None:
        """Take a row, which has all its images; ``row`` counts all rows of the stream, wanted or not."""

    def end_stream(self, stream: Stream) -> None:
        """Note that all rows of a stream have come."""

    def settle(self) -> None:
        """Wait until all rows that were taken are written; raise the exception of the background thread, if any."""

    def finish(self, streams: Collection[Stream]) -> None:
        """Write what is left: no further row comes."""

    def abandon(self) -> None:
        """Discard the rows that are waiting to be written."""

    def close(self, streams: Collection[Stream], *, complete: bool, exit_status: str, reason: str) -> str | None:
        """End, and return what became of the run in one line; None if there is nothing to say."""
        return None

    def leave(self) -> None:
        """Release the run without ending it; the next process that opens it continues with its rows."""


class PassedOn(RowTaker):
    """Pass everything on to another taker; base class for takers that change some of it.

    Parameters
    ----------
    to
        The taker that everything is passed on to.
    """

    def __init__(self, to: RowTaker) -> None:
        self._to = to

    @property
    def busy(self) -> bool:  # type: ignore[override]
        """Whether the other taker has rows that are still to be written."""
        return self._to.busy

    @property
    def has_run(self) -> bool:  # type: ignore[override]
        """Whether the other taker has a derived run."""
        return self._to.has_run

    @property
    def complaint(self) -> str | None:  # type: ignore[override]
        """Problem of the other taker with the folder of its files, in one line."""
        return self._to.complaint

    def refused(self, stream: str, keys: Sequence[str]) -> dict[str, str]:
        """Return what the other taker refuses."""
        return self._to.refused(stream, keys)

    def columns(self, stream: Stream) -> set[str]:
        """Return the columns that the other taker needs."""
        return self._to.columns(stream)

    def open(self, start: Document, descriptor: Document, keys: Sequence[str]) -> None:
        """Begin with the other taker."""
        self._to.open(start, descriptor, keys)

    def begin(self, stream: Stream) -> None:
        """Pass a stream on to the other taker."""
        self._to.begin(stream)

    def file(self, uri: str) -> None:
        """Pass a file on to the other taker."""
        self._to.file(uri)

    def take(self, stream: Stream, event: Event, row: int) -> None:
        """Pass a row on to the other taker."""
        self._to.take(stream, event, row)

    def end_stream(self, stream: Stream) -> None:
        """Pass the end of a stream on to the other taker."""
        self._to.end_stream(stream)

    def settle(self) -> None:
        """Wait for the other taker."""
        self._to.settle()

    def finish(self, streams: Collection[Stream]) -> None:
        """Have the other taker write what is left."""
        self._to.finish(streams)

    def abandon(self) -> None:
        """Have the other taker discard its waiting rows."""
        self._to.abandon()

    def close(self, streams: Collection[Stream], *, complete: bool, exit_status: str, reason: str) -> str | None:
        """Close the other taker and return what it says."""
        return self._to.close(streams, complete=complete, exit_status=exit_status, reason=reason)

    def leave(self) -> None:
        """Have the other taker release the run."""
        self._to.leave()
