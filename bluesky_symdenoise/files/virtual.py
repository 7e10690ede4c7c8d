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


@dataclass
class Pixels:
    """Location of the pixels of a dataset.

    Attributes
    ----------
    files
        The files that hold them.
    gone
        (y, x), True in modules whose files are missing; None if none is.
    """

    files: dict[Path, None]
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
    for mapping in dataset.virtual_sources() if dataset.is_virtual else ():
        if "%b" in mapping.file_name:
            continue
        with _source(dataset, mapping) as (node, what, opened):
            if node is not None:
                inner = followed(node, name, depth=depth + 1)
                found.files |= {opened: None, **inner.files}
                what = f"a file that {mapping.file_name!r} refers to" if inner.gone is not None else ""
        if what:
            _mask(found, dataset, mapping, name, what)
    return found


def missing_source(dataset: Any, rows: slice, *, depth: int = 0) -> str | None:
    """Return in words which source of these rows of a dataset is missing; None if all are there."""
    if not dataset.is_virtual or depth > _MOST_DEPTH:
        return None
    for mapping in dataset.virtual_sources():
        first, last = (int(bound[0]) for bound in mapping.vspace.get_select_bounds())
        outside = dataset.ndim > 2 and (first >= (rows.stop or first + 1) or last < (rows.start or 0))
        if "%b" in mapping.file_name or outside:
            continue
        with _source(dataset, mapping) as (node, what, _):
            if node is None:
                return what
            if deeper := missing_source(node, slice(None), depth=depth + 1):
                return deeper
    return None


@contextmanager
def _source(dataset: Any, mapping: Any) -> Iterator[tuple[Any, str, Path]]:
    """Return the source dataset of a part of a virtual one, or None and what is missing; and the opened file."""
    own, what = Path(dataset.file.filename), f"the file {mapping.file_name!r}"
    if mapping.file_name == ".":
        yield dataset.file.get(mapping.dset_name), f"its source {mapping.dset_name!r}", own
        return
    places = (own.parent / mapping.file_name, Path(mapping.file_name))
    target = next((place for place in places if place.exists()), None)
    if target is None:
        yield None, what, own
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
    first, last = mapping.vspace.get_select_bounds()
    in_all = dataset.ndim == 2 or (first[0] == 0 and last[0] >= dataset.shape[0] - 1)
    gone = np.zeros(dataset.shape[-2:], bool) if found.gone is None else found.gone
    gone[first[-2] : last[-2] + 1, first[-1] : last[-1] + 1] = True
    if not in_all or gone.all():
        raise SymDenoiseError(
            name, rule=f"{what} with its frames is missing", remedy="keep the data files beside the master file"
        )
    log.warning("%s: %s is missing; the pixels that it holds are masked in all frames", name, what)
    found.gone = gone
