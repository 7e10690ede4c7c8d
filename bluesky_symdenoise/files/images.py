"""Image files without further conventions: NumPy, TIFF, CBF, EDF and others that fabio reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import fabio
import numpy as np
import tifffile
from fabio.cbfimage import DATA_TYPES as CBF_DATA_TYPES

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.part import Array, Part, ReadFrames, stack_shape


def image_part(path: Path) -> Part:
    """Return the frames of an image file, whose format follows from the ending of its name."""
    match path.suffix.lower():
        case ".npy":
            return _npy_part(path)
        case ".tif" | ".tiff":
            return _tiff_part(path)
        case ".cbf":
            return _cbf_part(path)
        case _:
            return _fabio_part(path)


def _npy_part(path: Path) -> Part:
    array = np.load(path, mmap_mode="r")
    shape = stack_shape(array.shape, array.dtype, f"{path}")
    return Part(path, shape, array.dtype, lambda: nullcontext(_slicing(np.load(path, mmap_mode="r"))))


def _slicing(array: Array) -> ReadFrames:
    frames = array.reshape(-1, *array.shape[-2:])
    return lambda start, stop: frames[start:stop]


def _tiff_part(path: Path) -> Part:
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        colour = page.samplesperpixel != 1 and page.planarconfig != tifffile.PLANARCONFIG.SEPARATE
        if colour or page.photometric == tifffile.PHOTOMETRIC.PALETTE:
            raise SymDenoiseError(
                f"{path}", rule="colour images hold no counts", remedy="give the detector's own files"
            )
        # tifffile writes three frames as the planes of one image, unless instructed otherwise.
        planes = page.samplesperpixel != 1 and len(tiff.pages) == 1
        stored = tiff.series[0].shape if planes or _stored_as_one_block(tiff) else (len(tiff.pages), *page.shape)
        return Part(path, stack_shape(stored, page.dtype, f"{path}"), page.dtype, lambda: _tiff_frames(path))


def _stored_as_one_block(tiff: Any) -> bool:
    """Return whether one page represents all frames, as ImageJ writes files above 4 GB."""
    series = tiff.series[0]
    return len(tiff.pages) == 1 and series.ndim > 2 and series.dataoffset is not None


@contextmanager
def _tiff_frames(path: Path) -> Iterator[ReadFrames]:
    with tifffile.TiffFile(path) as tiff:
        if _stored_as_one_block(tiff):
            yield _slicing(tifffile.memmap(path, mode="r"))
        elif tiff.pages.first.samplesperpixel != 1:
            yield _slicing(tiff.pages.first.asarray())
        else:
            yield lambda start, stop: np.stack([tiff.pages[i].asarray() for i in range(start, stop)])


def _cbf_part(path: Path) -> Part:
    """Read the header only: a scan has thousands of CBF files, and unpacking one takes a while."""
    image = fabio.openheader(str(path))
    dtype = np.dtype(CBF_DATA_TYPES.get(image.header.get("X-Binary-Element-Type"), "int32"))
    shape = stack_shape(image.shape, dtype, f"{path}")
    return Part(path, shape, dtype, lambda: nullcontext(partial(_fabio_read, path)))


def _fabio_part(path: Path) -> Part:
    with fabio.open(str(path)) as image:
        if image.incomplete_file:
            raise SymDenoiseError(
                f"{path}", rule="the file ends in the middle of a frame", remedy="copy or write it again"
            )
        dtype = np.dtype(image.dtype)
        stored = (image.nframes, *image.shape) if image.nframes > 1 else image.shape
        shape = stack_shape(stored, dtype, f"{path}")
    return Part(path, shape, dtype, lambda: nullcontext(partial(_fabio_read, path)))


def _fabio_read(path: Path, start: int, stop: int) -> Array:
    # Opened for each read: an open multi-frame EDF keeps every frame that was ever read.
    with fabio.open(str(path)) as image:
        return np.stack([image.get_frame(i).data for i in range(start, stop)])
