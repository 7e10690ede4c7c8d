"""HDF5 files by the conventions of Eiger, NeXus and this package: their dataset of frames and their metadata."""

from __future__ import annotations

import logging
import math
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
from bluesky_symdenoise.files.format import Format, Part, ReadFrames, stack_shape
from bluesky_symdenoise.files.formats.hdf5_stored import stored_row
from bluesky_symdenoise.files.opened import open_for_reading
from bluesky_symdenoise.files.rows import Hdf5Rows
from bluesky_symdenoise.files.virtual import followed
from bluesky_symdenoise.physics.frame import mostly_masked

log = logging.getLogger("bluesky_symdenoise")

_PIXEL_UNITS = ("pixel", "pixels", "px")
#: Lengths in metres, as files spell them.
_LENGTHS = {
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), 1.0),
    **dict.fromkeys(("cm",), 1e-2),
    **dict.fromkeys(("mm", "millimeter", "millimeters", "millimetre", "millimetres"), 1e-3),
    **dict.fromkeys(("um", "µm", "μm", "micron", "microns", "micrometer", "micrometers"), 1e-6),
    **dict.fromkeys(("nm",), 1e-9),
}
#: Fewest pixels of a frame that is found without its name, most nodes that are examined, and most groups that lead to
#: each other by ``default``.
_LEAST_PIXELS, _MOST_NODES, _MOST_DEFAULTS = 64, 10_000, 16


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
        return _there(file, [f"entry/data/{key}" for key in sorted(numbered, key=lambda key: int(key[5:]))], path)
    if signal := _nexus_signal(file):
        return [signal]
    candidates, gone = _candidates(file), _broken_links(file)
    if len(candidates) == 1:
        return list(candidates)
    rule = "several datasets could be the frames" if candidates else "no dataset looks like frames"
    if not candidates and gone:
        rule = f"no dataset looks like frames, and {_gone(gone)}"
    raise SymDenoiseError(f"{path}", rule=rule, remedy=_choose(path, candidates))


def _there(file: Any, names: list[str], path: Path) -> list[str]:
    """Return the datasets of an Eiger master whose files exist; in an aborted run, the last ones may be missing."""
    found = [name for name in names if file.get(name) is not None]
    if not found or names[: len(found)] != found:
        missing = next(name for name in names if name not in found)
        own = ", ".join(f"{path}::{name}" for name in found) or "none is there"
        raise SymDenoiseError(
            f"{path}::{missing}",
            rule=_gone({missing: file.get(missing, getlink=True)}),
            remedy=f"put it beside the master file, or name those that are there: {own}",
        )
    if len(found) < len(names):
        log.warning(
            "%s: only the frames of %s are read; %s, as after an aborted run",
            path,
            ", ".join(posixpath.basename(name) for name in found),
            _gone({name: file.get(name, getlink=True) for name in names[len(found) :]}),
        )
    return found


def _gone(links: Mapping[str, Any]) -> str:
    """Return in words which linked files cannot be opened."""
    files = dict.fromkeys(repr(link.filename) for link in links.values() if isinstance(link, h5py.ExternalLink))
    if not files:
        return f"{', '.join(map(repr, links))} leads nowhere"
    return f"the linked file{'s' if len(files) > 1 else ''} {', '.join(files)} cannot be opened"


def _choose(path: Path, candidates: Mapping[str, tuple[int, ...]]) -> str:
    if not candidates:
        return "give a file with a numeric dataset of rank 2 or 3"
    return "choose one: " + ", ".join(f"{path}::{name} {shape}" for name, shape in candidates.items())


def _candidates(file: Any) -> dict[str, tuple[int, ...]]:
    """Return the datasets that may be frames by name, each once; links are followed."""
    found = {}
    for name, node, _ in _nodes(file):
        base = posixpath.basename(name)
        if not isinstance(node, h5py.Dataset) or any(word in base for word in ("mask", "flatfield", "trimbit")):
            continue
        pixels = math.prod(node.shape[-2:]) if min(node.shape[-2:], default=0) > 1 else 0
        if node.ndim in (2, 3, 4) and pixels >= _LEAST_PIXELS and node.dtype.kind in "uif":
            found[name] = node.shape
    return found


def _broken_links(file: Any) -> dict[str, Any]:
    return {name: link for name, node, link in _nodes(file) if node is None}


