"""Where a beamline keeps geometry, masks, doses and darks, and what a run's own documents say about them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.opening import mask_from, open_frames
from bluesky_symdenoise.physics.dark import Dark, summed_dark
from bluesky_symdenoise.physics.symmetry import checked_symmetry
from bluesky_symdenoise.recipe import array_sha256

Document = dict[str, Any]

#: Quantities that are looked up by name.
NAMED = (
    "symmetry",
    "beam_center_y",
    "beam_center_x",
    "mask",
    "poni",
    "exposure_time",
    "i0",
    "transmission",
)

#: Arguments that go before a quantity, where their name is another.
_ARGUMENTS = dict.fromkeys(("beam_center_y", "beam_center_x", "poni"), "beam_center")

_NOTHING = object()


@dataclass(frozen=True)
class Beamline:
    """Names under which a beamline keeps what the denoiser wants to know; None does not look.

    A name is looked up in the columns of the image's own stream, then in the configuration in its descriptor, then in
    the start document; in both of these dots go into nested values, and into lists by index (``beam_center.0``).
    ``{key}`` in a name stands for the image's data key. A name that is found nowhere is logged.
    Arguments such as ``symmetry="2mm"`` go before all of them, a .poni file comes last.

    Attributes
    ----------
    symmetry
        A point group or ``auto``.
    beam_center_y, beam_center_x
        Pixels; the centre of the first pixel is 0.
    mask
        Path of a file with one image, not 0 = bad. Not looked up in columns.
    poni
        Path of a .poni file. Not looked up in columns.
    exposure_time
        Seconds. Scales darks; changes nothing else.
    i0, transmission
        Recorded; they change no pixel, for intensity is the expected counts of the frame as it was exposed.
    poni_file
        A .poni file itself, for runs that name none.
    dark_stream
        Name of the stream with darks; an image takes the last dark before it. The stream itself is not denoised.
    dark_run
        Name in the start document of the uid of another run in the raw catalogue, whose images of the same data key
        are the dark.
    dark_file
        File of dark frames for all images.
    dark_seconds
        Exposure time of each frame of ``dark_file``.
    handlers
        ``package.module:Class`` by spec, for legacy resource documents, before those that packages register.
    """

    symmetry: str | None = None
    beam_center_y: str | None = None
    beam_center_x: str | None = None
    mask: str | None = None
    poni: str | None = None
    exposure_time: str | None = None
    i0: str | None = None
    transmission: str | None = None
    poni_file: str | Path | None = None
    dark_stream: str | None = None
    dark_run: str | None = None
    dark_file: str | Path | None = None
    dark_seconds: float | None = None
    handlers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        darks = [name for name in ("dark_stream", "dark_run", "dark_file") if getattr(self, name) is not None]
        if len(darks) > 1:
            raise SymDenoiseError(", ".join(darks), rule="a frame has one dark", remedy="name one of them")
        if (self.beam_center_y is None) != (self.beam_center_x is None):
            raise SymDenoiseError(
                "half a beam centre", rule="it has a y and an x", remedy="name beam_center_y and beam_center_x"
            )

    @property
    def has_dark(self) -> bool:
        """Whether frames have a dark."""
        return any(name is not None for name in (self.dark_stream, self.dark_run, self.dark_file))

    def columns(self, key: str) -> set[str]:
        """Names that may be columns beside an image."""
        names = (getattr(self, quantity) for quantity in NAMED if quantity not in ("mask", "poni"))
        return {_for_key(name, key) for name in names if name is not None}

    def to_recipe(self) -> tuple[str, ...] | None:
        """What of this decides pixels, for `Recipe.beamline`; a file by its content."""
        said = []
        for each in fields(self):
            value = getattr(self, each.name)
            if value is None or each.name == "handlers":
                continue
            said.append(f"{each.name}={_file_sha256(value) if each.name.endswith('_file') else value}")
        return tuple(said) or None

    @classmethod
    def from_recipe(cls, said: tuple[str, ...] | None) -> Beamline:
        """The names of `to_recipe`, for a run that is computed again: masks, geometry and files are recorded there."""
        pairs = dict(each.split("=", 1) for each in said or ())
        for name in ("mask", "poni", "poni_file", "dark_seconds"):
            pairs.pop(name, None)
        names: dict[str, Any] = dict(pairs)
        return cls(**names)


@dataclass(frozen=True)
class Found:
    """A value and where it came from."""

    value: Any
    source: str


class Settings:
    """What is known about the images of one data key of one stream.

    Parameters
    ----------
    given
        Arguments: ``symmetry``, ``beam_center``, ``mask``; absent where not given. They go before all else.

    Attributes
    ----------
    mask
        (y, x), True = bad, or None.

    Raises
    ------
    SymDenoiseError
        If what was found cannot be used.
    """

    def __init__(
        self, beamline: Beamline, *, key: str, start: Document, descriptor: Document, given: Mapping[str, Any]
    ) -> None:
        self._beamline, self._key, self._start, self._descriptor = beamline, key, start, descriptor
        self._given = dict(given)
        self._poni = self._poni_center()
        found = None if "mask" in given else self._looked_up("mask", {})
        self.mask: NDArray[np.bool_] | None = given.get("mask")
        self._mask_source = "argument" if "mask" in given else None
        if found is not None:
            self.mask, self._mask_source = mask_from(str(found.value)), found.source

    def symmetry(self, data: Mapping[str, Any]) -> str:
        """A point group or ``auto``, for an event with these columns."""
        found = self._first("symmetry", data)
        return "auto" if found is None else checked_symmetry(str(found.value))

    def beam_center(self, data: Mapping[str, Any]) -> tuple[float, float] | None:
        """(y, x) in pixels, for an event with these columns; None where nothing says so."""
        if "beam_center" in self._given:
            y, x = self._given["beam_center"]
            return float(y), float(x)
        found = [self._looked_up(f"beam_center_{axis}", data) for axis in "yx"]
        if found[0] is not None and found[1] is not None:
            return _number(found[0]), _number(found[1])
        return None if self._poni is None else self._poni.value

    def exposure_time(self, data: Mapping[str, Any]) -> float | None:
        """Seconds, for an event with these columns; None where nothing says so."""
        found = self._looked_up("exposure_time", data)
        return None if found is None else _number(found)

    def record(self) -> Document:
        """What was found before the first event, and where, for the derived descriptor.

        What is looked up in a column has its source only: the value is in the raw run's column.
        """
        out: Document = {}
        columns = self._columns()
        for quantity in ("symmetry", "exposure_time", "i0", "transmission"):
            self._say(out, quantity, self._first(quantity, columns), columns)
        center, other = (self._looked_up(f"beam_center_{axis}", columns) for axis in "yx")
        if center is None or other is None:
            center = None
        elif not isinstance(center.value, Found) and isinstance(other.value, Found):
            center = other
        if "beam_center" in self._given:
            center = Found(list(self._given["beam_center"]), "argument")
        elif center is not None and not isinstance(center.value, Found):
            center = Found(list(self.beam_center({}) or ()), center.source)
        elif center is None and self._poni is not None:
            center = Found(list(self._poni.value), self._poni.source)
        if center is not None or self._beamline.beam_center_y is not None:
            self._say(out, "beam_center", center or Found(None, "not found"), columns)
        if self.mask is not None:
            self._say(out, "mask_sha256", Found(array_sha256(self.mask), self._mask_source or ""), columns)
        return out

    def missing(self) -> list[tuple[str, str]]:
        """Names that are found nowhere and whose quantity was not given, each after its quantity."""
        columns = self._columns()
        return [
            (quantity, _for_key(name, self._key))
            for quantity in NAMED
            if (name := getattr(self._beamline, quantity)) is not None
            and _ARGUMENTS.get(quantity, quantity) not in self._given
            and self._looked_up(quantity, columns) is None
        ]

    def _columns(self) -> dict[str, Found]:
        """What an event may have, by name: its value is not known yet."""
        return {
            name: Found(None, f"event column {name}")
            for name in self._beamline.columns(self._key)
            if name in self._descriptor["data_keys"]
        }

    def _say(self, out: Document, quantity: str, found: Found | None, columns: Mapping[str, Found]) -> None:
        if found is None:
            if getattr(self._beamline, quantity, None) is None:
                return
            found = Found(None, "not found")
        if not isinstance(found.value, Found) and found.value is not None:
            out[f"{self._key}_{quantity}"] = _plain(found.value)
        out[f"{self._key}_{quantity}_source"] = found.source

    def _first(self, quantity: str, data: Mapping[str, Any]) -> Found | None:
        if quantity in self._given:
            return Found(self._given[quantity], "argument")
        return self._looked_up(quantity, data)

    def _looked_up(self, quantity: str, data: Mapping[str, Any]) -> Found | None:
        name = getattr(self._beamline, quantity)
        if name is None:
            return None
        name = _for_key(name, self._key)
        if name in data:
            return Found(data[name], f"event column {name}")
        for device in self._descriptor.get("configuration", {}).values():
            value = _within(device.get("data", {}), name)
            if value is not _NOTHING:
                return Found(value, f"descriptor configuration {name}")
        value = _within(self._start, name)
        return None if value is _NOTHING else Found(value, f"start metadata {name}")

    def _poni_center(self) -> Found | None:
        named = self._looked_up("poni", {})
        path = str(named.value) if named is not None else self._beamline.poni_file
        return None if path is None else Found(poni_beam_center(path), f"poni file {Path(path).name}")


def poni_beam_center(path: str | Path) -> tuple[float, float]:
    """Where the beam meets the detector that a .poni file describes: (y, x) in pixels, the first pixel's centre is 0.

    Parameters
    ----------
    path
        As pyFAI writes it; the detector's orientation counts.

    Raises
    ------
    SymDenoiseError
        If it cannot be read, or the beam does not meet the detector's plane.
    """
    from pyFAI.integrator.azimuthal import AzimuthalIntegrator

    try:
        geometry = AzimuthalIntegrator()
        geometry.load(str(path))
        fit2d = geometry.getFit2D()
        y, x = float(fit2d["centerY"]) - 0.5, float(fit2d["centerX"]) - 0.5
        # pyFAI's Fit2D centre is for orientation 3 (bottom right), whatever the detector's is.
        orientation = int(geometry.detector.orientation)
        if orientation in (1, 2):
            y = geometry.detector.shape[0] - 1 - y
        if orientation in (1, 4):
            x = geometry.detector.shape[1] - 1 - x
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise SymDenoiseError(
            f"{path}",
            rule=f"it cannot be read as a .poni file ({error})",
            remedy="write it with pyFAI-calib2, or name a beam centre",
        ) from error
    if not (np.isfinite(y) and np.isfinite(x)):
        raise SymDenoiseError(
            f"{path}", rule="the beam does not meet the detector's plane", remedy="use symmetry 1 for this detector"
        )
    return y, x


def dark_from(path: str | Path, *, seconds: float | None) -> Dark:
    """The dark in a file of dark frames."""
    with open_frames(path) as frames:
        return summed_dark((frames[i] for i in range(frames.shape[0])), seconds=seconds)


def _within(held: Any, name: str) -> Any:
    """The value of this name, in which dots go into nested mappings and lists; `_NOTHING` where there is none."""
    for part in [name] if name in held else name.split("."):
        held = _plain(held)
        if isinstance(held, Mapping) and part in held:
            held = held[part]
        elif isinstance(held, list | tuple) and part.isdecimal() and int(part) < len(held):
            held = held[int(part)]
        else:
            return _NOTHING
    return held


def _for_key(name: str, key: str) -> str:
    return name.replace("{key}", key)


def _number(found: Found) -> float:
    try:
        value = float(np.asarray(found.value).item())
    except (TypeError, ValueError) as error:
        raise SymDenoiseError(
            f"{found.source} = {found.value!r}", rule="it must be a number", remedy="name what holds one"
        ) from error
    if not np.isfinite(value):
        raise SymDenoiseError(f"{found.source} = {value}", rule="it must be finite", remedy="name what holds a number")
    return value


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _file_sha256(path: str | Path) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise SymDenoiseError(
            f"{path}", rule=f"it cannot be read ({error.strerror})", remedy="check the path"
        ) from error
