"""Which rows of a run may lend photons to one row: a function of the row, the scan and the choice alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bluesky_symdenoise.errors import SymDenoiseError

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
class Scan:
    """Shape of a scan, slowest axis first, and whether each axis runs back and forth."""

    shape: tuple[int, ...]
    snaking: tuple[bool, ...]


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
        """Return the rows that may lend to a row, nearest first.

        Parameters
        ----------
        row
            Number of the borrowing row in its stream, from 0.
        number
            Number of rows of the stream; None while the run goes on, when only rows before may lend.
        scan
            Scan whose points the rows are; None to go by number.
        """
        before = [Lender(row - step, (-float(step),)) for step in range(1, self.reach + 1) if row >= step]
        if self.side == "past" or number is None:
            return tuple(before)
        after = [Lender(row + step, (float(step),)) for step in range(1, self.reach + 1) if row + step < number]
        return tuple(sorted(before + after, key=lambda lender: (abs(lender.offset[0]), lender.row)))
