"""What every row says of its frame beside the pixels, and a run of its rows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

#: Names and dtypes of the scalars: the data keys are ``<key>_<name>``.
SCALARS = {
    "counts_in": "number",
    "counts_out": "number",
    "symmetry": "string",
    "center_y": "number",
    "center_x": "number",
    "hot_pixels": "number",
    "dead_pixels": "number",
    "ms": "number",
}


def with_numbers(names: Iterable[str]) -> dict[str, str]:
    """The scalars of every row and these numbers after them."""
    return {**SCALARS, **dict.fromkeys(names, "number")}


def denoised_images(keys: Collection[str]) -> list[str]:
    """The images among the data keys of a derived stream: a column may have a sigma too, and has no symmetry."""
    return [key for key in keys if f"{key}_sigma" in keys and f"{key}_symmetry" in keys]


def computed_when_read(stop: Mapping[str, Any]) -> bool:
    """Whether a derived run with this stop document has frames and stores no pixels."""
    ended = stop.get("provenance")
    return isinstance(ended, Mapping) and bool(ended.get("frames")) and ended.get("bytes") == 0
