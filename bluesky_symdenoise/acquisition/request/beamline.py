"""Names under which a beamline keeps geometry, masks, doses and darks, and the values that a run has for them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.acquisition.request.lookup import NOTHING, Found, exposures_of, number_of, plain, within
from bluesky_symdenoise.acquisition.request.poni import DetectorPosition, detector_position
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.dark import Dark, summed_dark, summed_signal
from bluesky_symdenoise.physics.integrating.readout import Readout
from bluesky_symdenoise.physics.symmetry import checked_symmetry
from bluesky_symdenoise.physics.tilt import on_tilt
from bluesky_symdenoise.recipe import array_sha256

Document = dict[str, Any]

#: Quantities that are looked up by metadata name.
NAMED = (
    "symmetry",
    "beam_center_y",
    "beam_center_x",
    "mask",
    "poni",
    "exposure_time",
    "gain",
    "read_noise",
    "frames_averaged",
    "i0",
    "transmission",
)

#: Arguments that take precedence over a quantity, where the argument has another name.
_ARGUMENTS = dict.fromkeys(("beam_center_y", "beam_center_x", "poni"), "beam_center") | dict.fromkeys(
    ("gain", "read_noise"), "readout"
)


@dataclass(frozen=True)
class Beamline:
    """Names under which a beamline keeps the metadata that the denoiser uses; None does not look a quantity up.

    A name is looked up in the columns of the image's own stream, then in the configuration in its descriptor, then in
    the start document; in the last two, dots address nested values, and items of lists by index (``beam_center.0``).
    ``{key}`` in a name is replaced by the image's data key. A name that is found nowhere is logged.
    Arguments such as ``symmetry="2mm"`` take precedence over all of them, and a .poni file comes last; a tilt that is
    part of a symmetry takes precedence over that of the file.

    Attributes
    ----------
    symmetry
        A point group or ``auto``.
    beam_center_y, beam_center_x
        Pixels; the centre of the first pixel is 0.
    mask
        Path of a file with one image, not 0 = bad. Not looked up in columns.
    poni
        Path of a .poni file, or a dict of its words (``dist``, ``poni1``, ``rot1``, ``pixel1``, ...). Not looked up in
        columns. It gives the beam centre, and the tilt of the detector where that moves any mate by more than a quarter
        of a pixel: ``2mm`` is then ``2mm~TILT:AXIS:DISTANCE``.
    exposure_time
        Seconds. Scales darks; changes nothing else.
    gain, read_noise
        Readout of an integrating detector, in units of its signal, for runs without the argument ``readout``: units per
        photon, and standard deviation of an exposure's pixel without photons.
    frames_averaged
        Number of exposures of which each frame is the mean, such as ``{key}_images_per_set``. Of a detector without
        readout and gain, a frame is the mean of so many frames of counts.
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
    gain: str | None = None
    read_noise: str | None = None
    frames_averaged: str | None = None
    i0: str | None = None
    transmission: str | None = None
    poni_file: str | Path | None = None
    dark_stream: str | None = None
    dark_run: str | None = None
    dark_file: str | Path | None = None
    dark_seconds: float | None = None
    handlers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in NAMED:
            if not isinstance(value := getattr(self, name), str | None):
                raise SymDenoiseError(
                    f"{name}={value!r} of a beamline",
                    rule="it is the name under which runs have the value, not the value",
                    remedy=f"give a name, or the value itself as an argument ({_ARGUMENTS.get(name, name)}=...)",
                )
        darks = [name for name in ("dark_stream", "dark_run", "dark_file") if getattr(self, name) is not None]
        if len(darks) > 1:
            raise SymDenoiseError(", ".join(darks), rule="a frame can have one dark only", remedy="name one of them")
        if (self.beam_center_y is None) != (self.beam_center_x is None):
            raise SymDenoiseError(
                "a beam centre with one coordinate",
                rule="it needs y and x",
                remedy="name beam_center_y and beam_center_x",
            )

    @property
    def has_dark(self) -> bool:
        """Whether frames have a dark."""
        return any(name is not None for name in (self.dark_stream, self.dark_run, self.dark_file))

    @property
    def names_readout(self) -> bool:
        """Whether runs may say that frames are the signal of an integrating detector, or means."""
        return self.gain is not None or self.frames_averaged is not None

    def columns(self, key: str) -> set[str]:
        """Return the names that may be columns beside an image."""
        names = (getattr(self, quantity) for quantity in NAMED if quantity not in ("mask", "poni"))
        return {_for_key(name, key) for name in names if name is not None}

    def to_recipe(self) -> tuple[str, ...] | None:
        """Return the names that decide pixels, for `Recipe.beamline`; a file is represented by its content."""
        said = []
        for each in fields(self):
            value = getattr(self, each.name)
            if value is None or each.name == "handlers":
                continue
            said.append(f"{each.name}={_file_sha256(value) if each.name.endswith('_file') else value}")
        return tuple(said) or None

    @classmethod
    def from_recipe(cls, said: tuple[str, ...] | None) -> Beamline:
        """Return the names of `to_recipe`, for computing a run again: masks, geometry and files are recorded there."""
        pairs = dict(each.split("=", 1) for each in said or ())
        for name in ("mask", "poni", "poni_file", "dark_seconds"):
            pairs.pop(name, None)
        names: dict[str, Any] = dict(pairs)
        return cls(**names)


