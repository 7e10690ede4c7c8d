"""The arguments of a callback from a TOML file, so that a service denoises as the callback does."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

from bluesky_symdenoise.acquisition.request.beamline import Beamline
from bluesky_symdenoise.acquisition.request.options import ImageOptions
from bluesky_symdenoise.analysis.ring import Ring
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.opening import mask_from, open_frames
from bluesky_symdenoise.files.readout_file import load_readout
from bluesky_symdenoise.physics.check import load_symmetry

#: Settings at the top level of the file, outside of its tables.
_PLAIN = (*ImageOptions.__annotations__, "directory", "frames", "self_check")


def read_arguments(path: Path) -> dict[str, Any]:
    """Return arguments for `Work.planned`, named as those of `bluesky_symdenoise.DenoiseCallback`.

    ``mask`` and ``exposure`` name files with one image each, relative to the folder of the TOML file, and so may
    ``symmetry``: a file that `symdenoise symmetry -o` wrote; ``readout`` names one that `symdenoise readout -o` wrote.
    ``[beamline]`` holds the attributes of `bluesky_symdenoise.Beamline`, and each ``[[analysis]]`` those of a
    `bluesky_symdenoise.Ring`.

    Raises
    ------
    SymDenoiseError
        If the file cannot be read, or holds an unknown key or a wrong value.
    """
    try:
        said = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SymDenoiseError(str(path), rule=f"it cannot be read ({error})", remedy="give a TOML file") from error
    beamline, rings = said.pop("beamline", {}), said.pop("analysis", [])
    if not isinstance(beamline, dict):
        raise SymDenoiseError(f"{path}: beamline", rule="it must be a table", remedy="begin it with [beamline]")
    _check_known(path, said, _PLAIN, "and tables [beamline], [[analysis]]")
    _check_known(path, beamline, tuple(each.name for each in fields(Beamline)), "in [beamline]")
    if not isinstance(rings, list) or not all(isinstance(ring, dict) for ring in rings):
        raise SymDenoiseError(
            f"{path}: analysis", rule="it must be an array of tables", remedy="begin each ring with [[analysis]]"
        )
    for ring in rings:
        _check_known(path, ring, tuple(each.name for each in fields(Ring)), "in [[analysis]]")
    if str(said.get("symmetry")).endswith(".npz"):
        said["symmetry"] = load_symmetry(path.parent / said["symmetry"])
    if "readout" in said:
        said["readout"] = load_readout(path.parent / str(said["readout"]))
    if "mask" in said:
        said["mask"] = mask_from(path.parent / said["mask"])
    if "exposure" in said:
        with open_frames(path.parent / said["exposure"]) as stack:
            said["exposure"] = stack[0]
    given = {"beamline": Beamline(**beamline)} if beamline else {}
    return said | given | ({"analysis": [Ring(**ring) for ring in rings]} if rings else {})


def _check_known(path: Path, said: dict[str, Any], names: tuple[str, ...], where: str) -> None:
    for name in said:
        if name not in names:
            known = ", ".join(sorted(names))
            raise SymDenoiseError(
                f"{path}: {name}", rule="there is no argument of that name", remedy=f"give {known}; {where}"
            )
