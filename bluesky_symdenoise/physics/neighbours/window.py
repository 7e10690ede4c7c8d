"""Which rows of a run may lend photons to one row: a function of the row, the scan and the choice alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.neighbours.scan import Scan as Scan

#: Sides from which rows may borrow.
SIDES = ("past", "both")
#: Rows on each side that may lend unless stated otherwise, and at most.
REACH, MOST = 8, 64


@dataclass(frozen=True)
class Lender:
    """Row that may lend, and the steps to it from the borrowing row along each scan axis."""

    row: int
    offset: tuple[float, ...]


@dataclass(frozen=True)
class Borrow:
    """Choice of the rows that may lend photons to each row.

    Attributes
    ----------
    side
        ``past``: rows that were measured before. ``both``: also those after.
    reach
        Number of rows on each side.

    Raises
    ------
    SymDenoiseError
        If there is no such side, or the reach is not a whole number from 1 to 64.
    """

    side: str
    reach: int = REACH

    def __post_init__(self) -> None:
        if self.side not in SIDES:
            raise SymDenoiseError(
                f"borrow={self.side!r}",
                rule="it must be past (rows before) or both (rows before and after)",
                remedy="give past or both, or leave it out",
            )
        if isinstance(self.reach, bool) or not isinstance(self.reach, int) or not 1 <= self.reach <= MOST:
            raise SymDenoiseError(
                f"borrow_reach={self.reach!r}",
                rule=f"it must be a whole number of rows from 1 to {MOST}",
                remedy=f"leave it out for {REACH}",
            )

    @classmethod
    def asked(cls, borrow: str | None, borrow_reach: Any = REACH) -> Borrow | None:
        """Return the choice, or None if nothing is to be borrowed."""
        return None if borrow is None else cls(borrow, borrow_reach)

    def to_text(self) -> str:
        """Return the choice as text, such as ``both:8``."""
        return f"{self.side}:{self.reach}"

    @classmethod
    def from_text(cls, text: str) -> Borrow:
        """Return the choice from what `to_text` returned."""
        side, _, reach = text.partition(":")
        return cls(side, int(reach))

    def rows(self, row: int, number: int | None = None, scan: Scan | None = None) -> tuple[Lender, ...]:
        """Return the rows that may lend to a row, nearest first and, at equal distance, in the order of the run.

        On each side, before the row and after it, these are the `reach` rows at the least distance
        ``sqrt(sum(offset**2))`` in steps of the scan's axes; without a scan, in rows. A row that comes after all points
        of the scan goes by number, and lends to no point.

        Parameters
        ----------
        row
            Number of the borrowing row in its stream, from 0.
        number
            Number of rows of the stream; None while the run goes on, when only rows before may lend.
        scan
            Scan whose points the rows are; None to go by number.
        """
        both = self.side == "both" and number is not None
        stop = row if number is None or not both else number
        if scan is None or row >= scan.rows:
            found = [*range(max(0, row - self.reach), row), *range(row + 1, min(stop, row + 1 + self.reach))]
            lenders = [Lender(each, (float(each - row),)) for each in found]
        else:
            near = scan.nearest(row, self.reach, before=True)
            if both:
                near += scan.nearest(row, self.reach, before=False, stop=stop)
            own = scan.point(row // scan.repeats)
            points = ((each, scan.point(each // scan.repeats)) for each in near)
            lenders = [
                Lender(each, tuple(float(there - here) for there, here in zip(point, own, strict=True)))
                for each, point in points
            ]
        return tuple(sorted(lenders, key=lambda lender: (sum(step**2 for step in lender.offset), lender.row)))

    def span(self, scan: Scan | None = None) -> int:
        """Return a number of rows from which no lender is farther away, before or after."""
        return self.reach if scan is None else max(self.reach, scan.span(self.reach))
