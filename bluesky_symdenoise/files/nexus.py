"""Denoised frames as NeXus: the layout that all our HDF5 files share, and a writer for plain files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import hdf5plugin
import numpy as np

from bluesky_symdenoise import __version__
from bluesky_symdenoise.errors import SymDenoiseError

if TYPE_CHECKING:
    import xarray as xr


#: Name of this program in NXprocess and NXroot.
PROGRAM = "bluesky-symdenoise"


class NexusWriter:
    """Write denoised frames to a NeXus-style HDF5 file, a few frames at a time.

    ``/entry/data`` (NXdata) holds ``intensity`` and ``intensity_errors`` (one standard deviation), one
    bitshuffle/zstd chunk per frame; ``/entry/process`` (NXprocess) records how they were made. The file appears
    under its name when the ``with`` block ends well, and not at all when it ends with an exception.

    Parameters
    ----------
    path
        The file to write.
    frame_shape
        (H, W).
    date
        When the frames were denoised, ISO 8601.
    sources
        Files that the frames come from; none of them is ever overwritten.
    overwrite
        Whether an existing file may be replaced.

    Raises
    ------
    SymDenoiseError
        If `path` is a source or exists, its folder does not, or no frame was appended.
    """

    def __init__(
        self,
        path: str | Path,
        frame_shape: tuple[int, int],
        *,
        date: str,
        sources: Sequence[str | Path] = (),
        overwrite: bool = False,
    ) -> None:
        self.path = Path(path)
        self._frame_shape = (int(frame_shape[0]), int(frame_shape[1]))
        self._frames = 0
        self._parameters: str | None = None
        if not self.path.parent.is_dir():
            raise SymDenoiseError(
                f"{self.path}", rule="its folder does not exist", remedy="create it or give another name"
            )
        if self.path.exists():
            if any(Path(source).exists() and self.path.samefile(source) for source in sources):
                raise SymDenoiseError(f"{self.path}", rule="a source is never overwritten", remedy="give another name")
            if not overwrite:
                raise SymDenoiseError(
                    f"{self.path}", rule="the file exists", remedy="give another name, overwrite=True or --overwrite"
                )
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        self._file = h5py.File(self._temporary, "w")
        self._lay_out(date, [str(Path(source).absolute()) for source in sources])

    def append(self, frames: xr.Dataset) -> None:
        """Write ``intensity`` and ``sigma`` of one or more frames, dims (frame, y, x).

        The attributes are stored as parameters, once for as long as they stay the same. A ``frame`` coordinate is
        kept; without it, frames are counted from zero. ``borrowed``, one number a frame, is stored where there is one,
        and NaN for other frames.
        """
        intensity = frames["intensity"].transpose("frame", "y", "x")
        sigma = frames["sigma"].transpose("frame", "y", "x")
        if intensity.shape[1:] != self._frame_shape:
            raise SymDenoiseError(
                f"frames of shape {intensity.shape[1:]}",
                rule=f"all frames of {self.path} must have shape {self._frame_shape}",
                remedy="write the frames of each shape to a file of their own",
            )
        if not self._frames:
            for name in ("intensity", "intensity_errors"):
                self._file["entry/data"][name].attrs["units"] = intensity.attrs.get("units", "counts")
        start, stop = self._frames, self._frames + len(intensity)
        numbers = frames["frame"].values if "frame" in frames.coords else range(start, stop)
        for name, values in (
            ("intensity", intensity.values),
            ("intensity_errors", sigma.values),
            ("frame", numbers),
        ):
            dataset = self._file["entry/data"][name]
            dataset.resize(stop, axis=0)
            dataset[start:stop] = values
        self._add_borrowed(frames, start, stop)
        self._frames = stop
        parameters = json.dumps(frames.attrs, default=_plain)
        if parameters != self._parameters:
            suffix = "" if self._parameters is None else f"_from_{start}"
            add_parameters(self._file["entry/process"], frames.attrs, suffix=suffix)
            self._parameters = parameters

    def _add_borrowed(self, frames: xr.Dataset, start: int, stop: int) -> None:
        data = self._file["entry/data"]
        if "borrowed" not in data and "borrowed" in frames:
            made = data.create_dataset("borrowed", (start,), "f4", maxshape=(None,), chunks=(1024,), fillvalue=np.nan)
            made.attrs["long_name"] = "exposures borrowed from other frames, in units of the frame's own"
        if "borrowed" in data:
            data["borrowed"].resize(stop, axis=0)
            if "borrowed" in frames:
                data["borrowed"][start:stop] = frames["borrowed"].values

    def __enter__(self) -> NexusWriter:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *rest: object) -> None:
        self._file.close()
        if exc_type is None and self._frames:
            os.replace(self._temporary, self.path)
            return
        self._temporary.unlink()
        if exc_type is None:
            raise SymDenoiseError(f"{self.path}", rule="no frame was written", remedy="append at least one frame")

    def _lay_out(self, date: str, sources: Sequence[str]) -> None:
        height, width = self._frame_shape
        entry = add_entry(self._file)
        data = _group(entry, "data", "NXdata")
        data.attrs.update(signal="intensity", axes=["frame", "y", "x"])
        for name in ("intensity", "intensity_errors"):
            data.create_dataset(
                name,
                (0, height, width),
                "f4",
                maxshape=(None, height, width),
                chunks=(1, height, width),
                **hdf5plugin.Bitshuffle(cname="zstd"),
            )
        data.create_dataset("frame", (0,), "i8", maxshape=(None,), chunks=(1024,))
        for name, size in (("y", height), ("x", width)):
            data[name] = np.arange(size, dtype=float)
            data[name].attrs["units"] = "pixel"
        process = add_process(entry, version=__version__, date=date)
        process.create_dataset("sources", data=list(sources), dtype=h5py.string_dtype())


def add_entry(file: Any, name: str = "entry") -> Any:
    """Return a new NXentry; the first one of a file opens by default, with its group ``data``."""
    if "default" not in file.attrs:
        file.attrs.update(NX_class="NXroot", default=name, creator=PROGRAM)
    entry = _group(file, name, "NXentry")
    entry.attrs["default"] = "data"
    return entry


def add_images(
    entry: Any, shapes: Mapping[str, Sequence[int]], *, units: Mapping[str, str] | None = None, **storage: Any
) -> dict[str, Any]:
    """Return the NXdata of images and their standard deviations, still without rows.

    Each image ``det`` has ``det_sigma``, which is also its ``det_errors``, the name that NeXus programs look for. The
    first image is the signal; its rows, and what lies between row and pixel, have no axis of their own.

    Parameters
    ----------
    entry
        Entry from `add_entry`.
    shapes
        (..., y, x) of one row of each image.
    units
        Units of each image by name, where it is not ``counts``.
    **storage
        Compression, as `h5py.Group.create_dataset` takes it.

    Returns
    -------
    dict
        Datasets (0, ..., y, x) float32 by name, chunked by frame and growing along the first dimension.
    """
    data = _group(entry, "data", "NXdata")
    signal = next(iter(shapes))
    unnamed = ["."] * (len(shapes[signal]) - 1)
    data.attrs.update(signal=signal, axes=[*unnamed, "y", "x"])
    for name, size in zip("yx", shapes[signal][-2:], strict=True):
        data[name] = np.arange(size, dtype=float)
        data[name].attrs["units"] = "pixel"
    datasets = {}
    for key, shape in shapes.items():
        chunk = (1,) * (len(shape) - 1) + tuple(shape[-2:])
        for name in (key, f"{key}_sigma"):
            datasets[name] = data.create_dataset(
                name, (0, *shape), np.float32, maxshape=(None, *shape), chunks=chunk, **storage
            )
            datasets[name].attrs["units"] = (units or {}).get(key, "counts")
        datasets[f"{key}_sigma"].attrs["note"] = "errors of neighbouring pixels are correlated"
        data[f"{key}_errors"] = h5py.SoftLink(f"{key}_sigma")
    return datasets


def add_process(entry: Any, *, version: str, date: str) -> Any:
    """Return the NXprocess of an entry: what made its data, and when (ISO 8601)."""
    process = _group(entry, "process", "NXprocess")
    process["program"] = PROGRAM
    process["version"] = version
    process["date"] = date
    return process


def add_parameters(process: Any, provenance: Mapping[str, Any], *, suffix: str = "") -> None:
    """Store provenance twice: as NXparameters with a field for each value, and as an NXnote with all of it as JSON.

    The fields of nested values are joined, ``model_sha256``; values that are None, and lists of more than plain values,
    are in the note only.
    """
    as_json = json.dumps(provenance, default=_plain)
    parameters = _group(process, f"parameters{suffix}", "NXparameters")
    # Values from the JSON: some types, such as torch's version, which is a subclass of str, are refused by HDF5.
    for name, value in _fields(json.loads(as_json)):
        parameters[name] = value
    note = _group(process, f"provenance{suffix}", "NXnote")
    note["type"] = "application/json"
    note["description"] = "how the images were made, as stored with the run"
    note["data"] = as_json


def _fields(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        match value:
            case Mapping():
                yield from _fields(value, f"{name}_")
            case bool() | int() | float() | str():
                yield name, value
            case [int() | float(), *rest] if all(isinstance(each, int | float) for each in rest):
                yield name, np.asarray(value)
            case [str(), *rest] if all(isinstance(each, str) for each in rest):
                yield name, np.asarray(value, h5py.string_dtype())


def _group(parent: Any, name: str, nx_class: str) -> Any:
    group = parent.create_group(name)
    group.attrs["NX_class"] = nx_class
    return group


def _plain(value: object) -> object:
    """Return the value as a JSON type; raise TypeError for a type that provenance must not hold."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"provenance holds a {type(value).__name__}, which JSON cannot store")