class Settings:
    """Settings for the images of one data key of one stream, from arguments and metadata.

    Parameters
    ----------
    given
        Arguments ``symmetry``, ``beam_center``, ``mask``, ``readout``, ``noise``, if given. They take precedence over
        everything else.

    Attributes
    ----------
    mask
        (y, x), True = bad, or None.

    Raises
    ------
    SymDenoiseError
        If a value that was found cannot be used.
    """

    def __init__(
        self, beamline: Beamline, *, key: str, start: Document, descriptor: Document, given: Mapping[str, Any]
    ) -> None:
        self._beamline, self._key, self._start, self._descriptor = beamline, key, start, descriptor
        self._given = dict(given)
        self._position = self._found_position()
        found = None if "mask" in given else self._looked_up("mask", {})
        self.mask: NDArray[np.bool_] | None = given.get("mask")
        self._mask_source = "argument" if "mask" in given else None
        if found is not None:
            from bluesky_symdenoise.files.opening import mask_from

            self.mask, self._mask_source = mask_from(str(found.value)), found.source

    def symmetry(self, data: Mapping[str, Any]) -> str:
        """Return a point group or ``auto``, on the detector as it is tilted, for an event with these columns."""
        found = self._first("symmetry", data)
        symbol = "auto" if found is None else checked_symmetry(str(found.value))
        return on_tilt(symbol, None if self._position is None else self._position[0].tilt)

    def beam_center(self, data: Mapping[str, Any]) -> tuple[float, float] | None:
        """Return (y, x) in pixels for an event with these columns; None if it is not known."""
        if "beam_center" in self._given:
            y, x = self._given["beam_center"]
            return float(y), float(x)
        found = [self._looked_up(f"beam_center_{axis}", data) for axis in "yx"]
        if found[0] is not None and found[1] is not None:
            return number_of(found[0]), number_of(found[1])
        return None if self._position is None else self._position[0].beam_center

    def exposure_time(self, data: Mapping[str, Any]) -> float | None:
        """Return the exposure time in seconds for an event with these columns; None if it is not known."""
        found = self._looked_up("exposure_time", data)
        return None if found is None else number_of(found)

    def readout(self, data: Mapping[str, Any]) -> Readout | None:
        """Return the readout of the detector for an event with these columns; None if frames are counts."""
        if "noise" in self._given:
            return None
        stated: Readout | None = self._given.get("readout")
        frames = self._looked_up("frames_averaged", data)
        number = 1 if frames is None else exposures_of(frames)
        if stated is None:
            gain, noise = self._looked_up("gain", data), self._looked_up("read_noise", data)
            if gain is None:
                return None if number == 1 else Readout(1.0, frames=number)
            stated = Readout(number_of(gain), 0.0 if noise is None else number_of(noise))
        return replace(stated, frames=number) if stated.frames == 1 and number > 1 else stated

    @property
    def may_integrate(self) -> bool:
        """Whether the images are, or may be, the signal of an integrating detector, or means."""
        return self.readout_in_columns or self.readout({}) is not None

    @property
    def readout_in_columns(self) -> bool:
        """Whether a part of the readout is looked up in a column, and may differ from event to event."""
        columns = self._columns()
        return "noise" not in self._given and any(
            (found := self._looked_up(quantity, columns)) is not None and isinstance(found.value, Found)
            for quantity in self._of_readout
        )

    @property
    def _of_readout(self) -> tuple[str, ...]:
        """Quantities of a readout that are looked up: of one that was given, only the number of exposures."""
        return ("frames_averaged",) if "readout" in self._given else ("gain", "read_noise", "frames_averaged")

    def record(self) -> Document:
        """Return what was found before the first event, and where, for the derived descriptor.

        A quantity that is looked up in a column has its source only: the values are in the raw run's column.
        """
        out: Document = {}
        columns = self._columns()
        for quantity in ("symmetry", "exposure_time", *self._of_readout, "i0", "transmission"):
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
        elif center is None and self._position is not None:
            center = Found(list(self._position[0].beam_center), self._position[1])
        if center is not None or self._beamline.beam_center_y is not None:
            self._say(out, "beam_center", center or Found(None, "not found"), columns)
        if self._position is not None and (tilt := self._position[0].tilt) is not None:
            self._say(out, "tilt", Found([tilt.degrees, tilt.axis, tilt.distance], self._position[1]), columns)
        elif self.unused_tilt is not None:
            self._say(out, "tilt", Found(None, f"not used: {self.unused_tilt}"), columns)
        if self.mask is not None:
            self._say(out, "mask_sha256", Found(array_sha256(self.mask), self._mask_source or ""), columns)
        return out

    @property
    def unused_tilt(self) -> str | None:
        """Reason why a tilt of the detector is not used to find mates; None if it is used, or there is none."""
        return None if self._position is None or self._given.get("symmetry") == "1" else self._position[0].unused

    def missing(self) -> list[tuple[str, str]]:
        """Return the names that are found nowhere, each after its quantity, for quantities that were not given."""
        columns = self._columns()
        return [
            (quantity, _for_key(name, self._key))
            for quantity in NAMED
            if (name := getattr(self._beamline, quantity)) is not None
            and _ARGUMENTS.get(quantity, quantity) not in self._given
            and self._looked_up(quantity, columns) is None
        ]

    def _columns(self) -> dict[str, Found]:
        """Return a placeholder for each column that events may have, by name: its values are not known yet."""
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
            out[f"{self._key}_{quantity}"] = plain(found.value)
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
            value = within(device.get("data", {}), name)
            if value is not NOTHING:
                return Found(value, f"descriptor configuration {name}")
        value = within(self._start, name)
        return None if value is NOTHING else Found(value, f"start metadata {name}")

    def _found_position(self) -> tuple[DetectorPosition, str] | None:
        """Return the position of the detector, and where it was found."""
        named = self._looked_up("poni", {})
        stated = self._beamline.poni_file if named is None else named.value
        if stated is None:
            return None
        shape = self._descriptor["data_keys"].get(self._key, {}).get("shape", ())[-2:]
        frames = (int(shape[0]), int(shape[1])) if len(shape) == 2 and None not in shape else None
        if named is not None and isinstance(stated, Mapping):
            return detector_position(stated, key=self._key, shape=frames), named.source
        return detector_position(str(stated), key=self._key, shape=frames), f"poni file {Path(str(stated)).name}"


def dark_from(path: str | Path, *, seconds: float | None, integrating: bool) -> Dark:
    """Return the dark in a file of dark frames, of counts or of an integrating detector's signal."""
    from bluesky_symdenoise.files.opening import open_frames

    summed = summed_signal if integrating else summed_dark
    with open_frames(path) as frames:
        return summed((frames[i] for i in range(frames.shape[0])), seconds=seconds)


def _for_key(name: str, key: str) -> str:
    return name.replace("{key}", key)


def _file_sha256(path: str | Path) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise SymDenoiseError(
            f"{path}", rule=f"it cannot be read ({error.strerror})", remedy="check the path"
        ) from error
