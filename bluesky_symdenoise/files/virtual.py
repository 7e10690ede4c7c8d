"""Virtual and linked datasets, followed to their files, because HDF5 itself reads zeros where a source is missing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.opened import open_for_reading

log = logging.getLogger("bluesky_symdenoise")

#: Deepest nesting of virtual sources.
_MOST_DEPTH = 8
#: Sources of one dataset that are opened; that the others are there is enough.
_MOST_OPENED = 200
_UNLIMITED = int(h5py.h5s.UNLIMITED)


@dataclass
class Pixels:
    """Location of the pixels of a dataset.

    Attributes
    ----------
    files
        The files that hold them.
    frames
        Number of leading frames that are in files; None for all.
    gone
        (y, x), True in modules whose files are missing; None if none is.
    """

    files: dict[Path, None]
    frames: int | None = None
    gone: NDArray[np.bool_] | None = None


def followed(dataset: Any, name: str, *, depth: int = 0) -> Pixels:
    """Return where the pixels of a dataset are. Modules that are missing in all frames are logged.

    Parameters
    ----------
    name
        Name of file and dataset, for messages.

    Raises
    ------
    SymDenoiseError
        If all pixels of a frame are missing, or sources refer to others without end.
    """
    if depth > _MOST_DEPTH:
        raise SymDenoiseError(
            name, rule=f"virtual sources refer to others more than {_MOST_DEPTH} deep", remedy="name the data file"
        )
    found = Pixels({Path(dataset.file.filename): None})
    if not dataset.is_virtual:
        return found
    shape = dataset.shape
    frames = np.zeros(shape[0] if dataset.ndim > 2 else 1, bool)
    seen = np.zeros(shape[-2:], bool)
    for number, mapping in enumerate(dataset.virtual_sources()):
        rows = range(len(frames))
        if _numbered(mapping.file_name):
            _say_numbers_left_out(dataset, mapping, name)
        else:
            with _source(dataset, mapping, opened=number < _MOST_OPENED) as (node, what, target):
                if node is not None:
                    inner = followed(node, name, depth=depth + 1)
                    found.files |= {target: None, **inner.files}
                    what = f"a file that {mapping.file_name!r} refers to" if inner.gone is not None else ""
                elif not what:
                    found.files[target] = None
                rows = _rows(mapping, dataset, node)
            if what:
                _mask(found, dataset, mapping, name, what)
        frames[rows.start : rows.stop : rows.step] = True
        seen[_region(mapping, shape)] = True
    found.frames = int(np.flatnonzero(frames)[-1]) + 1 if frames.any() else 0
    if not frames[: found.frames].all() or not found.frames:
        empty = np.flatnonzero(~frames)
        raise SymDenoiseError(
            name,
            rule=f"{len(empty)} of its {len(frames)} frames, the first is {empty[0]}, are in none of its files",
            remedy="name the data files, or those of its frames that are there",
        )
    if found.frames < len(frames):
        log.warning("%s: only its first %d of %d frames are in files", name, found.frames, len(frames))
    if not seen.all() and seen.any():
        # The gaps between modules.
        found.gone = ~seen if found.gone is None else found.gone | ~seen
    return found


def missing_source(dataset: Any, rows: slice, *, depth: int = 0) -> str | None:
    """Return in words which source of these rows of a dataset is missing; None if all are there."""
    if not dataset.is_virtual or depth > _MOST_DEPTH:
        return None
    wanted = range(*rows.indices(dataset.shape[0] if dataset.ndim > 2 else 1))
    covered: set[int] = set()
    for mapping in dataset.virtual_sources():
        if _numbered(mapping.file_name):
            return None
        held = _rows(mapping, dataset, None)
        if not any(row in held for row in wanted):
            continue
        with _source(dataset, mapping) as (node, what, _):
            if node is None:
                return what
            held = _rows(mapping, dataset, node)
            covered.update(row for row in wanted if row in held)
            if deeper := missing_source(node, slice(None), depth=depth + 1):
                return deeper
    return None if covered.issuperset(wanted) else "a source that holds it"


def _rows(mapping: Any, dataset: Any, source: Any) -> range:
    """Return which rows of a virtual dataset a mapping holds, of those that its source has if that is given."""
    total = dataset.shape[0] if dataset.ndim > 2 else 1
    if dataset.ndim < 3 or not mapping.vspace.is_regular_hyperslab():
        return range(total)
    start, stride, count, block = (int(each[0]) for each in mapping.vspace.get_regular_hyperslab())
    if count == _UNLIMITED:
        # As many as the source has, each in its place.
        count = -(-(total - start) // stride) if source is None else int(source.shape[0]) // block
    if block == 1:
        return range(start, min(start + stride * (count - 1) + 1, total), stride)
    return range(start, min(start + stride * (count - 1) + block, total))


def _region(mapping: Any, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Return where in (y, x) a mapping has its pixels."""
    if not mapping.vspace.is_regular_hyperslab():
        return (slice(None), slice(None))
    start, stride, count, block = mapping.vspace.get_regular_hyperslab()
    return tuple(
        slice(int(a), min(int(a) + int(s) * (int(n) - 1) + int(b), size) if int(n) != _UNLIMITED else size)
        for a, s, n, b, size in zip(start[-2:], stride[-2:], count[-2:], block[-2:], shape[-2:], strict=True)
    )


