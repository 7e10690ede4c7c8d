"""Numbering of the rows of a file: decided once for each resource, over all streams of a run.

By the event model, the indices of a stream_datum count the rows of its own resource from 0. Some devices, and documents
converted from older ones, continue in each new file where the previous file ended. The first index of a later resource
decides between the two if it is 0, or differs from the number of rows before it; otherwise the file itself decides. A
file that is announced again from index 0 was either rewritten, or its rows continue although the indices start again:
its length decides.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bluesky_symdenoise.acquisition.runs.replaced import place
from bluesky_symdenoise.errors import SymDenoiseError

Document = dict[str, Any]

#: Seconds to wait for rows that show how a file is counted: as long as for any frame.
SETTLE_S = 10.0


@dataclass
class Count:
    """Numbering of the rows of one resource.

    Attributes
    ----------
    first
        The index of the file's first row; None while that is not known.
    other
        The first index if it is not 0: positive if a file continues the count of the previous file, negative if rows
        continue in a file that was announced before.
    stop
        The greatest index that was announced, plus one.
    """

    first: int | None
    other: int
    stop: int = 0
    _device: _Device = field(default_factory=lambda: _Device())

    def row(self, index: int, *, has: Callable[[int], bool]) -> int:
        """Return the row of the file for an index.

        Parameters
        ----------
        has
            Function that returns whether the file has a row now.

        Raises
        ------
        SymDenoiseError
            If the row cannot be determined.
        """
        if self.first is None:
            self.first = self._device.known.get(self.other > 0)
            if self.first is None:
                self.first = self._device.known[self.other > 0] = self._seen(index, has)
            self.first = self.other if self.first else 0
        return index - self.first

    def _seen(self, index: int, has: Callable[[int], bool]) -> bool:
        """Return whether the file has the rows of the other way of counting only."""
        deadline = time.monotonic() + SETTLE_S
        while True:
            own = has(self.stop - 1)
            others = has(self.stop - 1 - self.other) and (self.other < 0 or has(0))
            if (own and others) or time.monotonic() > deadline:
                break
            time.sleep(SETTLE_S / 10)
        if own != others:
            return others
        there = "fits both ways of counting" if own else "is missing or has no rows"
        raise SymDenoiseError(
            f"frame {index}",
            rule=f"{self._ways()}; the file {there}, so the start of its rows is unknown",
            remedy="have the device count the rows of each file from 0, and give each file a name of its own; denoise "
            "this file with `symdenoise denoise`",
        )

    def _ways(self) -> str:
        if self.other > 0:
            return (
                f"its first index is {self.other}, as many as rows came before, so it counts its own rows and some "
                "were never announced, or it goes on from the file before"
            )
        return (
            f"it was announced before, with {-self.other} rows, and now from index 0 again, so it was written anew, or "
            "its rows go on though their indices do not"
        )


@dataclass
class _Device:
    """State of one data key: the rows so far by stream and by file, and how its rows were numbered so far."""

    rows: Counter[str] = field(default_factory=Counter)
    places: Counter[tuple[str, str]] = field(default_factory=Counter)
    #: Whether the number continues from file to file (True), and whether rows continue in a file that counts from 0
    #: (False).
    known: dict[bool, bool] = field(default_factory=dict)


class Counting:
    """Decide how each resource of a run is counted, from every stream_datum, wanted or not."""

    def __init__(self) -> None:
        self._devices: dict[str, _Device] = {}
        self._counts: dict[str, Count] = {}

    def take(self, resource: Document, datum: Document, stream: str) -> Count:
        """Take in a stream_datum of a stream, and return how its resource is counted."""
        device = self._devices.setdefault(resource["data_key"], _Device())
        start, stop = datum["indices"]["start"], datum["indices"]["stop"]
        where = place(resource)
        if resource["uid"] not in self._counts:
            self._counts[resource["uid"]] = self._settled(device, start, stream, device.places[where])
        count = self._counts[resource["uid"]]
        count.stop = max(count.stop, stop)
        device.rows[stream] += stop - start
        device.places[where] += stop - start
        return count

    def _settled(self, device: _Device, start: int, stream: str, here: int) -> Count:
        before = device.rows.total()
        if start == 0 and here:
            return Count(None, -here, _device=device)
        if start == 0 or before == 0:
            if before:
                device.known[True] = False
            return Count(0, 0, _device=device)
        if start not in (before, device.rows[stream]) or here:
            # An earlier resource counted this file from 0; when the file is announced again, its rows continue.
            return Count(0, 0, _device=device)
        return Count(None, start, _device=device)
