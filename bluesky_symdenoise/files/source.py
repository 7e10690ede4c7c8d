"""Reading of one row of a stored image from untrusted files: sizes and places are checked first."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tifffile
from numpy.typing import NDArray

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.inflation import checked_chunk, checked_deflate, checked_zstd
from bluesky_symdenoise.files.rows import open_for_reading

HDF5, TIFF, ZARR = "application/x-hdf5", "multipart/related;type=image/tiff", "application/x-zarr"
#: Pixels of the largest row, and bytes of the largest compressed block, that are read.
MAX_PIXELS, MAX_BLOCK = 2**25, 2**28
_UNCOMPRESSED, _TIFF_DEFLATE = 1, (8, 32946)
#: Files that a virtual dataset may refer to, and how deep.
_MAX_SOURCES, _MAX_DEPTH = 10_000, 4

#: Time of the last change in ns, and bytes.
Stamp = tuple[int, int]


@dataclass(frozen=True)
class Source:
    """Rows of an image in HDF5 files, a sequence of TIFF files, or a zarr array.

    Attributes
    ----------
    mimetype
        Media type as Tiled names it.
    paths
        Files in the order of their rows; one folder for zarr.
    roots
        Folders, resolved, that the files and all they refer to must lie in; one for each path.
    stamps
        Stamp of each path when it was registered.
    shape, dtype
        Shape and dtype of all rows (row, ..., y, x), as registered.
    dataset
        Name of the dataset in HDF5 files.
    """

    mimetype: str
    paths: tuple[Path, ...]
    roots: tuple[Path, ...]
    stamps: tuple[Stamp, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    dataset: str | None = None

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape (..., y, x) of one row."""
        return self.shape[1:]

    def identity(self, row: int) -> tuple[Any, ...]:
        """Return what distinguishes this row from any other row of any source: its files as they are now.

        Raises
        ------
        SymDenoiseError
            If a file is gone, has changed since it was registered, or a link leads elsewhere.
        """
        return tuple(self._checked(number) for number in self._files(row)), self.dataset, self.shape, row

    def read(self, row: int) -> NDArray[Any]:
        """Return one row (..., y, x).

        Raises
        ------
        SymDenoiseError
            If it cannot be read, or its files are not what was registered.
        """
        read = {HDF5: self._read_hdf5, TIFF: self._read_tiff, ZARR: self._read_zarr}[self.mimetype]
        try:
            return read(row)
        except FileNotFoundError as error:
            raise _gone(self.paths[0]) from error
        except (OSError, KeyError, ValueError, IndexError, TypeError, RuntimeError, ArithmeticError) as error:
            if isinstance(error, SymDenoiseError):
                raise
            raise SymDenoiseError(
                f"row {row} of {self.paths[0].name}",
                rule=f"it cannot be read ({str(error).splitlines()[0] if str(error) else type(error).__name__})",
                remedy="check the raw run's files",
            ) from error

    def _files(self, row: int) -> Sequence[int]:
        """Return the numbers of the files that hold a row."""
        if len(self.paths) == 1:
            return (0,)
        if self.mimetype == TIFF or len(self.paths) == self.shape[0]:
            each = len(self.paths) // self.shape[0]
            return range(row * each, (row + 1) * each)
        return [number for number, _ in self._pieces(row)]

    def _checked(self, number: int) -> tuple[str, Stamp]:
        path, root = self.paths[number], self.roots[number]
        try:
            resolved = path.resolve(strict=True)
            found = stamp(resolved)
        except (OSError, RuntimeError) as error:
            raise _gone(path) from error
        _inside(resolved, root, path.name)
        if found != self.stamps[number]:
            raise SymDenoiseError(
                f"file {path.name}",
                rule="it has changed since the run was registered",
                remedy="delete the derived run and register it again",
            )
        return str(resolved), found

    def _pieces(self, row: int) -> list[tuple[int, slice]]:
        """Return which part of which file holds a row, if files follow each other along their first axis."""
        first = _leading(self._checked(0), self.dataset)
        per_row = math.prod(self.row_shape[: len(self.row_shape) - (len(first) - 1)])
        start, stop, pieces, offset = row * per_row, (row + 1) * per_row, [], 0
        for number in range(len(self.paths)):
            length = _leading(self._checked(number), self.dataset)[0]
            low, high = max(start - offset, 0), min(stop - offset, length)
            if low < high:
                pieces.append((number, slice(low, high)))
            offset += length
            if offset >= stop:
                return pieces
        raise SymDenoiseError(
            f"row {row}", rule=f"the {len(self.paths)} files end before it", remedy="check the raw run's files"
        )

    def _read_hdf5(self, row: int) -> NDArray[Any]:
        if len(self.paths) > 1:
            pieces = self._pieces(row)
        else:
            ndim = len(_leading(self._checked(0), self.dataset))
            per_row = math.prod(self.row_shape[: len(self.row_shape) - (ndim - 1)])
            pieces = [(0, slice(row * per_row, (row + 1) * per_row))]
        parts = []
        for number, part in pieces:
            path = Path(self._checked(number)[0])
            with open_for_reading(path) as file:
                dataset = file[self.dataset]
                _check_dataset(dataset, part, self.roots[number])
                tail = self.row_shape[len(self.row_shape) - (dataset.ndim - 1) :]
                if dataset.shape[1:] != tail or dataset.dtype != self.dtype or part.stop > dataset.shape[0]:
                    raise self._wrong_shape(dataset.shape, dataset.dtype)
                parts.append(dataset[part])
        return np.concatenate(parts).reshape(self.row_shape)

    def _read_tiff(self, row: int) -> NDArray[Any]:
        files = self._files(row)
        each = math.prod(self.row_shape) // max(len(files), 1)
        parts = []
        for number in files:
            path = Path(self._checked(number)[0])
            with tifffile.TiffFile(path) as file:
                series = file.series[0]
                # The same number of pixels in another order is another image.
                other = series.shape[-2:] != self.row_shape[-2:]
                if series.dtype != self.dtype or math.prod(series.shape) != each or other:
                    raise self._wrong_shape(series.shape, series.dtype)
                for page in series.pages:
                    _check_page(page, path)
                parts.append(series.asarray(maxworkers=1).ravel())
        return np.concatenate(parts).reshape(self.row_shape)

    def _read_zarr(self, row: int) -> NDArray[Any]:
        import zarr
        from zarr.codecs import BytesCodec, ZstdCodec

        path = Path(self._checked(0)[0])
        array: Any = zarr.open_array(path, mode="r", zarr_format=3)
        covers = array.ndim == len(self.shape) and all(a >= b for a, b in zip(array.shape, self.shape, strict=True))
        if not covers or array.dtype != self.dtype:
            raise self._wrong_shape(array.shape, array.dtype)
        codecs = array.metadata.codecs
        declared = math.prod(array.chunks) * array.dtype.itemsize
        if declared > MAX_BLOCK or not all(isinstance(codec, BytesCodec | ZstdCodec) for codec in codecs):
            raise SymDenoiseError(
                f"zarr array {path.name}",
                rule="its chunks are too large, or their compression is not one that Tiled uses",
                remedy="replay the run",
            )
        packed = any(isinstance(codec, ZstdCodec) for codec in codecs)
        wanted = (slice(row, row + 1), *(slice(0, size) for size in self.row_shape))
        for chunk in _chunks(wanted, array.chunks):
            file = path / array.metadata.encode_chunk_key(
                tuple(a // b for a, b in zip(chunk, array.chunks, strict=True))
            )
            if not file.exists():
                continue  # Zarr leaves out what is all zeros.
            _inside(file.resolve(), self.roots[0], path.name)
            with file.open("rb") as opened:
                if packed:
                    checked_zstd(opened.read(32), declared)
        return np.asarray(array[wanted])[0]

    def _wrong_shape(self, shape: Sequence[int], dtype: Any) -> SymDenoiseError:
        return SymDenoiseError(
            f"file {self.paths[0].name} with {dtype} of shape {tuple(shape)}",
            rule=f"{self.dtype} in rows of {self.row_shape} were registered",
            remedy="delete the derived run and register it again",
        )


def stamp(path: Path) -> Stamp:
    """Return last change in ns and size in bytes of a file, or of all files in a folder."""
    if not path.is_dir():
        status = path.stat()
        return status.st_mtime_ns, status.st_size
    newest, size = 0, 0
    for folder, _, names in os.walk(path):
        for name in names:
            status = os.lstat(os.path.join(folder, name))
            newest, size = max(newest, status.st_mtime_ns), size + status.st_size
    return newest, size


def _inside(resolved: Path, root: Path, name: str) -> None:
    if not resolved.is_relative_to(root):
        raise SymDenoiseError(
            f"file {name}",
            rule="it refers to a place outside the server's readable storage",
            remedy="keep the files, not links to them, where the server may read",
        )


def _gone(path: Path) -> SymDenoiseError:
    return SymDenoiseError(f"file {path.name}", rule="it is gone", remedy="put it back where it was, unchanged")


@lru_cache(maxsize=4096)
def _leading(file: tuple[str, Stamp], dataset: str) -> tuple[int, ...]:
    """Return the shape of a dataset in a file as stamped."""
    with open_for_reading(Path(file[0])) as opened:
        shape: tuple[int, ...] = opened[dataset].shape
    return shape


def _chunks(wanted: Sequence[slice], chunks: Sequence[int]) -> product[tuple[int, ...]]:
    """Yield the offsets of all chunks that a selection touches."""
    return product(
        *(range(part.start // size * size, part.stop, size) for part, size in zip(wanted, chunks, strict=True))
    )


def _check_dataset(dataset: Any, part: slice, root: Path, depth: int = 0) -> None:
    """Refuse a dataset that reads from other files, or that is large although its file is small."""
    if not isinstance(dataset, h5py.Dataset):
        raise SymDenoiseError(f"HDF5 object {dataset.name}", rule="it is not a dataset", remedy="check the raw run")
    own = Path(dataset.file.filename).resolve()
    _inside(own, root, own.name)
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
        # What is missing, HDF5 would look for in the working directory, and else fill in.
        path = own if mapping.file_name == "." else (own.parent / mapping.file_name).resolve(strict=True)
        _inside(path, root, own.name)
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
    for offset in _chunks(wanted, dataset.chunks):
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


def _check_page(page: Any, path: Path) -> None:
    if page.compression not in (_UNCOMPRESSED, *_TIFF_DEFLATE):
        raise SymDenoiseError(
            f"file {path.name}",
            rule=f"its compression ({page.compression}) has no limit on the decompressed size",
            remedy="replay the run, or write TIFF uncompressed or with deflate",
        )
    if page.compression in _TIFF_DEFLATE:
        with path.open("rb") as file:
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
                file.seek(offset)
                checked_deflate(file.read(count), page.nbytes)
