"""Rows of a stored run that lend to one row, and their raw frames, of which the latest are kept."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.neighbours.lent import Lent
from bluesky_symdenoise.physics.neighbours.window import Borrow, Lender, Scan

#: Bytes of rows that are kept because they may lend to other rows, beyond those of one window.
KEPT_BYTES = 2**28

log = logging.getLogger("bluesky_symdenoise")


@dataclass(frozen=True)
class Window:
    """Rows of one stream that may lend photons to each of its rows.

    Attributes
    ----------
    borrow
        Sides and reach.
    number
        Number of rows of the stream, those without a frame included.
    scan
        Scan whose points the rows are; None to go by number.
    """

    borrow: Borrow
    number: int
    scan: Scan | None = None

    @classmethod
    def of(cls, borrow: str | None, *, number: int, start: Mapping[str, Any], stream: str) -> Window | None:
        """Return the window that a recipe's choice is in a stream of a run with this start document, or None."""
        return None if borrow is None else cls(Borrow.from_text(borrow), number, Scan.of(start, stream))

    def lenders(self, row: int) -> tuple[Lender, ...]:
        """Return the rows that may lend to a row, nearest first."""
        return self.borrow.rows(row, self.number, self.scan)


def lent_by(
    lenders: Iterable[Lender], read: Callable[[int], NDArray[Any] | None], *, shape: tuple[int, ...] | None = None
) -> list[Lent]:
    """Return the frames that rows lend, in their order.

    Parameters
    ----------
    read
        Returns the raw image (..., y, x) of a row, or None if it cannot be read: such a row lends nothing.
    shape
        Shape of the borrowing row's image: rows of another one lend nothing, either. None for any.
    """
    lent = []
    for each in lenders:
        image = read(each.row)
        if image is not None and shape in (None, image.shape):
            lent += [Lent(frame, each.offset, each.row) for frame in image.reshape(-1, *image.shape[-2:])]
    return lent


class Recent:
    """Read rows, of which the latest are kept, and so is why one could not be read.

    Parameters
    ----------
    read
        Returns the frames (..., y, x) of a row, or raises SymDenoiseError.
    borrow
        Rows that lend: those of one window are kept, whatever their size. None: one row is.
    """

    def __init__(self, read: Callable[[int], NDArray[Any]], borrow: Borrow | None) -> None:
        # From one row to the next of a map, its window gains a row on each of several lines.
        self._read, self._least = read, 1 if borrow is None else 3 * borrow.reach + 2
        self._limit = 0 if borrow is None else KEPT_BYTES
        self._held: OrderedDict[int, NDArray[Any] | SymDenoiseError] = OrderedDict()
        self._bytes = 0

    def __call__(self, row: int) -> NDArray[Any]:
        """Return a row, or raise why it cannot be read."""
        if row not in self._held:
            try:
                self._held[row] = self._read(row)
            except SymDenoiseError as error:
                self._held[row] = error
            self._bytes += _bytes(self._held[row])
            while self._bytes > self._limit and len(self._held) > self._least:
                self._bytes -= _bytes(self._held.popitem(last=False)[1])
        self._held.move_to_end(row)
        found = self._held[row]
        if isinstance(found, SymDenoiseError):
            raise found
        return found

    def readable(self, row: int) -> NDArray[Any] | None:
        """Return a row, or None if it cannot be read."""
        try:
            return self(row)
        except SymDenoiseError as error:
            log.info("row %d lends nothing: %s", row, error)
            return None


def _bytes(held: NDArray[Any] | SymDenoiseError) -> int:
    return 0 if isinstance(held, SymDenoiseError) else held.nbytes
