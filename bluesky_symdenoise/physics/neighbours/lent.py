"""Raw frame of another row that may lend its photons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Lent:
    """Raw frame of another row that may lend its photons to a frame.

    Attributes
    ----------
    counts
        (y, x) counts as the detector gave them.
    offset
        Steps from the borrowing row to this one along each scan axis: ``(-1.0,)`` is the row before, ``(0.0,)`` a
        repeat of the same point, ``(-1.0, 0.0)`` in a map the point of the line before.
    row
        Number of the row in its run, for provenance; None where there is none.
    """

    counts: NDArray[Any]
    offset: tuple[float, ...]
    row: int | None = None

    def __post_init__(self) -> None:
        if self.counts.ndim != 2:
            raise ValueError(f"a lent frame of shape {self.counts.shape}; it must be (y, x)")
