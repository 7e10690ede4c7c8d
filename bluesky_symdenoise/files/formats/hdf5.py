"""HDF5 files by the conventions of Eiger, NeXus and this package: their dataset of frames and their metadata."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.format import Array, Format, Part, ReadFrames, stack_shape
from bluesky_symdenoise.files.formats.hdf5_stored import stored_row
from bluesky_symdenoise.files.rows import Hdf5Rows, open_for_reading

_PIXEL_UNITS = ("", "pixel", "pixels", "px")


def _parts(path: Path, name: str | None) -> list[Part]:
    with open_for_reading(path) as file:
        return [_hdf5_part(file, path, each) for each in _dataset_names(file, path, name)]


def _dataset_names(file: Any, path: Path, name: str | None) -> list[str]:
    """Return the requested dataset, or those that hold the frames by known conventions."""
    if name is not None:
        if isinstance(file.get(name), h5py.Dataset):
            return [name]
        raise SymDenoiseError(
            f"{path}::{name}", rule="there is no such dataset", remedy=_choose(path, _candidates(file))
        )
    for known in ("counts", "entry/data/data"):
        if isinstance(_get(file, known, path), h5py.Dataset):
            return [known]
    data = _get(file, "entry/data", path)
    keys = data if isinstance(data, h5py.Group) else ()
    if numbered := [key for key in keys if re.fullmatch(r"data_[0-9]+", key)]:
        return [f"entry/data/{key}" for key in sorted(numbered, key=lambda key: int(key[5:]))]
    if signal := _nexus_signal(file):
        return [signal]
    candidates = _candidates(file)
    if len(candidates) == 1:
        return list(candidates)
    rule = "several datasets could be the frames" if candidates else "no dataset looks like frames"
    raise SymDenoiseError(f"{path}", rule=rule, remedy=_choose(path, candidates))


def _choose(path: Path, candidates: Mapping[str, tuple[int, ...]]) -> str:
    if not candidates:
        return "give a file with a numeric dataset of rank 2 or 3"
    return "choose one: " + ", ".join(f"{path}::{name} {shape}" for name, shape in candidates.items())


def _candidates(file: Any) -> dict[str, tuple[int, ...]]:
    found = {}

    def look(name: str, node: Any) -> None:
        if not isinstance(node, h5py.Dataset) or "mask" in posixpath.basename(name):
            return
        if node.ndim in (2, 3, 4) and min(node.shape[-2:]) > 1 and node.dtype.kind in "uif":
            found[name] = node.shape

    file.visititems(look)
    return found


def _nexus_signal(file: Any) -> str | None:
    """Follow the NeXus attributes ``default`` and ``signal`` from the root to the dataset to plot."""
    node = file
    # "." means the group itself.
    while isinstance(node, h5py.Group) and _text(node.attrs.get("default", ".")) != ".":
        node = node.get(_text(node.attrs["default"]))
    if isinstance(node, h5py.Group) and "signal" in node.attrs:
        signal = node.get(_text(node.attrs["signal"]))
        if isinstance(signal, h5py.Dataset) and signal.ndim >= 2:
            return str(signal.name)
    return None


def _get(file: Any, name: str, path: Path) -> Any:
    """Return a node of the file or None, and raise if a link leads nowhere."""
    node = file.get(name)
    if node is None and name in file:
        link = file.get(name, getlink=True)
        raise SymDenoiseError(
            f"{path}::{name}",
            rule=f"the linked file {getattr(link, 'filename', '')!r} cannot be opened",
            remedy="keep the data files beside the master file",
        )
    return node


def _hdf5_part(file: Any, path: Path, name: str) -> Part:
    dataset = _get(file, name, path)
    shape = stack_shape(dataset.shape, dataset.dtype, f"{path}::{name}")
    group = file[posixpath.dirname(name) or "/"]
    detector = "/" + name.strip("/").split("/")[0] + "/instrument/detector"
    masks = (f"{group.name}/mask", f"{detector}/detectorSpecific/pixel_mask", f"{detector}/pixel_mask")
    mask = next((node for each in masks if (node := _get(file, each, path)) is not None), None)
    attrs = [node.attrs for node in (dataset, group, file)]
    center = next((each["beam_center"] for each in attrs if "beam_center" in each), None)
    symmetry = next((_text(each["symmetry"]) for each in attrs if "symmetry" in each), None)
    return Part(
        path,
        shape,
        dataset.dtype,
        lambda: _hdf5_frames(path, name),
        linked=_linked_files(dataset, path),
        mask=None if mask is None else _as_mask(mask[()], shape[1:], f"{path}::{mask.name}"),
        beam_center=_nexus_center(file, detector, path) if center is None else _as_center(center, path),
        symmetry=symmetry,
    )


@contextmanager
def _hdf5_frames(path: Path, name: str) -> Iterator[ReadFrames]:
    with open_for_reading(path) as file:
        dataset = file[name]
        if dataset.ndim == 2:
            yield lambda start, stop: dataset[()][np.newaxis]
        else:
            yield lambda start, stop: dataset[start:stop].reshape(-1, *dataset.shape[-2:])


def _linked_files(dataset: Any, path: Path) -> tuple[Path, ...]:
    """Return the other files with pixels; HDF5 itself reads zeros where a virtual source is missing."""
    home = Path(dataset.file.filename)
    files = {} if home.samefile(path) else {home: None}
    for source in dataset.virtual_sources() if dataset.is_virtual else ():
        if source.file_name == "." or "%b" in source.file_name:
            continue
        places = (home.parent / source.file_name, Path(source.file_name))
        target = next((place for place in places if place.exists()), None)
        if target is None:
            raise SymDenoiseError(
                f"{path}::{dataset.name}",
                rule=f"the file {source.file_name!r} with its frames is missing",
                remedy="keep the data files beside the master file",
            )
        files[target] = None
    return tuple(files)


def _nexus_center(file: Any, detector: str, path: Path) -> tuple[float, float] | None:
    """Return NeXus ``beam_center_y, beam_center_x`` if both are constant and in pixels."""
    center = []
    for axis in "yx":
        node = _get(file, f"{detector}/beam_center_{axis}", path)
        if not isinstance(node, h5py.Dataset) or _text(node.attrs.get("units", "")) not in _PIXEL_UNITS:
            return None
        values = np.unique(node[()])
        if values.size != 1:
            return None
        center.append(float(values[0]))
    # An Eiger whose beam centre was never configured says (0, 0).
    return _as_center(center, path) if any(center) else None


def _as_center(value: Any, path: Path) -> tuple[float, float]:
    center = np.asarray(value, dtype=float).ravel()
    if center.shape != (2,) or not np.isfinite(center).all():
        raise SymDenoiseError(
            f"{path} with beam_center {value}",
            rule="a beam centre is two finite numbers [y, x]",
            remedy="correct the attribute",
        )
    return float(center[0]), float(center[1])


def _as_mask(stored: Array, shape: tuple[int, ...], what: str) -> NDArray[np.bool_]:
    mask = stored[0] if stored.ndim == 3 and len(stored) == 1 else stored
    if mask.shape != shape:
        raise SymDenoiseError(
            f"{what} of shape {stored.shape}",
            rule=f"a mask must have the shape of a frame, {shape}",
            remedy="name the dataset that the mask belongs to, or repair the file",
        )
    return np.asarray(mask != 0)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _shape(path: Path, dataset: str | None) -> tuple[int, ...]:
    with open_for_reading(path) as file:
        shape: tuple[int, ...] = file[dataset].shape
    return shape


def _growing(path: Path, name: str, frames: int | None, patience: float) -> Hdf5Rows:
    return Hdf5Rows(path, name, frames=frames, patience=patience)


HDF5 = Format(
    mimetype="application/x-hdf5",
    recognised=h5py.is_hdf5,
    parts=_parts,
    growing=_growing,
    shape=_shape,
    stored=stored_row,
    has_datasets=True,
)
