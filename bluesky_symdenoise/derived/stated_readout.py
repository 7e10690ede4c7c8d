"""The readout of an integrating detector as a recipe holds it: numbers as text, maps by their checksums."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.integrating.readout import MAPS, Readout
from bluesky_symdenoise.recipe import array_sha256

#: Names under which maps are stored with a derived run: those of the readout's attributes after this.
PREFIX = "readout_"
_MAP = re.compile(r"sha256:([0-9a-f]{64})")


def readout_maps(readout: Readout | None) -> dict[str, NDArray[np.float64]]:
    """Return the maps (y, x) of a readout by the names under which they are stored."""
    if readout is None:
        return {}
    return {PREFIX + name: held for name in MAPS if isinstance(held := getattr(readout, name), np.ndarray)}


def to_recipe(readout: Readout | None) -> tuple[str, ...] | None:
    """Return ``attribute=value`` for each attribute that is not its default, ``attribute=sha256:...`` for maps."""
    if readout is None:
        return None
    said = []
    for each in fields(Readout):
        value = getattr(readout, each.name)
        if isinstance(value, np.ndarray):
            said.append(f"{each.name}=sha256:{array_sha256(value)}")
        elif value != each.default:
            said.append(f"{each.name}={value!r}")
    return tuple(said)


def map_sha256s(said: Sequence[str] | None) -> dict[str, str]:
    """Return the checksums of the maps of a readout in a recipe, by the names under which they are stored."""
    pairs = dict(each.partition("=")[::2] for each in said or ())
    return {PREFIX + name: found[1] for name, value in pairs.items() if (found := _MAP.fullmatch(value))}


def from_recipe(said: Sequence[str] | None, array: Callable[[str, str], NDArray[Any] | None]) -> Readout | None:
    """Return the readout that `to_recipe` wrote; the values are not trusted.

    Parameters
    ----------
    array
        Returns the map that is stored under a name and has a checksum.

    Raises
    ------
    SymDenoiseError
        If a value is not valid.
    """
    if said is None:
        return None
    held: dict[str, Any] = {}
    maps = map_sha256s(said)
    for each in said:
        name, _, value = each.partition("=")
        kind = {field.name: field.type for field in fields(Readout)}.get(name)
        try:
            if kind is None or name in held:
                raise ValueError
            if name in MAPS and (stored := PREFIX + name) in maps:
                held[name] = array(stored, maps[stored])
            else:
                held[name] = int(value) if name == "frames" else float(value)
        except (ValueError, OverflowError, SymDenoiseError) as error:
            raise SymDenoiseError(
                f"readout {each[:60]!r} of a recipe",
                rule="it is no attribute of a readout",
                remedy="restore the recipe",
            ) from error
    if "gain" not in held:
        raise SymDenoiseError("readout of a recipe", rule="it has no gain", remedy="restore the recipe")
    return Readout(**held)
