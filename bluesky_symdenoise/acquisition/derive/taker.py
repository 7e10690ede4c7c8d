"""What takes the rows of a run, one after another."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from bluesky_symdenoise.acquisition.derive.streams import Event, Stream

Document = dict[str, Any]


class RowTaker:
    """Takes the rows that a `RunReader` hands over, in the order in which these methods are called; here, does nothing.

    Attributes
    ----------
    reads_later
        Whether raw files are read after the run was closed.
    busy
        Whether rows that were taken are still to be written.
    has_run
        Whether there is a derived run.
    complaint
        What is wrong with the folder of its files, in one line.
    """

    reads_later = False
    busy = False
    has_run = False
    complaint: str | None = None

    def refused(self, stream: str, keys: Sequence[str]) -> dict[str, str]:
        """Return which images of a stream cannot be taken, with the reason."""
        return {}

    def columns(self, stream: Stream) -> set[str]:
        """Return the columns that are needed of an event."""
        return set[str]().union(*(images.columns for images in stream.images.values()))

    def open(self, start: Document, descriptor: Document, keys: Sequence[str]) -> None:
        """Begin: the first stream with images has come."""

    def begin(self, stream: Stream) -> None:
        """Take in a stream with images, before its first row."""

    def file(self, uri: str) -> None:
        """Take in that images are in this file."""

    def take(self, stream: Stream, event: Event, row: int) -> None:
        """Take a row, which has all its images; ``row`` counts those of the stream, wanted or not."""

    def end_stream(self, stream: Stream) -> None:
        """Take in that all rows of a stream have come."""

    def settle(self) -> None:
        """Wait until all rows that were taken are written; raise what went wrong there."""

    def finish(self, streams: Collection[Stream]) -> None:
        """Write what is left: no row comes any more."""

    def abandon(self) -> None:
        """Write nothing more of what waits."""

    def close(self, streams: Collection[Stream], *, complete: bool, exit_status: str, reason: str) -> str | None:
        """End, and return what became of the run in one line; None if nothing did."""
        return None

    def leave(self) -> None:
        """Let go without an end: who takes the run up next goes on with its rows."""


class PassedOn(RowTaker):
    """Hands all over to another taker; for those that do some of it in another way.

    Parameters
    ----------
    to
        The other taker.
    """

    def __init__(self, to: RowTaker) -> None:
        self._to = to

    @property
    def busy(self) -> bool:  # type: ignore[override]
        """As the other."""
        return self._to.busy

    @property
    def has_run(self) -> bool:  # type: ignore[override]
        """As the other."""
        return self._to.has_run

    @property
    def complaint(self) -> str | None:  # type: ignore[override]
        """As the other."""
        return self._to.complaint

    def refused(self, stream: str, keys: Sequence[str]) -> dict[str, str]:
        """Return what the other refuses."""
        return self._to.refused(stream, keys)

    def columns(self, stream: Stream) -> set[str]:
        """Return what the other needs."""
        return self._to.columns(stream)

    def open(self, start: Document, descriptor: Document, keys: Sequence[str]) -> None:
        """Have the other begin."""
        self._to.open(start, descriptor, keys)

    def begin(self, stream: Stream) -> None:
        """Tell the other of a stream."""
        self._to.begin(stream)

    def file(self, uri: str) -> None:
        """Tell the other of a file."""
        self._to.file(uri)

    def take(self, stream: Stream, event: Event, row: int) -> None:
        """Give the other the row."""
        self._to.take(stream, event, row)

    def end_stream(self, stream: Stream) -> None:
        """Tell the other that a stream has ended."""
        self._to.end_stream(stream)

    def settle(self) -> None:
        """Wait for the other."""
        self._to.settle()

    def finish(self, streams: Collection[Stream]) -> None:
        """Have the other write what is left."""
        self._to.finish(streams)

    def abandon(self) -> None:
        """Have the other write nothing more."""
        self._to.abandon()

    def close(self, streams: Collection[Stream], *, complete: bool, exit_status: str, reason: str) -> str | None:
        """Have the other end."""
        return self._to.close(streams, complete=complete, exit_status=exit_status, reason=reason)

    def leave(self) -> None:
        """Have the other let go."""
        self._to.leave()
