"""The arguments of a callback from a TOML file, so that services denoise as it does."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

from bluesky_symdenoise.acquisition.beamline import Beamline
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.opening import open_frames

_PLAIN = ("symmetry", "beam_center", "streams", "data_keys", "directory", "frames")
_IMAGES = ("mask", "exposure")


def read_arguments(path: Path) -> dict[str, Any]:
    """Arguments for `Work.planned`, named as those of `bluesky_symdenoise.DenoiseCallback`.

    ``mask`` and ``exposure`` name files with one image each, from the folder of the TOML file on; ``[beamline]`` holds
    the attributes of `bluesky_symdenoise.Beamline`.

    Raises
    ------
    SymDenoiseError
        If the file cannot be read, or says something else.
    """
    try:
        said = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SymDenoiseError(str(path), rule=f"it cannot be read ({error})", remedy="give a TOML file") from error
    beamline = said.pop("beamline", {})
    if not isinstance(beamline, dict):
        raise SymDenoiseError(f"{path}: beamline", rule="it is a table", remedy="begin it with [beamline]")
    _check_known(path, said, (*_PLAIN, *_IMAGES))
    _check_known(path, beamline, tuple(each.name for each in fields(Beamline)))
    for name in (name for name in _IMAGES if name in said):
        with open_frames(str(path.parent / said[name])) as stack:
            said[name] = stack[0] != 0 if name == "mask" else stack[0]
    return said | ({"beamline": Beamline(**beamline)} if beamline else {})


def _check_known(path: Path, said: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in said:
        if name not in names:
            raise SymDenoiseError(f"{path}: {name}", rule="there is no such argument", remedy=", ".join(sorted(names)))
