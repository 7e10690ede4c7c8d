"""Rows of untrusted HDF5 files: what a dataset refers to, and how large it becomes, is checked before it is read."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.checks import MAX_BLOCK, MAX_PIXELS, chunk_offsets, refuse_outside
from bluesky_symdenoise.files.inflation import checked_chunk
from bluesky_symdenoise.files.opened import open_for_reading

if TYPE_CHECKING:
    from bluesky_symdenoise.files.source import Source

#: Most files that a virtual dataset may refer to, and deepest nesting.
_MAX_SOURCES, _MAX_DEPTH = 10_000, 4


def stored_row(source: Source, row: int) -> NDArray[Any]:
    """Return one row (..., y, x), which may be divided between files that follow each other."""
    parts = []
    for number, part in source.pieces(row):
        with open_for_reading(source.path(number)) as file:
            dataset = file[source.dataset]
            _check_dataset(dataset, part, source.roots[number])
            tail = source.row_shape[len(source.row_shape) - (dataset.ndim - 1) :]
            if dataset.shape[1:] != tail or dataset.dtype != source.dtype or part.stop > dataset.shape[0]:
                raise source.wrong_shape(dataset.shape, dataset.dtype)
            parts.append(dataset[part])
    return np.concatenate(parts).reshape(source.row_shape)


def _check_dataset(dataset: Any, part: slice, root: Path, depth: int = 0) -> None:
    """Refuse a dataset that reads from other files, or that is large although its file is small."""
    if not isinstance(dataset, h5py.Dataset):
        raise SymDenoiseError(f"HDF5 object {dataset.name}", rule="it is not a dataset", remedy="check the raw run")
    own = Path(dataset.file.filename).resolve()
    refuse_outside(own, root, own.name)
    if dataset.external:
        raise SymDenoiseError(
            f"dataset {dataset.name}",
            rule="its pixels are in other files that are not HDF5",
            remedy="replay the run",
        )
    if math.prod(dataset.shape[1:]) * (part.stop - part.start) > MAX_PIXELS:
        raise SymDenoiseError(
            f"dataset {dataset.name} of shape {dataset.shape}",
            rule=f"a row has at most {MAX_PIXELS} pixels",
            remedy="replay the run in parts",
        )
    if dataset.is_virtual:
        _check_virtual(dataset, part, own, root, depth)
    elif dataset.chunks:
        _check_chunks(dataset, part)


def _check_virtual(dataset: Any, part: slice, own: Path, root: Path, depth: int) -> None:
    mappings = dataset.virtual_sources()
    if depth >= _MAX_DEPTH or len(mappings) > _MAX_SOURCES:
        raise SymDenoiseError(
            f"virtual dataset {dataset.name}", rule="it refers to too many files", remedy="replay the run"
        )
    for mapping in mappings:
        first, last = (int(bound[0]) for bound in mapping.vspace.get_select_bounds())
        if first >= part.stop or last < part.start:
            continue
        # HDF5 would look for a missing file in the working directory, and otherwise return fill values.
        path = own if mapping.file_name == "." else (own.parent / mapping.file_name).resolve(strict=True)
        refuse_outside(path, root, own.name)
        with open_for_reading(path) as file:
            source = file[mapping.dset_name]
            whole = mapping.src_space.get_select_type() == h5py.h5s.SEL_ALL
            bounds = ((0,), (source.shape[0] - 1,)) if whole else mapping.src_space.get_select_bounds()
            low, high = (int(bound[0]) for bound in bounds)
            if high - low == last - first:
                low, high = low + max(0, part.start - first), low + min(last, part.stop - 1) - first
            _check_dataset(source, slice(low, high + 1), root, depth + 1)


def _check_chunks(dataset: Any, part: slice) -> None:
    declared = math.prod(dataset.chunks) * dataset.dtype.itemsize
    if declared > MAX_BLOCK:
        raise SymDenoiseError(
            f"dataset {dataset.name} with chunks {dataset.chunks}",
            rule=f"a chunk has at most {MAX_BLOCK} bytes",
            remedy="replay the run",
        )
    plist = dataset.id.get_create_plist()
    filters = [plist.get_filter(number) for number in range(plist.get_nfilters())]
    if not filters:
        return
    wanted = (part, *(slice(0, size) for size in dataset.shape[1:]))
    for offset in chunk_offsets(wanted, dataset.chunks):
        if offset[0] >= dataset.shape[0]:
            continue
        info = dataset.id.get_chunk_info_by_coord(offset)
        if info.byte_offset is None:
            continue
        used = [(each[0], each[2]) for bit, each in enumerate(filters) if not info.filter_mask >> bit & 1]
        checked_chunk(partial(_direct, dataset, offset), info.size, declared, used)


def _direct(dataset: Any, offset: tuple[int, ...]) -> bytes:
    raw: bytes = dataset.id.read_direct_chunk(offset)[1]
    return raw
