"""Frames of other rows that may lend their photons to a frame, and what was borrowed of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.frame import Frame


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


@dataclass(frozen=True, eq=False)
class Lending:
    """Prepared frames that may lend photons to one frame.

    Attributes
    ----------
    frames
        Frames without their defects.
    offsets
        (row, axis) steps from the borrowing row.
    rows
        Numbers of the rows, for provenance.
    same_flux
        Whether the frames are compared as they are, because what they counted is not proportional to the flux.
    share
        Share of what they lend that is evidence of its own, above 0; see `independent_share`.
    """

    frames: Sequence[Frame]
    offsets: NDArray[np.float64]
    rows: tuple[int | None, ...]
    same_flux: bool
    share: float = 1.0


@dataclass(frozen=True)
class Used:
    """What one frame borrowed.

    Attributes
    ----------
    exposure
        Effective exposures, in units of the frame's own: the median over its measured pixels.
    rows
        Rows that lent something, each with its mean exposure.
    """

    exposure: float = 0.0
    rows: tuple[tuple[int | None, float], ...] = ()


def as_offsets(lent: Sequence[Lent]) -> NDArray[np.float64]:
    """Return the steps to rows as an array (row, axis), repeats of the own point as zeros.

    Raises
    ------
    SymDenoiseError
        If they are along different numbers of axes.
    """
    axes = max((len(each.offset) for each in lent), default=1)
    for each in lent:
        if len(each.offset) != axes and any(each.offset):
            raise SymDenoiseError(
                f"a lent frame at the offset {each.offset}",
                rule=f"others have {axes} steps, one along each scan axis",
                remedy="give the same number of steps for every row",
            )
    return np.array([each.offset if len(each.offset) == axes else (0.0,) * axes for each in lent], float)
