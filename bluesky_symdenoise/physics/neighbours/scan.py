"""The points of a scan: where its rows lie on a grid, as the start document of the run states it."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

#: Most axes of a scan whose rows are placed on a grid.
MOST_AXES = 8
#: Points that are looked at one by one before all rows are: beside the last rows of an aborted scan few are near.
_PATIENCE = 32


@dataclass(frozen=True)
class Scan:
    """A grid of points in the order of a scan, slowest axis first.

    Attributes
    ----------
    shape
        Number of points along each axis.
    snaking
        Whether each axis runs back and forth.
    repeats
        Number of successive rows at each point.
    """

    shape: tuple[int, ...]
    snaking: tuple[bool, ...]
    repeats: int = 1

    @classmethod
    def of(cls, start: Mapping[str, Any], stream: str = "primary") -> Scan | None:
        """Return the grid that a start document states for the rows of a stream; None to go by their number.

        Only what Bluesky's plans put there is used: ``shape``; ``snaking`` or ``snake_axes``; ``num_points``, which may
        be a multiple of the grid's points where each is measured several times in succession; and of ``hints``
        ``dimensions``, which name the stream, and ``gridding``, which says of a square spiral that its points do not
        follow one another. A time series (``count``) and a scan of one axis without ``shape`` go by number.
        """
        shape = _whole(start.get("shape"))
        hints = start.get("hints")
        hints = hints if isinstance(hints, Mapping) else {}
        if not shape or not _is_of(stream, hints) or "nonsequential" in str(hints.get("gridding")):
            return None
        snaking = _snaking(start, len(shape))
        if snaking is None:
            return None
        points, rows = math.prod(shape), _whole([start.get("num_points")])
        repeats = rows[0] // points if rows and rows[0] % points == 0 else 1
        return cls(shape, snaking, repeats)

    @property
    def rows(self) -> int:
        """Number of rows of the whole scan."""
        return math.prod(self.shape) * self.repeats

    def point(self, number: int) -> tuple[int, ...]:
        """Return the index along each axis of a point, from its number in the order of the scan."""
        indices = []
        for size, snakes in zip(self.shape[::-1], self.snaking[::-1], strict=True):
            number, index = divmod(number, size)
            indices.append(size - 1 - index if snakes and number % 2 else index)
        return tuple(indices[::-1])

    def number(self, point: Sequence[int]) -> int:
        """Return the number in the order of the scan of the point with these indices."""
        number = 0
        for index, size, snakes in zip(point, self.shape, self.snaking, strict=True):
            number = number * size + (size - 1 - index if snakes and number % 2 else index)
        return number

    def nearest(self, row: int, most: int, *, before: bool, stop: int | None = None) -> list[int]:
        """Return the nearest rows on one side of a row, nearest first and, at equal distance, in order.

        From the row's own point outwards, each point of the side is reached over nearer points of that side, so that
        a queue by distance finds them in order.

        Parameters
        ----------
        most
            Number of rows that are wanted.
        before
            Whether rows before or rows after this one are.
        stop
            Number of rows that the run has, if it is fewer than those of the scan.
        """
        own_number = row // self.repeats
        own = self.point(own_number)
        last = min(self.rows, self.rows if stop is None else stop)
        wanted = min(most, row if before else max(0, last - 1 - row))
        queue, seen, found = [(0, own_number, own)], {own}, list[int]()
        while queue and len(found) < wanted and len(seen) < _PATIENCE * (most + 1) * len(own):
            _, number, point = heapq.heappop(queue)
            for each in range(number * self.repeats, (number + 1) * self.repeats):
                if (each < row) if before else (row < each < last):
                    found.append(each)
            for there in self._beside(point):
                following = self.number(there)
                if there not in seen and (following < own_number) == before and following != own_number:
                    seen.add(there)
                    heapq.heappush(queue, (_distance(own, there), following, there))
        return found[:wanted] if len(found) >= wanted else self._nearest_of_all(row, wanted, before, last)

    def span(self, most: int) -> int:
        """Return a number of rows from which none of the `most` nearest rows on either side is farther away.

        A row so many lines away is wanted only if fewer than `most` rows of those lines are nearer: at least those in
        a quarter of a circle about the row, also at the edge of the scan.
        """
        line, width = math.prod(self.shape[1:]), max(self.shape[1:], default=1)
        lines = most
        for away in range(1, most):
            nearer = sum(min(width - 1, math.isqrt(away**2 - step**2 - 1)) + 1 for step in range(1, away))
            if nearer * self.repeats >= most:
                lines = away - 1
                break
        return (min(lines, self.shape[0] - 1) + 1) * line * self.repeats

    def _beside(self, point: tuple[int, ...]) -> Iterable[tuple[int, ...]]:
        for axis, index in enumerate(point):
            for there in (index - 1, index + 1):
                if 0 <= there < self.shape[axis]:
                    yield (*point[:axis], there, *point[axis + 1 :])

    def _nearest_of_all(self, row: int, wanted: int, before: bool, last: int) -> list[int]:
        rows = np.arange(0, row) if before else np.arange(row + 1, last)
        number, distance = rows // self.repeats, np.zeros(len(rows), np.int64)
        own = self.point(row // self.repeats)
        for size, snakes, here in zip(self.shape[::-1], self.snaking[::-1], own[::-1], strict=True):
            number, index = np.divmod(number, size)
            index = np.where(number % 2, size - 1 - index, index) if snakes else index
            distance += (index - here) ** 2
        return [int(each) for each in rows[np.lexsort((rows, distance))[:wanted]]]


def _distance(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the square of the distance of two points."""
    return sum((there - here) ** 2 for here, there in zip(one, other, strict=True))


def _whole(values: Any) -> tuple[int, ...] | None:
    """Return positive whole numbers as a tuple, or None if they are no such numbers or too many."""
    if not isinstance(values, Sequence | np.ndarray) or isinstance(values, str) or not 0 < len(values) <= MOST_AXES:
        return None
    whole = all(isinstance(each, int | np.integer) and not isinstance(each, bool) and each > 0 for each in values)
    return tuple(int(each) for each in values) if whole and math.prod(map(int, values)) < 2**53 else None


def _is_of(stream: str, hints: Mapping[str, Any]) -> bool:
    """Return whether the rows of a stream are the points of the scan; those of ``primary`` are unless stated."""
    dimensions = hints.get("dimensions")
    named = {
        str(each[1])
        for each in (dimensions if isinstance(dimensions, Sequence) else ())
        if isinstance(each, Sequence) and not isinstance(each, str) and len(each) == 2
    }
    return stream in (named or {"primary"})


def _snaking(start: Mapping[str, Any], axes: int) -> tuple[bool, ...] | None:
    """Return which axes run back and forth; None if that cannot be told."""
    stated = start.get("snaking")
    if isinstance(stated, Sequence | np.ndarray) and not isinstance(stated, str) and len(stated) == axes:
        return tuple(bool(each) for each in stated)
    if isinstance(stated, bool):
        return (False, *(stated,) * (axes - 1))
    # `list_grid_scan` writes the text of its argument; a list of motors does not say which axes they are.
    text = str(start.get("snake_axes", False))
    if stated is not None or text not in ("True", "False", "None", "()", "[]"):
        return None
    return (False, *(text == "True",) * (axes - 1))