def _nodes(file: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, node (None for a broken link) and link of everything in a file or linked from it, each once."""
    seen: set[tuple[str, int]] = set()
    waiting, number = [("", file)], 0
    while waiting:
        prefix, group = waiting.pop(0)
        for key in group:
            if (number := number + 1) > _MOST_NODES:
                return
            name, node = f"{prefix}{key}", _at(group, key)
            if node is not None:
                # The address of a node in its file identifies it, whatever links lead to it.
                place = (str(Path(node.file.filename).resolve()), h5py.h5o.get_info(node.id).addr)
                if place in seen:
                    continue
                seen.add(place)
            yield name, node, group.get(key, getlink=True)
            if isinstance(node, h5py.Group):
                waiting.append((f"{name}/", node))


def _at(group: Any, name: str) -> Any:
    """Return a node of a group; None if there is none, or a link leads nowhere or in a circle."""
    try:
        return group.get(name)
    except (RuntimeError, OSError) as error:
        log.debug("%s of %s cannot be opened: %s", name, group.name, error)
        return None


def _nexus_signal(file: Any) -> str | None:
    """Follow the NeXus attributes ``default`` and ``signal`` from the root to the dataset to plot."""
    node = file
    # "." means the group itself. Files may lead in a circle.
    for _ in range(_MOST_DEFAULTS):
        if not isinstance(node, h5py.Group) or _text(node.attrs.get("default", ".")) == ".":
            break
        node = _at(node, _text(node.attrs["default"]))
    if isinstance(node, h5py.Group) and "signal" in node.attrs:
        signal = _at(node, _text(node.attrs["signal"]))
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
    nodes = (_get(file, each, path) for each in masks)
    mask = next((node for node in nodes if isinstance(node, h5py.Dataset)), None)
    pixels = followed(dataset, f"{path}::{name}")
    known = None if mask is None else _as_mask(mask, shape[1:], f"{path}::{mask.name}")
    attrs = [node.attrs for node in (dataset, group, file)]
    center = next((each["beam_center"] for each in attrs if "beam_center" in each), None)
    symmetry = next((_text(each["symmetry"]) for each in attrs if "symmetry" in each), None)
    return Part(
        path,
        shape if pixels.frames is None else (min(shape[0], pixels.frames), *shape[1:]),
        dataset.dtype,
        lambda: _hdf5_frames(path, name),
        linked=tuple(file for file in pixels.files if not file.samefile(path)),
        mask=pixels.gone if known is None else known if pixels.gone is None else known | pixels.gone,
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


def _nexus_center(file: Any, detector: str, path: Path) -> tuple[float, float] | None:
    """Return NeXus ``beam_center_y, beam_center_x`` in pixels if both are constant; log why they are not used."""
    center = []
    for axis in "yx":
        node = _get(file, f"{detector}/beam_center_{axis}", path)
        values = np.unique(node[()]) if isinstance(node, h5py.Dataset) else np.empty(0)
        if values.size != 1:
            return None
        center.append((float(values[0]), _pixels_per_unit(file, detector, axis, node)))
    # An Eiger without a configured beam centre writes (0, 0).
    if not any(value for value, _ in center):
        return None
    if any(factor is None or not np.isfinite(value * factor) for value, factor in center):
        log.warning(
            "%s: the beam centre (y, x) = %s of %s is not used: its unit is not known, or it is not finite; give "
            "beam_center in pixels",
            path,
            tuple(value for value, _ in center),
            detector,
        )
        return None
    return _as_center([value * factor for value, factor in center if factor is not None], path)


def _pixels_per_unit(file: Any, detector: str, axis: str, node: Any) -> float | None:
    """Return the pixels in a unit of the beam centre, for a length from the pixel size; None if unknown."""
    unit = _text(node.attrs.get("units", "")).strip().lower()
    if unit in _PIXEL_UNITS:
        return 1.0
    size = file.get(f"{detector}/{axis}_pixel_size")
    if unit not in _LENGTHS or not isinstance(size, h5py.Dataset) or size.size != 1:
        return None
    metres = _LENGTHS.get(_text(size.attrs.get("units", "")).strip().lower())
    pixel = float(np.ravel(size[()])[0])
    return None if metres is None or not (np.isfinite(pixel) and pixel > 0) else _LENGTHS[unit] / (pixel * metres)


def _as_center(value: Any, path: Path) -> tuple[float, float]:
    center = np.asarray(value, dtype=float).ravel()
    if center.shape != (2,) or not np.isfinite(center).all():
        raise SymDenoiseError(
            f"{path} with beam_center {value}",
            rule="a beam centre is two finite numbers [y, x]",
            remedy="correct the attribute",
        )
    return float(center[0]), float(center[1])


def _as_mask(dataset: Any, shape: tuple[int, ...], what: str) -> NDArray[np.bool_]:
    gone, stored = followed(dataset, what).gone, dataset[()]
    mask = stored[0] if stored.ndim == 3 and len(stored) == 1 else stored
    if mask.shape != shape:
        raise SymDenoiseError(
            f"{what} of shape {stored.shape}",
            rule=f"a mask must have the shape of a frame, {shape}",
            remedy="name the dataset that the mask belongs to, or repair the file",
        )
    # What a missing file says of its pixels is not known.
    bad = np.asarray(mask != 0) if gone is None else (mask != 0) | gone
    if said := mostly_masked(bad, what, "if that is wrong, `symdenoise denoise --ignore-file-mask` does without it"):
        log.warning("%s", said)
    return bad


def _text(value: Any) -> str:
    value = value.ravel()[0] if isinstance(value, np.ndarray) and value.size == 1 else value
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
