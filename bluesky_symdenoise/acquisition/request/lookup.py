"""Values in documents: found by name, with where they came from, and read as numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bluesky_symdenoise.errors import SymDenoiseError

#: What is returned for a name that is not there.
NOTHING = object()


@dataclass(frozen=True)
class Found:
    """A value and where it came from."""

    value: Any
    source: str


def within(held: Any, name: str) -> Any:
    """Return the value of this name, whose dots address nested mappings and lists; `NOTHING` if there is none."""
    for part in [name] if name in held else name.split("."):
        held = plain(held)
        if isinstance(held, Mapping) and part in held:
            held = held[part]
        elif isinstance(held, list | tuple) and part.isdecimal() and int(part) < len(held):
            held = held[int(part)]
        else:
            return NOTHING
    return held


def number_of(found: Found) -> float:
    """Return a value as a finite number.

    Raises
    ------
    SymDenoiseError
        If it is none.
    """
    try:
        value = float(np.asarray(found.value).item())
    except (TypeError, ValueError) as error:
        raise SymDenoiseError(
            f"{found.source} = {found.value!r}", rule="it must be a number", remedy="name a value that is a number"
        ) from error
    if not np.isfinite(value):
        raise SymDenoiseError(
            f"{found.source} = {value}", rule="it must be finite", remedy="name a value that is a finite number"
        )
    return value


def exposures_of(found: Found) -> int:
    """Return a value as a number of exposures.

    Raises
    ------
    SymDenoiseError
        If it is no whole number, or below 1.
    """
    value = number_of(found)
    if value < 1 or value != int(value):
        raise SymDenoiseError(
            f"{found.source} = {value:g}", rule="it must be a whole number, 1 or more", remedy="name such a value"
        )
    return int(value)


def plain(value: Any) -> Any:
    """Return an array or a NumPy scalar as Python values, and anything else as it is."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
