"""What rows of a stream lend to each other: the raw frames of a row's window, whichever way the rows come."""

from __future__ import annotations

import logging
import sys
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.acquisition.derive.kept import KeptFrames
from bluesky_symdenoise.acquisition.derive.streams import Event, Stream
from bluesky_symdenoise.acquisition.derive.taker import PassedOn, RowTaker
from bluesky_symdenoise.acquisition.request.request import Request
from bluesky_symdenoise.acquisition.runs.documents import Unreadable
from bluesky_symdenoise.derived.columns import BORROWED_FROM, rows_text
from bluesky_symdenoise.derived.lending import lent_by
from bluesky_symdenoise.physics.neighbours.lent import Lent
from bluesky_symdenoise.physics.neighbours.window import Borrow, Lender, Scan

log = logging.getLogger("bluesky_symdenoise")

Document = dict[str, Any]

#: Number of rows of a run that goes on: more than any has.
ENDLESS = sys.maxsize


class Lending:
    """Rows of one stream that lend to each other, from the first one on.

    Frames in files are read again if memory does not hold them any more; images in events are kept.

    Parameters
    ----------
    borrow
        Which rows may lend to a row.
    start
        Start document of the run.
    folder
        Returns a folder for frames that do not fit into memory.
    """

    def __init__(self, borrow: Borrow, stream: Stream, start: Document, folder: Callable[[], Path]) -> None:
        self._borrow, self._stream, self._scan = borrow, stream, Scan.of(start, stream.name)
        self.span = borrow.span(self._scan)
        self._kept = KeptFrames(folder, rows=self.span + 1)
        self._events: dict[int, Event] = {}
        #: Images that could not be read, which is tried once.
        self._unreadable: set[tuple[str, int]] = set()
        #: Number of rows of the stream, once it has ended.
        self.number = ENDLESS

    def lenders(self, row: int) -> tuple[Lender, ...]:
        """Return the rows that may lend to a row."""
        return self._borrow.rows(row, self.number, self._scan)

    def add(self, event: Event, row: int) -> Event:
        """Take note of a row, and return its event as it is to be denoised: with references to images that it held."""
        event = replace(event, row=row)
        images: dict[str, Any] = dict(event.images)
        for key, held in event.images.items():
            # Texts are the names of legacy frames, which are in files.
            if isinstance(held, str | Unreadable) or held is None:
                continue
            try:
                image = self._stream.image(key, event)
            except Exception as error:
                # Whoever denoises the image raises this again.
                log.debug("row %d of %s/%s lends nothing: %s", row, self._stream.name, key, error)
                continue
            self._kept.keep(key, row, image, readable=False)
            images[key] = KeptImage(self._kept, key, row)
        self._events[row] = event = replace(event, images=images)
        return event

    def image(self, key: str, event: Event) -> NDArray[Any]:
        """Read the image of a row, and keep it for those that borrow from it."""
        assert event.row is not None
        held = self._kept.get(key, event.row)
        if held is not None:
            return held
        try:
            image = self._stream.image(key, event)
        except Exception:
            self._unreadable.add((key, event.row))
            raise
        self._kept.keep(key, event.row, image, readable=True)
        return image

    def lent(self, key: str, event: Event, image: NDArray[Any]) -> list[Lent]:
        """Return the frames that other rows lend to one, of which this is the image."""
        assert event.row is not None
        self._kept.keep(key, event.row, image, readable=True)
        return lent_by(self.lenders(event.row), lambda row: self._read(key, row), shape=image.shape)

    def lent_all(self, event: Event, scalars: Mapping[str, Any]) -> bool:
        """Return whether a finished row with these columns had all rows of its window to borrow from."""
        assert event.row is not None
        return bool(scalars.get(BORROWED_FROM) == rows_text(each.row for each in self.lenders(event.row)))

    def forget(self, before: int) -> None:
        """Drop the rows before this one, from which no row borrows any more."""
        self._kept.forget(before)
        for row in [row for row in self._events if row < before]:
            del self._events[row]
        self._unreadable = {each for each in self._unreadable if each[1] >= before}

    def close(self) -> None:
        """Drop everything."""
        self._kept.close()
        self._events.clear()

    def _read(self, key: str, row: int) -> NDArray[Any] | None:
        if (key, row) in self._unreadable or row not in self._events:
            return None
        try:
            return self.image(key, self._events[row])
        except Exception as error:
            self._unreadable.add((key, row))
            log.warning("row %d of %s/%s lends nothing: %s", row, self._stream.name, key, error)
            return None


