"""Plain detector files in, NeXus-style HDF5 out."""

from __future__ import annotations

import glob
import json
import os
import posixpath
import re
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import fabio
import h5py
import hdf5plugin
import numpy as np
import tifffile
from fabio.cbfimage import DATA_TYPES as CBF_DATA_TYPES
from numpy.typing import NDArray

from bluesky_symdenoise import __version__
from bluesky_symdenoise.errors import SymDenoiseError

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["FrameStack", "NexusWriter", "open_frames"]

Array = NDArray[Any]
ReadFrames = Callable[[int, int], Array]
T = TypeVar("T")

PIXEL_UNITS = ("", "pixel", "pixels", "px")


@dataclass(frozen=True)
class _Part:
    """Consecutive frames of one dataset of one file, what the file says about them, and how to open it."""

    path: Path
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    open: Callable[[], AbstractContextManager[ReadFrames]]
    linked: tuple[Path, ...] = ()
    mask: NDArray[np.bool_] | None = None
    beam_center: tuple[float, float] | None = None
    symmetry: str | None = None


def open_frames(source: str | Path | Sequence[str | Path]) -> FrameStack:
    """Open detector files as one lazy sequence of frames.

    Reads HDF5 (``counts``; Eiger and NeXus with linked, virtual and compressed data; any file with a single
    image dataset), TIFF, ``.npy``, and through fabio CBF, EDF and the rest. Nothing but headers and masks is
    read before a frame is asked for.

    Parameters
    ----------
    source
        A file, a glob pattern, or a list of both; ``file.h5::group/counts`` chooses an HDF5 dataset. Files
        are read in natural order (``frame_2`` before ``frame_10``), whatever the order of the list.

    Raises
    ------
    SymDenoiseError
        If nothing matches, a file cannot be read or is empty, the images are coloured, the frames differ in
        shape, no or several datasets could be meant, or a mask does not fit.
    """
    sources = [source] if isinstance(source, str | Path) else list(source)
    files = sorted((file for each in sources for file in _matching(str(each))), key=_natural)
    if not files:
        raise SymDenoiseError("an empty list", rule="there is no file to open", remedy="name at least one")
    return FrameStack([part for path, dataset in files for part in _parts(path, dataset)])


