"""Image files without further conventions: NumPy, CBF, and what else fabio reads."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path

import fabio
import numpy as np
from fabio.cbfimage import DATA_TYPES as CBF_DATA_TYPES

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.format import Array, Format, Part, sliced, stack_shape


def _npy_parts(path: Path, dataset: str | None) -> list[Part]:
    array = np.load(path, mmap_mode="r")
    shape = stack_shape(array.shape, array.dtype, f"{path}")
    return [Part(path, shape, array.dtype, lambda: nullcontext(sliced(np.load(path, mmap_mode="r"))))]


def _cbf_parts(path: Path, dataset: str | None) -> list[Part]:
    """Read the header only: a scan has thousands of CBF files, and unpacking one takes a while."""
    image = fabio.openheader(str(path))
    dtype = np.dtype(CBF_DATA_TYPES.get(image.header.get("X-Binary-Element-Type"), "int32"))
    shape = stack_shape(image.shape, dtype, f"{path}")
    return [Part(path, shape, dtype, lambda: nullcontext(partial(_fabio_read, path)))]


def _fabio_parts(path: Path, dataset: str | None) -> list[Part]:
    with fabio.open(str(path)) as image:
        if image.incomplete_file:
            raise SymDenoiseError(
                f"{path}", rule="the file ends in the middle of a frame", remedy="copy or write it again"
            )
        dtype = np.dtype(image.dtype)
        stored = (image.nframes, *image.shape) if image.nframes > 1 else image.shape
        shape = stack_shape(stored, dtype, f"{path}")
    return [Part(path, shape, dtype, lambda: nullcontext(partial(_fabio_read, path)))]


def _fabio_read(path: Path, start: int, stop: int) -> Array:
    # Open the file for each read: an open multi-frame EDF keeps all frames that were read.
    with fabio.open(str(path)) as image:
        return np.stack([image.get_frame(i).data for i in range(start, stop)])


NPY = Format(suffixes=(".npy",), parts=_npy_parts)
CBF = Format(suffixes=(".cbf",), parts=_cbf_parts)
#: Format of files that no other format claims: fabio detects what they are.
FABIO = Format(parts=_fabio_parts)
