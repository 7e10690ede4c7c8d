"""Scalars that every row has beside the pixels, and the names that Tiled accepts for them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.physics.defects import DEAD, HOT
from bluesky_symdenoise.physics.symmetry import Symmetry


@dataclass(frozen=True)
class Made:
    """A frame and what was made of it: everything that a column is computed from.

    Attributes
    ----------
    image, intensity
        Raw and denoised frames (..., y, x).
    defect
        (..., y, x) uint8, see `bluesky_symdenoise.Denoiser`.
    measured
        (..., y, x), whether a pixel was measured and is not defective.
    seconds
        Time that denoising took.
    """

    image: NDArray[Any]
    intensity: NDArray[np.float32]
    defect: NDArray[np.uint8]
    measured: NDArray[np.bool_]
    seconds: float


@dataclass(frozen=True)
class Column:
    """A scalar of every row, from its symmetry or from its pixels.

    A lazy run has those of its symmetry from the beginning, and the others once its pixels are stored.
    """

    dtype: str
    of_symmetry: Callable[[Symmetry], Any] | None = None
    of_pixels: Callable[[Made], Any] | None = None

    @property
    def missing(self) -> Any:
        """Value in the row of a frame that could not be denoised."""
        return "" if self.dtype == "string" else float("nan")


def _center(axis: int) -> Callable[[Symmetry], float]:
    return lambda symmetry: float("nan") if symmetry.beam_center is None else symmetry.beam_center[axis]


def _number(kind: int) -> Callable[[Made], float]:
    return lambda made: float(np.count_nonzero(made.defect == kind))


#: All columns in order; the data keys are ``<key>_<name>``. Adding a column means adding a line here.
COLUMNS = {
    "counts_in": Column("number", of_pixels=lambda made: float(made.image[made.measured].sum(dtype=np.float64))),
    "counts_out": Column("number", of_pixels=lambda made: float(made.intensity[made.measured].sum(dtype=np.float64))),
    "symmetry": Column("string", of_symmetry=lambda symmetry: symmetry.point_group),
    "center_y": Column("number", of_symmetry=_center(0)),
    "center_x": Column("number", of_symmetry=_center(1)),
    "hot_pixels": Column("number", of_pixels=_number(HOT)),
    "dead_pixels": Column("number", of_pixels=_number(DEAD)),
    "ms": Column("number", of_pixels=lambda made: made.seconds * 1000),
}
#: Column of runs whose readout states where pixels are saturated: their number, masked pixels left out.
SATURATED = "saturated_pixels"
#: Columns of runs whose rows may borrow photons: the effective exposures that were borrowed, and the rows whose frames
#: were there to borrow from.
BORROWED, BORROWED_FROM = "borrowed", "borrowed_from"
BORROWING = {BORROWED: "number", BORROWED_FROM: "string"}
#: Most characters of the rows in `BORROWED_FROM`, as strings of columns are stored.
LONGEST_ROWS = 64
#: Dtypes of the columns by name.
SCALARS = {name: column.dtype for name, column in COLUMNS.items()}
#: Columns computed from the pixels. In a lazy run they are stored beside the table of events, which is never
#: rewritten.
PENDING = tuple(name for name, column in COLUMNS.items() if column.of_pixels is not None)

#: Longest name of a column in Tiled's tables, in bytes: the limit of PostgreSQL, which Tiled applies to all databases.
LONGEST_COLUMN = 63
#: Longest name of a stream, in bytes: its file name begins with a uid and ends with the numbers of attempt and part.
LONGEST_STREAM = 150
#: Characters not allowed in a part of a URL of Tiled: its client does not quote them, and its server undoes quotes.
_UNADDRESSABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff/?#]|%[0-9A-Fa-f]{2}")
#: ``tiled.adapters.sql.FORBIDDEN_CHARACTERS``, except comments, which begin or end with the slash excluded above.
_SQL = re.compile(r"""['"`;\\%()=+]|--""")


def scalars_of(symmetry: Symmetry, made: Made | None = None) -> dict[str, Any]:
    """Return the columns of one row; without `made`, columns that are computed from pixels have their missing value."""
    found = {}
    for name, column in COLUMNS.items():
        if column.of_symmetry is not None:
            found[name] = column.of_symmetry(symmetry)
        else:
            found[name] = column.missing if column.of_pixels is None or made is None else column.of_pixels(made)
    return found


def rows_text(rows: Iterable[int]) -> str:
    """Return rows as text, in order and each once, such as ``4-11,13``; longer lists are cut short by a checksum."""
    ordered = sorted(set(rows))
    breaks = [at for at in range(1, len(ordered)) if ordered[at] != ordered[at - 1] + 1]
    runs = [ordered[begin:end] for begin, end in pairwise([0, *breaks, len(ordered)])] if ordered else []
    parts = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    text = ",".join(parts)
    if len(text) <= LONGEST_ROWS:
        return text
    checksum = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"{len(ordered)} rows {ordered[0]}-{ordered[-1]} sha256:{checksum}"


def rows_of_text(text: str) -> set[int] | None:
    """Return the rows in a text of `rows_text`; None if it was cut short."""
    if "sha256" in text:
        return None
    ranges = [part.split("-") for part in text.split(",") if part]
    return {row for part in ranges for row in range(int(part[0]), int(part[-1]) + 1)}


def with_numbers(names: Iterable[str]) -> dict[str, str]:
    """Return the scalars of every row by name and type, followed by these numbers."""
    return {**SCALARS, **dict.fromkeys(names, "number")}


def denoised_images(keys: Collection[str]) -> list[str]:
    """Return the images among the data keys of a derived run: columns may have a sigma, too, but no symmetry."""
    return [key for key in keys if f"{key}_sigma" in keys and f"{key}_symmetry" in keys]


def computed_when_read(stop: Mapping[str, Any]) -> bool:
    """Return whether a derived run with this stop document has frames but stores no pixels."""
    ended = stop.get("provenance")
    return isinstance(ended, Mapping) and bool(ended.get("frames")) and ended.get("bytes") == 0


def refused_keys(keys: Iterable[str], columns: Collection[str] = tuple(SCALARS), *, flown: bool) -> dict[str, str]:
    """Return the image data keys of one stream that Tiled does not accept in a derived run, each with the reason.

    A data key becomes two arrays, ``<key>`` and ``<key>_sigma``, whose names are parts of URLs, and the columns
    ``<key>_<name>``. A stream with events stores the columns, and their times ``ts_<key>_<name>``, in an SQL table.
    Tiled's rule for the names of its columns, whatever the database, is: a name begins with a letter a to z, has at
    most 63 bytes, holds none of ``' " ` ; % ( ) = +``, backslash and ``--``, and differs from other names in more than
    the case of letters (``is_safe_identifier`` and ``arrow_schema_to_column_defns`` of ``tiled.adapters.sql``, 0.2.20).
    Tiled counts the bytes before it converts to lower case, PostgreSQL after. Without events, columns are arrays, too.

    Parameters
    ----------
    keys
        Data keys in order: of two that would share a name, the second is refused.
    columns
        Names of the scalars, those of rings included.
    flown
        Whether the stream has no events.

    Returns
    -------
    dict
        Reason by key, as the rule of a `SymDenoiseError`; empty if all are accepted.
    """
    refused: dict[str, str] = {}
    owners = {} if flown else {"internal": "the table"}
    for key in keys:
        scalars = [f"{key}_{name}" for name in columns]
        table = [] if flown else [*scalars, *(f"ts_{name}" for name in scalars)]
        held = [key, f"{key}_sigma", *(table or scalars)]
        held = held if flown else [name.lower() for name in held]
        reasons = (_refused_array(key), *map(_refused_column, table), _refused_twice(held, owners))
        if reason := next(filter(None, reasons), None):
            refused[key] = reason
        else:
            owners |= dict.fromkeys(held, repr(key))
    return refused


def refused_stream(name: str) -> str | None:
    """Return why a derived run cannot have a stream of this name; None if it can.

    The name becomes a part of URLs in Tiled, and of file names here.
    """
    if name in ("", ".", ".."):
        return "it is no name in a URL"
    if found := _UNADDRESSABLE.search(name) or re.search("[{}]", name):
        return f"it holds {found[0]!r}, which Tiled cannot have in a URL or in the name of a file"
    if (size := len(name.encode())) > LONGEST_STREAM:
        return f"it has {size} bytes, and in the names of files there is room for {LONGEST_STREAM}"
    return None


def _refused_array(key: str) -> str | None:
    if key in ("", "time", "seq_num"):
        return "Tiled cannot have an image of that name"
    if key in ("x", "y"):
        return "the files of derived runs have an axis of that name"
    if found := re.search(r"\.", key) or _UNADDRESSABLE.search(key):
        return f"it holds {found[0]!r}, which Bluesky's documents or Tiled's URLs cannot have in a name"
    return None


def _refused_column(name: str) -> str | None:
    refused = f"Tiled's tables take no column {name!r}"
    if not re.match("[A-Za-z]", name):
        return f"{refused}: it does not begin with a letter a to z"
    if found := _SQL.search(name):
        return f"{refused}: it holds {found[0]!r}"
    if (size := max(len(spelled.encode()) for spelled in (name, name.lower()))) > LONGEST_COLUMN:
        return f"{refused}: it has {size} bytes, and {LONGEST_COLUMN} is the most"
    return None


def _refused_twice(names: list[str], owners: Mapping[str, str]) -> str | None:
    for number, name in enumerate(names):
        if name in owners:
            return f"its {name!r} would be that of {owners[name]} too"
        if name in names[:number]:
            return f"it would have {name!r} twice"
    return None
