"""From which number on a file counts its rows: settled once for each resource, over all streams of a run.

By the event model, the indices of a stream_datum count the rows of its own resource from 0. Some devices, and documents
converted from older ones, go on in each new file where the file before ended. Which of both holds is seen where the
first index of a later resource is 0, or anything but the number of rows before it; else its file tells.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bluesky_symdenoise.errors import SymDenoiseError

Document = dict[str, Any]


@dataclass
class Count:
    """How the indices of one resource are counted.

    Attributes
    ----------
    first
        The index of the file's first row; None while that is not known.
    other
        What it is if it is not 0.
    stop
        The greatest index that was announced, and one.
    """

    first: int | None
    other: int
    stop: int = 0
    _device: _Device = field(default_factory=lambda: _Device())

    def row(self, index: int, *, rows: Callable[[], int]) -> int:
        """Return the row of the file for an index.

        Parameters
        ----------
        rows
            Returns how many rows the file has, once it may be expected to have all that were announced.

        Raises
        ------
        SymDenoiseError
            If it cannot be known.
        """
        if self.first is None:
            there = rows()
            if self.stop > there > 0:
                # Counted from 0, rows that were announced would not be there.
                self.first, self._device.goes_on = self.other, True
            else:
                raise SymDenoiseError(
                    f"frame {index}",
                    rule=f"its file has {there} rows and its first index is {self.other}, as many as rows came before: "
                    "it counts its own rows and some were never announced, or it goes on from the file before, and "
                    "nothing tells which",
                    remedy="have the device count the rows of each file from 0; denoise this file with "
                    "`symdenoise denoise`",
                )
        return index - self.first


@dataclass
class _Device:
    """What is known of one data key: the rows so far by stream, and whether it goes on from file to file."""

    rows: Counter[str] = field(default_factory=Counter)
    places: set[tuple[str, str]] = field(default_factory=set)
    goes_on: bool | None = None


class Counting:
    """Settles how each resource of a run is counted; it is told of every stream_datum, wanted or not."""

    def __init__(self) -> None:
        self._devices: dict[str, _Device] = {}
        self._counts: dict[str, Count] = {}

    def take(self, resource: Document, datum: Document, stream: str) -> Count:
        """Take in a stream_datum of a stream, and return how its resource is counted."""
        device = self._devices.setdefault(resource["data_key"], _Device())
        start, stop = datum["indices"]["start"], datum["indices"]["stop"]
        if resource["uid"] not in self._counts:
            self._counts[resource["uid"]] = self._settled(device, start, stream, _place(resource))
        count = self._counts[resource["uid"]]
        count.stop = max(count.stop, stop)
        device.rows[stream] += stop - start
        return count

    def _settled(self, device: _Device, start: int, stream: str, place: tuple[str, str]) -> Count:
        before = device.rows.total()
        again = place in device.places
        device.places.add(place)
        if start == 0 or before == 0:
            if before:
                device.goes_on = False
            return Count(0, 0, _device=device)
        if start not in (before, device.rows[stream]) or again or device.goes_on is False:
            # A file that is announced again was counted from 0 before, and goes on by itself.
            return Count(0, 0, _device=device)
        return Count(start if device.goes_on else None, start, _device=device)


def _place(resource: Document) -> tuple[str, str]:
    parameters = resource.get("parameters", {})
    return str(resource.get("uri")), str([parameters.get(name) for name in ("dataset", "template", "filename")])
