"""Self-check of a derived run while it is made: a few raw images are kept, and checked when the run has ended."""

from __future__ import annotations

import logging
import time as clock
import zlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.acquisition.derive.streams import Event, Stream
from bluesky_symdenoise.acquisition.request.request import Request
from bluesky_symdenoise.derived.columns import BORROWED_FROM, rows_text
from bluesky_symdenoise.derived.row import CompressedRow, Row
from bluesky_symdenoise.physics.neighbours.lent import Lent
from bluesky_symdenoise.physics.symmetry import Symmetry
from bluesky_symdenoise.selfcheck.chance import MOST_ROWS, Chance, number_checked
from bluesky_symdenoise.selfcheck.row import Way, checked_row
from bluesky_symdenoise.selfcheck.summary import not_testable, summarised
from bluesky_symdenoise.selfcheck.values import ImageCheck, SelfCheck

log = logging.getLogger("bluesky_symdenoise")

Document = dict[str, Any]

#: Reasons that nothing is said of an image.
INTEGRATING = "photons can be held out of counts, not of the signal of an integrating detector: measure repeats"
GONE = "the rows that lent photons are not at hand any more: use bluesky_symdenoise.self_check(run)"
NO_COUNTS = "no frame with counts was denoised"


@dataclass(frozen=True)
class Packed:
    """An image, compressed: few rows are kept, but with all that lent to them."""

    held: bytes
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, image: NDArray[Any]) -> Packed:
        """Return an image, compressed."""
        return cls(zlib.compress(np.ascontiguousarray(image).tobytes(), 1), image.dtype, image.shape)

    @property
    def image(self) -> NDArray[Any]:
        """The image."""
        return np.frombuffer(zlib.decompress(self.held), self.dtype).reshape(self.shape)


@dataclass(frozen=True)
class Kept:
    """A raw image that may be checked, with the symmetry that its row was denoised with, and what was lent to it."""

    place: int
    row: int
    packed: Packed
    mask: NDArray[np.bool_] | None
    symmetry: Symmetry
    lenders: tuple[tuple[Packed, tuple[float, ...], int | None], ...] | None = None

    @property
    def lent(self) -> list[Lent] | None:
        """Frames that other rows lend; None in a run that does not borrow."""
        return (
            None if self.lenders is None else [Lent(packed.image, offset, row) for packed, offset, row in self.lenders]
        )


class RowChecks:
    """Keep the rows of each image that will be checked, whatever the number of rows will be, and check them.

    Parameters
    ----------
    asked
        What to do with every frame.
    """

    def __init__(self, asked: Request) -> None:
        self._asked = asked
        #: A registered run has no pixels yet.
        self._on = asked.self_check and asked.activity != "register"
        #: Number of rows of each stream that were taken, of each image that could be checked, and those kept.
        self._taken: Counter[str] = Counter()
        self._could: Counter[tuple[str, str]] = Counter()
        self._kept: dict[tuple[str, str], list[Kept]] = {}
        self._refused: dict[tuple[str, str], str] = {}
        self.seconds = 0.0

    def take(self, stream: Stream, event: Event, outcomes: Mapping[str, Any]) -> None:
        """Look at the next wanted row of a stream, whose images were denoised or failed."""
        row = self._asked.recipe.rows[self._taken[stream.name]]
        self._taken[stream.name] += 1
        if not self._on:
            return
        for key, made in outcomes.items():
            if isinstance(made, Row | CompressedRow) and made.scalars.get("counts_in", 0.0) > 0:
                try:
                    self._take(stream, key, event, row, made)
                except Exception as error:
                    # A check must never cost a row.
                    self._refused.setdefault((stream.name, key), str(error))

    def _take(self, stream: Stream, key: str, event: Event, row: int, made: Row | CompressedRow) -> None:
        name, images = (stream.name, key), stream.images[key]
        self._could[name] += 1
        kept = self._kept.setdefault(name, [])
        place = self._chance(stream.run, *name).place(row)
        if len(kept) == MOST_ROWS and place > kept[-1].place:
            return
        if images.stated_readout(event.columns) is not None:
            self._refused[name] = INTEGRATING
            return
        lending = stream.lending
        image = stream.image(key, event) if lending is None else lending.image(key, event)
        lent = [] if lending is None else lending.lent(key, event, image)
        if lending is not None and made.scalars.get(BORROWED_FROM) != rows_text(
            each.row for each in lent if each.row is not None
        ):
            self._refused[name] = GONE
            return
        y, x = made.scalars["center_y"], made.scalars["center_x"]
        center = None if np.isnan(y) else (float(y), float(x))
        symmetry = Symmetry(str(made.scalars["symmetry"]), center, self._asked.fold)
        held = Kept(
            place,
            row,
            Packed.of(image),
            images.background(event.columns, event.time, symmetry)[0],
            symmetry,
            None if lending is None else tuple((Packed.of(each.counts), each.offset, each.row) for each in lent),
        )
        kept[:] = sorted([*kept, held], key=lambda each: each.place)[:MOST_ROWS]

    def _chance(self, run: str, stream: str, key: str) -> Chance:
        return Chance(run, self._asked.recipe.sha256, stream, key)

    def checked(self, streams: Collection[Stream], *, too_late: str | None = None) -> Document:
        """Return what the stop document says; no error leaves this method.

        Parameters
        ----------
        too_late
            Reason to check nothing, because others wait.
        """
        if not self._on:
            return {}
        if too_late is not None:
            return {"self_check": SelfCheck((), f"the denoiser was behind ({too_late})").to_dict()}
        begun = clock.perf_counter()
        images = [self._image(stream, key) for stream in streams for key in stream.keys if self._taken[stream.name]]
        self.seconds = clock.perf_counter() - begun
        return {"self_check": SelfCheck(tuple(images)).to_dict(), "self_check_seconds": round(self.seconds, 3)}

    def _image(self, stream: Stream, key: str) -> ImageCheck:
        name = (stream.name, key)
        chance, rows = self._chance(stream.run, *name), self._could[name]
        if why := self._refused.get(name):
            return not_testable(chance, why, of_rows=rows)
        kept = sorted(self._kept.get(name, ())[: number_checked(rows)], key=lambda each: each.row)
        if not kept:
            return not_testable(chance, NO_COUNTS)
        try:
            return image_check(self._asked, chance, kept, rows)
        except Exception as error:
            log.warning("run %s, %s/%s has no self-check: %s", stream.run[:8], *name, error)
            return not_testable(chance, str(error), rows=[each.row for each in kept], of_rows=rows)


def image_check(asked: Request, chance: Chance, kept: Sequence[Kept], of_rows: int) -> ImageCheck:
    """Return the self-check of one image from the raw images that were kept, in the order of their rows."""
    tables = []
    for each in kept:
        way = Way(asked.denoiser, each.symmetry, each.mask, asked.exposure, asked.recipe.beam_center)
        found = checked_row(each.packed.image, way, chance, each.row, each.lent)
        tables += [] if found is None else [found]
    rows = [each.row for each in kept]
    if not tables:
        return not_testable(chance, "too few pixels were measured", rows=rows, of_rows=of_rows)
    height, width = kept[0].packed.shape[-2:]
    return summarised(tables, chance, shape=(height, width), rows=rows, of_rows=of_rows)
