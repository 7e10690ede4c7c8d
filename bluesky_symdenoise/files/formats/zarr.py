"""Zarr as Tiled's own writer makes it, which is where frames inside events are stored."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.checks import MAX_BLOCK, chunk_offsets, refuse_outside
from bluesky_symdenoise.files.format import Array, Format
from bluesky_symdenoise.files.inflation import checked_zstd

if TYPE_CHECKING:
    from bluesky_symdenoise.files.source import Source


def _stored(source: Source, row: int) -> Array:
    import zarr
    from zarr.codecs import BytesCodec, ZstdCodec

    path = source.path(0)
    array: Any = zarr.open_array(path, mode="r", zarr_format=3)
    covers = array.ndim == len(source.shape) and all(a >= b for a, b in zip(array.shape, source.shape, strict=True))
    if not covers or array.dtype != source.dtype:
        raise source.wrong_shape(array.shape, array.dtype)
    codecs = array.metadata.codecs
    declared = math.prod(array.chunks) * array.dtype.itemsize
    if declared > MAX_BLOCK or not all(isinstance(codec, BytesCodec | ZstdCodec) for codec in codecs):
        raise SymDenoiseError(
            f"zarr array {path.name}",
            rule="its chunks are too large, or their compression is not one that Tiled uses",
            remedy="replay the run",
        )
    packed = any(isinstance(codec, ZstdCodec) for codec in codecs)
    wanted = (slice(row, row + 1), *(slice(0, size) for size in source.row_shape))
    for chunk in chunk_offsets(wanted, array.chunks):
        file = path / array.metadata.encode_chunk_key(tuple(a // b for a, b in zip(chunk, array.chunks, strict=True)))
        if not file.exists():
            continue  # Zarr does not write chunks that are all zeros.
        refuse_outside(file.resolve(), source.roots[0], path.name)
        with file.open("rb") as opened:
            if packed:
                checked_zstd(opened.read(32), declared)
    return np.asarray(array[wanted])[0]


ZARR = Format(mimetype="application/x-zarr", stored=_stored, folder=True)
