"""Readout of a detector as a TOML file, with its maps beside it."""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.integrating.found import FoundReadout
from bluesky_symdenoise.physics.integrating.readout import MAPS, Readout

#: Exposures of which a frame may be the mean.
MOST_FRAMES = 1_000_000
_TABLE, _NAMES = "readout", tuple(each.name for each in fields(Readout))


def load_readout(path: str | Path) -> Readout:
    """Return the readout that a TOML file holds.

    Its table ``[readout]`` has the attributes of `bluesky_symdenoise.physics.integrating.Readout`; all but ``gain`` may
    be left out. Instead of a number, ``gain``, ``read_noise``, ``offset`` and ``offset_error`` may be the name of a
    file with one image, relative to the folder of the TOML file.

    Raises
    ------
    SymDenoiseError
        If the file cannot be read, or holds an unknown name or a wrong value.
    """
    path = Path(path)
    try:
        said = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SymDenoiseError(str(path), rule=f"it cannot be read ({error})", remedy="give a TOML file") from error
    table = said.pop(_TABLE, None)
    if said or not isinstance(table, dict):
        raise SymDenoiseError(
            f"{path}: {', '.join(said) or 'no readout'}",
            rule=f"it holds one table, [{_TABLE}]",
            remedy="write it with `symdenoise readout`",
        )
    for name in table:
        if name not in _NAMES:
            raise SymDenoiseError(
                f"{path}: {name}", rule="a readout has no such value", remedy=f"give {', '.join(_NAMES)}"
            )
    if "gain" not in table:
        raise SymDenoiseError(
            f"{path} without a gain", rule="a readout has one", remedy="give it in units of the signal per photon"
        )
    return Readout(**{name: _given(path, name, value) for name, value in table.items()})


def save_readout(found: FoundReadout | Readout, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a readout as TOML that `load_readout` reads; maps become ``.npy`` files beside it.

    Parameters
    ----------
    found
        From `bluesky_symdenoise.physics.integrating.readout_from_frames`, or a `Readout`.
    path
        ``NAME.toml`` in a folder that exists; a map goes to ``NAME.offset.npy``, and so on.
    overwrite
        Whether files that exist may be replaced.

    Raises
    ------
    SymDenoiseError
        If the name is no such name, or a file exists.
    """
    path = Path(path)
    maps = _map_files(found, path)
    refuse_readout_name(path, *maps, overwrite=overwrite)
    for file, image in maps.items():
        part = file.with_name(f".{file.name}.{os.getpid()}.npy")
        np.save(part, image)
        os.replace(part, file)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(readout_toml(found, path))
    os.replace(part, path)


def refuse_readout_name(path: Path, *others: Path, overwrite: bool) -> None:
    """Raise SymDenoiseError if a readout cannot be written to a file, and its maps to others."""
    if path.suffix != ".toml" or not path.parent.is_dir():
        raise SymDenoiseError(
            str(path), rule="a readout is NAME.toml in a folder that exists", remedy="give such a name"
        )
    for each in (path, *others):
        if each.exists() and not overwrite:
            raise SymDenoiseError(
                str(each), rule="the file exists", remedy="give another name, overwrite=True or --overwrite"
            )


def map_file(path: Path, name: str) -> Path:
    """Return the file of a readout's map, beside its TOML file."""
    return path.with_name(f"{path.stem}.{name}.npy")


def readout_toml(found: FoundReadout | Readout, path: str | Path = "readout.toml") -> str:
    """Return the text of the TOML file that `save_readout` writes to a path."""
    readout = found.readout if isinstance(found, FoundReadout) else found
    errors = {"gain": found.gain_error, "read_noise": found.read_noise_error} if isinstance(found, FoundReadout) else {}
    lines = [f"# {line}" for line in _comments(found)] if isinstance(found, FoundReadout) else []
    lines.append(f"[{_TABLE}]")
    for name in _NAMES:
        value = getattr(readout, name)
        if value is None:
            continue
        if isinstance(value, np.ndarray):
            said = json.dumps(map_file(Path(path), name).name)
        else:
            said = repr(value if name == "frames" else float(value))
        error = errors.get(name, np.nan)
        lines.append(f"{name} = {said}" + (f"  # +/- {error:.2g}" if np.isfinite(error) else ""))
    return "\n".join(lines) + "\n"


def _comments(found: FoundReadout) -> list[str]:
    """Return what is known about a readout beside its values, in lines."""
    how = [f"found from {found.how}, frames: {found.frames}"]
    if np.isfinite(found.chi_squared):
        how.append(f"chi-squared of sums over 32 x 32 pixels: {found.chi_squared:.3f}")
    if np.isfinite(found.lag):
        how.append(f"lag: {found.lag:.4f} +/- {found.lag_error:.4f} of a frame's signal is in the next one")
    return [*how, *(line for note in found.notes for line in note.splitlines())]


def _map_files(found: FoundReadout | Readout, path: Path) -> dict[Path, NDArray[np.float64]]:
    readout = found.readout if isinstance(found, FoundReadout) else found
    held = {name: getattr(readout, name) for name in MAPS}
    return {map_file(path, name): value for name, value in held.items() if isinstance(value, np.ndarray)}


def _given(path: Path, name: str, value: Any) -> Any:
    """Return a value of the table as `Readout` takes it."""
    from bluesky_symdenoise.files.opening import open_frames

    if name in MAPS and isinstance(value, str):
        with open_frames(path.parent / value) as stack:
            if len(stack) != 1:
                raise SymDenoiseError(
                    f"{path}: {name} from {value} with {len(stack)} images",
                    rule="a map is one image",
                    remedy="name a file with one",
                )
            image = stack[0]
            if image.dtype.kind not in "iuf":
                raise SymDenoiseError(
                    f"{path}: {name} from {value} of {image.dtype} values",
                    rule="a map is real numbers",
                    remedy="name a file with some",
                )
            return image.astype(np.float64)
    # True and False are integers to Python.
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or (name == "frames" and not isinstance(value, int)):
        kind = "a number, or the name of a file with one image" if name in MAPS else "a number"
        raise SymDenoiseError(
            f"{path}: {name} = {value!r}",
            rule=f"it is {'a whole number' if name == 'frames' else kind}",
            remedy="give one",
        )
    if name == "frames":
        if not 1 <= value <= MOST_FRAMES:
            raise SymDenoiseError(
                f"{path}: frames={_short(value)}",
                rule=f"a frame is the mean of 1 to {MOST_FRAMES:,} exposures",
                remedy="give their number",
            )
        return value
    try:
        return float(value)
    except OverflowError as error:
        raise SymDenoiseError(
            f"{path}: {name} = {_short(value)}",
            rule="it is beyond double precision",
            remedy="give it in units of the signal",
        ) from error


def _short(value: int) -> str:
    """Return a whole number as text, and of a long one its size: Python writes no more than 4300 digits."""
    digits = int(abs(value).bit_length() * 0.30103)
    return str(value) if digits < 20 else f"a number of about {digits} digits"