@dataclass(frozen=True)
class KeptImage:
    """Reference to an image that its event held; an array to NumPy."""

    kept: KeptFrames
    key: str
    row: int

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        image = self.kept.get(self.key, self.row)
        if image is None:
            raise LookupError(f"the image of row {self.row} is not kept any more")
        return np.asarray(image, dtype)


class LendingRows(PassedOn):
    """Pass rows on when all rows of their windows have come, in order: those that lend to them can be read then.

    Parameters
    ----------
    to
        Takes the rows.
    folder
        Returns a folder for frames that do not fit into memory.
    """

    def __init__(self, to: RowTaker, asked: Request, *, folder: Callable[[], Path]) -> None:
        super().__init__(to)
        assert asked.borrow is not None
        self._borrow, self._wanted, self._folder = asked.borrow, asked.recipe.rows, folder
        self._start: Document = {}
        self._lending: dict[str, Lending] = {}
        #: Rows that wait, by stream, each with the last row of its window.
        self._waiting: dict[str, deque[tuple[Event, int, int]]] = {}

    def open(self, start: Document, descriptor: Document, keys: Sequence[str]) -> None:
        """Remember the start document, which says where rows lie, and begin with the other taker."""
        self._start = start
        super().open(start, descriptor, keys)

    def take(self, stream: Stream, event: Event, row: int) -> None:
        """Take a row, and pass on those whose windows are complete with it."""
        lending = self._of(stream)
        near = self._may_lend(lending, row)
        event = lending.add(event, row) if near else replace(event, row=row)
        waiting = self._waiting[stream.name]
        last = max([row, *(each.row for each in lending.lenders(row))]) if near else row
        waiting.append((event, row, last))
        while waiting and waiting[0][2] <= row:
            self._pass_on(stream, lending)

    def end_stream(self, stream: Stream) -> None:
        """Pass on the rows that waited for rows that do not come."""
        if stream.name in self._lending:
            lending = self._lending[stream.name]
            lending.number = stream.rows
            while self._waiting[stream.name]:
                self._pass_on(stream, lending)
        super().end_stream(stream)

    def finish(self, streams: Collection[Stream]) -> None:
        """Have the other taker write what is left, and drop the frames that were kept."""
        super().finish(streams)
        self._drop()

    def leave(self) -> None:
        """Have the other taker release the run, and drop the frames that were kept."""
        self._drop()
        super().leave()

    def _pass_on(self, stream: Stream, lending: Lending) -> None:
        event, row, _ = self._waiting[stream.name].popleft()
        self._to.take(stream, event, row)
        lending.forget(row + 1 - lending.span)

    def _may_lend(self, lending: Lending, row: int) -> bool:
        """Return whether a row is wanted, or near enough to one to lend to it."""
        following = bisect_left(self._wanted, row - lending.span)
        return following < len(self._wanted) and self._wanted[following] <= row + lending.span

    def _of(self, stream: Stream) -> Lending:
        if stream.name not in self._lending:
            made = stream.lending = Lending(self._borrow, stream, self._start, self._folder)
            self._lending[stream.name], self._waiting[stream.name] = made, deque()
        return self._lending[stream.name]

    def _drop(self) -> None:
        self._waiting.clear()
        for each in self._lending.values():
            each.close()