def _numbered(name: str) -> bool:
    """Return whether the name of a source stands for a sequence of files, as printf writes their numbers."""
    return "%b" in name.replace("%%", "")


def _say_numbers_left_out(dataset: Any, mapping: Any, name: str) -> None:
    """Log that files of a sequence lie behind one that is missing: HDF5 ends there."""
    folder, pattern = Path(dataset.file.filename).resolve().parent, mapping.file_name.replace("%%", "%")
    last = -1
    while (folder / pattern.replace("%b", str(last + 1))).exists():
        last += 1
    later = [
        number for number in range(last + 2, last + 1000) if (folder / pattern.replace("%b", str(number))).exists()
    ]
    if later:
        log.warning(
            "%s: file %s is missing, so that the frames of %d files after it are left out",
            name,
            pattern.replace("%b", str(last + 1)),
            len(later),
        )


@contextmanager
def _source(dataset: Any, mapping: Any, *, opened: bool = True) -> Iterator[tuple[Any, str, Path]]:
    """Return the source dataset of a part of a virtual one, or None and what is missing; and its file.

    Where the file is not `opened`, it is enough that it is there: nothing is missing then.
    """
    own, name = Path(dataset.file.filename), mapping.file_name.replace("%%", "%")
    what = f"the file {name!r}"
    if name == ".":
        yield dataset.file.get(mapping.dset_name), f"its source {mapping.dset_name!r}", own
        return
    # As HDF5 looks for it; of a folder that was moved, the files lie beside each other still.
    places = [own.parent / name, own.resolve().parent / name, Path(name), own.resolve().parent / Path(name).name]
    target = next((place for place in places if place.exists()), None)
    if target is None or not opened:
        yield None, "" if target else what, target or own
        return
    with open_for_reading(target) as file:
        node = file.get(mapping.dset_name)
        if not isinstance(node, h5py.Dataset):
            node = None
            link = file.get(mapping.dset_name, getlink=True) if mapping.dset_name in file else None
            what = f"the file {link.filename!r}" if isinstance(link, h5py.ExternalLink) else what
        yield node, what, target


def _mask(found: Pixels, dataset: Any, mapping: Any, name: str, what: str) -> None:
    """Mask the module that a missing source holds in every frame; raise if it holds frames."""
    rows = _rows(mapping, dataset, None)
    in_all = dataset.ndim == 2 or len(rows) == dataset.shape[0]
    gone = np.zeros(dataset.shape[-2:], bool) if found.gone is None else found.gone
    gone[_region(mapping, dataset.shape)] = True
    if not in_all or gone.all():
        raise SymDenoiseError(
            name, rule=f"{what} with its frames is missing", remedy="keep the data files beside the master file"
        )
    log.warning("%s: %s is missing; the pixels that it holds are masked in all frames", name, what)
    found.gone = gone