class FrameStack:
    """A lazy sequence of equally shaped frames from one or more files, of which at most one is open.

    ``stack[i]`` is a frame (H, W), ``stack[i:j]`` an array (k, H, W). Several threads may read one stack.
    `close` releases the open file; a later read opens it again.

    Attributes
    ----------
    shape
        (n, H, W).
    dtype
        Of every frame, in native byte order.
    mask
        Pixels (H, W) that any of the files calls bad; None where no file has a mask.
    beam_center
        (y, x) in pixels, or None.
    symmetry
        Point group that the files state, or None.
    sources
        The files, and those that they link to.
    """

    def __init__(self, parts: Sequence[_Part]) -> None:
        first = parts[0]
        for part in parts:
            if part.shape[1:] != first.shape[1:]:
                raise SymDenoiseError(
                    f"{part.path} with frames of shape {part.shape[1:]}",
                    rule=f"all frames must have the same shape, {first.path} has {first.shape[1:]}",
                    remedy="open the files of each shape on their own",
                )
        files = dict.fromkeys(part.path for part in parts)
        linked = dict.fromkeys(path for part in parts for path in part.linked)
        if twice := files.keys() & linked.keys():
            raise SymDenoiseError(
                f"{min(twice)}",
                rule="its frames would be read twice, for another file of the list links to it",
                remedy="name the master files only, for instance '*_master.h5'",
            )
        masks = [part.mask for part in parts if part.mask is not None]
        self._parts = tuple(parts)
        self._starts = list(accumulate((part.shape[0] for part in parts), initial=0))
        self._lock = threading.Lock()
        self._open_file = ExitStack()
        self._open_part: tuple[int, ReadFrames] | None = None
        self.shape = (self._starts[-1], *first.shape[1:])
        self.dtype: np.dtype[Any] = np.result_type(*(part.dtype for part in parts)).newbyteorder("=")
        self.mask: NDArray[np.bool_] | None = np.any(masks, axis=0) if masks else None
        self.beam_center = _agreed("beam_center", ((part.path, part.beam_center) for part in parts))
        self.symmetry = _agreed("symmetry", ((part.path, part.symmetry) for part in parts))
        self.sources = (*files, *linked)

    def __len__(self) -> int:
        return self.shape[0]

    @overload
    def __getitem__(self, index: int) -> Array: ...

    @overload
    def __getitem__(self, index: slice) -> Array: ...

    def __getitem__(self, index: int | slice) -> Array:
        if isinstance(index, slice):
            wanted = range(len(self))[index]
            if wanted.step == 1:
                return self._read(wanted.start, max(wanted.start, wanted.stop))
            return np.stack([self[i] for i in wanted]) if wanted else self._read(0, 0)
        i = range(len(self))[index]
        frame: Array = self._read(i, i + 1)[0]
        return frame

    def __iter__(self) -> Iterator[Array]:
        for i in range(len(self)):
            yield self[i]

    def __enter__(self) -> FrameStack:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the file that is open."""
        with self._lock:
            self._release()

    def _release(self) -> None:
        self._open_part = None
        self._open_file.close()

    def _read(self, start: int, stop: int) -> Array:
        frames = np.empty((stop - start, *self.shape[1:]), self.dtype)
        with self._lock:
            done = 0
            while done < len(frames):
                k = bisect_right(self._starts, start + done) - 1
                part = self._parts[k]
                first = start + done - self._starts[k]
                last = min(first + len(frames) - done, part.shape[0])
                with _readable(part.path, f"frames {first} to {last - 1} of "):
                    block = self._reader(k)(first, last)
                if block.shape != (last - first, *self.shape[1:]):
                    raise SymDenoiseError(
                        f"frames {first} to {last - 1} of {part.path} with shape {block.shape[1:]}",
                        rule=f"all frames must have the same shape, the first has {self.shape[1:]}",
                        remedy="open the frames of each shape on their own",
                    )
                frames[done : done + len(block)] = block
                done += len(block)
        return frames

    def _reader(self, k: int) -> ReadFrames:
        if self._open_part is None or self._open_part[0] != k:
            self._release()
            self._open_part = k, self._open_file.enter_context(self._parts[k].open())
        return self._open_part[1]


def _agreed(name: str, stated: Iterable[tuple[Path, T | None]]) -> T | None:
    """Return the one value that the files state, None where none does."""
    first: tuple[Path, T] | None = None
    for path, value in stated:
        if value is None:
            continue
        if first is None:
            first = path, value
        elif value != first[1]:
            raise SymDenoiseError(
                f"{path} with {name} {value}",
                rule=f"the files of one stack must agree, {first[0]} has {first[1]}",
                remedy="open them on their own",
            )
    return first[1] if first else None


# ---------------------------------------------------------------- which files


def _matching(source: str) -> list[tuple[Path, str | None]]:
    """Return the files, with the dataset to read from each, that a name or pattern stands for."""
    name, _, dataset = (source, "", "") if Path(source).exists() else source.partition("::")
    if Path(name).is_dir():
        raise SymDenoiseError(name, rule="is a folder", remedy=f"give a pattern such as '{name}/*.cbf'")
    names = [name] if Path(name).exists() else glob.glob(name, recursive=True)
    files = [(Path(name), dataset or None) for name in names if Path(name).is_file()]
    if not files:
        raise SymDenoiseError(name, rule="no file matches", remedy="check the name or the pattern")
    return files


def _natural(file: tuple[Path, str | None]) -> list[str | int]:
    return [int(text) if text.isdecimal() else text for text in re.split(r"([0-9]+)", str(file[0]))]


def _parts(path: Path, dataset: str | None) -> list[_Part]:
    with _readable(path):
        if h5py.is_hdf5(path):
            return _hdf5_parts(path, dataset)
        if dataset is not None:
            raise SymDenoiseError(
                f"{path}::{dataset}", rule="only HDF5 files have datasets", remedy=f"write {path}"
            )
        if path.stat().st_size == 0:
            raise SymDenoiseError(f"{path}", rule="the file is empty", remedy="copy or write it again")
        match path.suffix.lower():
            case ".npy":
                return [_npy_part(path)]
            case ".tif" | ".tiff":
                return [_tiff_part(path)]
            case ".cbf":
                return [_cbf_part(path)]
            case _:
                return [_fabio_part(path)]


@contextmanager
def _readable(path: Path, what: str = "") -> Iterator[None]:
    """Turn whatever a library raises about a bad file into one line that names the file."""
    try:
        yield
    except SymDenoiseError:
        raise
    except Exception as error:  # fabio raises nearly anything, AttributeError and AssertionError included
        raise SymDenoiseError(
            f"{what}{path}",
            rule=f"cannot be read ({type(error).__name__}: {error})",
            remedy="check that it is complete and of a format that h5py, tifffile, numpy or fabio reads",
        ) from error


def _stack_shape(shape: Sequence[int], dtype: np.dtype[Any], what: str) -> tuple[int, int, int]:
    """Return (n, H, W) for the shape of stored frames: (H, W), (n, H, W) or (n, 1, H, W)."""
    if len(shape) in (3, 4) and shape[-1] in (3, 4):
        raise SymDenoiseError(
            f"{what} of shape {tuple(shape)}",
            rule="colour images hold no counts",
            remedy="give the detector's own files",
        )
    match tuple(shape):
        case (int(h), int(w)):
            n = 1
        case (int(n), int(h), int(w)) | (int(n), 1, int(h), int(w)):
            pass
        case _:
            raise SymDenoiseError(
                f"{what} of shape {tuple(shape)}",
                rule="frames are stored as (y, x), (frame, y, x) or (frame, 1, y, x)",
                remedy="name another dataset or convert the file",
            )
    if dtype.kind not in "buif":
        raise SymDenoiseError(
            f"{what} of type {dtype}", rule="pixels must be real numbers", remedy="name another dataset"
        )
    if n * h * w == 0:
        raise SymDenoiseError(
            f"{what} of shape {tuple(shape)}", rule="holds no frame", remedy="check that data was written"
        )
    return n, h, w


# ---------------------------------------------------------------- HDF5


def _hdf5_parts(path: Path, name: str | None) -> list[_Part]:
    with _open_hdf5(path) as file:
        return [_hdf5_part(file, path, each) for each in _dataset_names(file, path, name)]


def _open_hdf5(path: Path) -> Any:
    """Open read-only, as SWMR reader where the file is still being written.

    Not always as SWMR reader: within a process, HDF5 refuses to open a file in both ways at a time.
    """
    try:
        return h5py.File(path, "r")
    except OSError:
        return h5py.File(path, "r", swmr=True)


def _dataset_names(file: Any, path: Path, name: str | None) -> list[str]:
    """Return the dataset that was asked for, or those that hold the frames by the conventions we know."""
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
    if isinstance(data, h5py.Group):
        numbered = [key for key in data if re.fullmatch(r"data_[0-9]+", key)]
        if numbered:
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
        if isinstance(node, h5py.Dataset) and "mask" not in posixpath.basename(name):
            image = node.ndim in (2, 3, 4) and min(node.shape[-2:]) > 1 and node.dtype.kind in "uif"
            if image:
                found[name] = node.shape

    file.visititems(look)
    return found


def _nexus_signal(file: Any) -> str | None:
    """Follow the NeXus attributes ``default`` and ``signal`` from the root to the dataset to plot."""
    node = file
    while isinstance(node, h5py.Group) and "default" in node.attrs:
        node = node.get(_text(node.attrs["default"]))
    if isinstance(node, h5py.Group) and "signal" in node.attrs:
        signal = node.get(_text(node.attrs["signal"]))
        if isinstance(signal, h5py.Dataset) and signal.ndim >= 2:
            return str(signal.name)
    return None


def _get(file: Any, name: str, path: Path) -> Any:
    """Return a node of the file or None, and say so if a link leads nowhere."""
    node = file.get(name)
    if node is None and name in file:
        link = file.get(name, getlink=True)
        raise SymDenoiseError(
            f"{path}::{name}",
            rule=f"the linked file {getattr(link, 'filename', '')!r} cannot be opened",
            remedy="keep the data files beside the master file",
        )
    return node


def _hdf5_part(file: Any, path: Path, name: str) -> _Part:
    dataset = _get(file, name, path)
    shape = _stack_shape(dataset.shape, dataset.dtype, f"{path}::{name}")
    group = file[posixpath.dirname(name) or "/"]
    detector = "/" + name.strip("/").split("/")[0] + "/instrument/detector"
    masks = (
        f"{group.name}/mask",
        f"{detector}/detectorSpecific/pixel_mask",
        f"{detector}/pixel_mask",
    )
    mask = next((node for each in masks if (node := _get(file, each, path)) is not None), None)
    attrs = [node.attrs for node in (dataset, group, file)]
    center = next((each["beam_center"] for each in attrs if "beam_center" in each), None)
    symmetry = next((_text(each["symmetry"]) for each in attrs if "symmetry" in each), None)
    return _Part(
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
    with _open_hdf5(path) as file:
        dataset = file[name]
        match dataset.ndim:
            case 2:
                yield lambda start, stop: dataset[()][np.newaxis]
            case 3:
                yield lambda start, stop: dataset[start:stop]
            case _:
                yield lambda start, stop: dataset[start:stop, 0]


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
    """Return NeXus ``beam_center_y, beam_center_x`` where both are constant and in pixels."""
    center = []
    for axis in "yx":
        node = _get(file, f"{detector}/beam_center_{axis}", path)
        if not isinstance(node, h5py.Dataset) or _text(node.attrs.get("units", "")) not in PIXEL_UNITS:
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


# ---------------------------------------------------------------- other formats


def _npy_part(path: Path) -> _Part:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    return _Part(
        path, _stack_shape(array.shape, array.dtype, f"{path}"), array.dtype, lambda: _npy_frames(path)
    )


@contextmanager
def _npy_frames(path: Path) -> Iterator[ReadFrames]:
    yield _slicing(np.load(path, mmap_mode="r", allow_pickle=False))


def _slicing(array: Array) -> ReadFrames:
    frames = array.reshape(-1, *array.shape[-2:])
    return lambda start, stop: frames[start:stop]


def _tiff_part(path: Path) -> _Part:
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        if page.samplesperpixel != 1 or page.photometric == tifffile.PHOTOMETRIC.PALETTE:
            raise SymDenoiseError(
                f"{path}", rule="colour images hold no counts", remedy="give the detector's own files"
            )
        dtype = page.dtype
        if _stored_as_one_block(tiff):
            shape = _stack_shape(tiff.series[0].shape, dtype, f"{path}")
        else:
            shape = _stack_shape((len(tiff.pages), *page.shape), dtype, f"{path}")
    return _Part(path, shape, dtype, lambda: _tiff_frames(path))


def _stored_as_one_block(tiff: Any) -> bool:
    """Return whether one page stands for all frames, as ImageJ does above 4 GB."""
    series = tiff.series[0]
    return len(tiff.pages) == 1 and series.ndim > 2 and series.dataoffset is not None


@contextmanager
def _tiff_frames(path: Path) -> Iterator[ReadFrames]:
    with tifffile.TiffFile(path) as tiff:
        if _stored_as_one_block(tiff):
            yield _slicing(tifffile.memmap(path, mode="r"))
        else:
            yield lambda start, stop: np.stack([tiff.pages[i].asarray() for i in range(start, stop)])


def _cbf_part(path: Path) -> _Part:
    """Read the header only: a scan has thousands of CBF files, and unpacking one takes a while."""
    image = fabio.openheader(str(path))
    dtype = np.dtype(CBF_DATA_TYPES.get(image.header.get("X-Binary-Element-Type"), "int32"))
    return _Part(path, _stack_shape(image.shape, dtype, f"{path}"), dtype, lambda: _fabio_frames(path))


def _fabio_part(path: Path) -> _Part:
    with fabio.open(str(path)) as image:
        if image.incomplete_file:
            raise SymDenoiseError(
                f"{path}", rule="the file ends in the middle of a frame", remedy="copy or write it again"
            )
        dtype = np.dtype(image.dtype)
        shape = (image.nframes, *image.shape) if image.nframes > 1 else image.shape
        return _Part(path, _stack_shape(shape, dtype, f"{path}"), dtype, lambda: _fabio_frames(path))


@contextmanager
def _fabio_frames(path: Path) -> Iterator[ReadFrames]:
    def read(start: int, stop: int) -> Array:
        # Opened for each read: an open multi-frame EDF keeps every frame that was ever read.
        with fabio.open(str(path)) as image:
            return np.stack([image.get_frame(i).data for i in range(start, stop)])

    yield read


# ---------------------------------------------------------------- writing


class NexusWriter:
    """Write denoised frames to a NeXus-style HDF5 file, a few frames at a time.

    ``/entry/data`` (NXdata) holds ``intensity`` and ``intensity_errors`` (one standard deviation), one
    bitshuffle/zstd chunk per frame; ``/entry/process`` (NXprocess) says how they came to be. The file appears
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
        The files that the frames come from; none of them is ever overwritten.
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
                raise SymDenoiseError(
                    f"{self.path}", rule="a source is never overwritten", remedy="give another name"
                )
            if not overwrite:
                raise SymDenoiseError(
                    f"{self.path}", rule="the file exists", remedy="give another name or ask to overwrite it"
                )
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        self._file = h5py.File(self._temporary, "w")
        self._lay_out(date, [str(Path(source).absolute()) for source in sources])

    def append(self, frames: xr.Dataset) -> None:
        """Write ``intensity`` and ``sigma`` of one or more frames, dims (frame, y, x).

        The attributes are stored as JSON, once for as long as they stay the same. A ``frame`` coordinate is
        kept; without it, frames are counted from zero.
        """
        intensity = frames["intensity"].transpose("frame", "y", "x")
        sigma = frames["sigma"].transpose("frame", "y", "x")
        if intensity.shape[1:] != self._frame_shape:
            raise SymDenoiseError(
                f"frames of shape {intensity.shape[1:]}",
                rule=f"all frames of {self.path} must have shape {self._frame_shape}",
                remedy="write the frames of each shape to a file of their own",
            )
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
        self._frames = stop
        parameters = json.dumps(frames.attrs, default=_plain)
        if parameters != self._parameters:
            name = "parameters" if self._parameters is None else f"parameters_from_{start}"
            note = _group(self._file["entry/process"], name, "NXnote")
            note["type"] = "application/json"
            note["data"] = parameters
            self._parameters = parameters

    def __enter__(self) -> NexusWriter:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *rest: object) -> None:
        self._file.close()
        if exc_type is not None or not self._frames:
            self._temporary.unlink()
        if exc_type is None:
            if not self._frames:
                raise SymDenoiseError(
                    f"{self.path}", rule="no frame was written", remedy="append at least one frame"
                )
            os.replace(self._temporary, self.path)

    def _lay_out(self, date: str, sources: Sequence[str]) -> None:
        height, width = self._frame_shape
        self._file.attrs.update(NX_class="NXroot", default="entry", creator="bluesky-symdenoise")
        entry = _group(self._file, "entry", "NXentry")
        entry.attrs["default"] = "data"
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
            data[name] = np.arange(size)
            data[name].attrs["units"] = "pixel"
        process = _group(entry, "process", "NXprocess")
        process["program"] = "bluesky-symdenoise"
        process["version"] = __version__
        process["date"] = date
        process.create_dataset("sources", data=list(sources), dtype=h5py.string_dtype())


def _group(parent: Any, name: str, nx_class: str) -> Any:
    group = parent.create_group(name)
    group.attrs["NX_class"] = nx_class
    return group


def _plain(value: object) -> object:
    """Return a value that JSON knows for one that provenance may hold."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"provenance holds a {type(value).__name__}, which JSON cannot store")
