"""The arguments of a callback from a TOML file, so that services denoise as it does."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

from bluesky_symdenoise.acquisition.beamline import Beamline
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.opening import mask_from, open_frames

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
    _check_known(path, said, (*_PLAIN, *_IMAGES), "and a table [beamline]")
    _check_known(path, beamline, tuple(each.name for each in fields(Beamline)), "in [beamline]")
    if "mask" in said:
        said["mask"] = mask_from(path.parent / said["mask"])
    if "exposure" in said:
        with open_frames(path.parent / said["exposure"]) as stack:
            said["exposure"] = stack[0]
    return said | ({"beamline": Beamline(**beamline)} if beamline else {})


def _check_known(path: Path, said: dict[str, Any], names: tuple[str, ...], where: str) -> None:
    for name in said:
        if name not in names:
            known = ", ".join(sorted(names))
            raise SymDenoiseError(f"{path}: {name}", rule="there is no such argument", remedy=f"give {known}; {where}")
