"""TIFF: plain files, one file or several to a row of a run, and files that are not trusted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.format import Array, Format, Part, ReadFrames, sliced, stack_shape
from bluesky_symdenoise.files.inflation import checked_deflate

if TYPE_CHECKING:
    from bluesky_symdenoise.files.source import Source

_UNCOMPRESSED, _DEFLATE = 1, (8, 32946)


def _parts(path: Path, dataset: str | None) -> list[Part]:
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        colour = page.samplesperpixel != 1 and page.planarconfig != tifffile.PLANARCONFIG.SEPARATE
        if colour or page.photometric == tifffile.PHOTOMETRIC.PALETTE:
            raise SymDenoiseError(
                f"{path}", rule="colour images hold no counts", remedy="give the detector's own files"
            )
        # By default, tifffile writes three frames as the planes of one image.
        planes = page.samplesperpixel != 1 and len(tiff.pages) == 1
        stored = tiff.series[0].shape if planes or _stored_as_one_block(tiff) else (len(tiff.pages), *page.shape)
        return [Part(path, stack_shape(stored, page.dtype, f"{path}"), page.dtype, lambda: _frames(path))]


def _stored_as_one_block(tiff: Any) -> bool:
    """Return whether one page represents all frames, as ImageJ writes files above 4 GB."""
    series = tiff.series[0]
    return len(tiff.pages) == 1 and series.ndim > 2 and series.dataoffset is not None


@contextmanager
def _frames(path: Path) -> Iterator[ReadFrames]:
    with tifffile.TiffFile(path) as tiff:
        if _stored_as_one_block(tiff):
            yield sliced(tifffile.memmap(path, mode="r"))
        elif tiff.pages.first.samplesperpixel != 1:
            yield sliced(tiff.pages.first.asarray())
        else:
            yield lambda start, stop: np.stack([tiff.pages[i].asarray() for i in range(start, stop)])


def _joined(paths: Sequence[Path]) -> Array:
    parts = [tifffile.imread(path) for path in paths]
    if len(parts) == 1:
        return np.asarray(parts[0])
    return np.concatenate([part.reshape(-1, *part.shape[-2:]) for part in parts])


def _stored(source: Source, row: int) -> Array:
    files = source.files(row)
    each = math.prod(source.row_shape) // max(len(files), 1)
    parts = []
    for number in files:
        path = source.path(number)
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            # The same number of pixels in another order is a different image.
            other = series.shape[-2:] != source.row_shape[-2:]
            if series.dtype != source.dtype or math.prod(series.shape) != each or other:
                raise source.wrong_shape(series.shape, series.dtype)
            for page in series.pages:
                _check_page(page, path)
            parts.append(series.asarray(maxworkers=1).ravel())
    return np.concatenate(parts).reshape(source.row_shape)


def _check_page(page: Any, path: Path) -> None:
    if page.compression not in (_UNCOMPRESSED, *_DEFLATE):
        raise SymDenoiseError(
            f"file {path.name}",
            rule=f"its compression ({page.compression}) has no limit on the decompressed size",
            remedy="replay the run, or write TIFF uncompressed or with deflate",
        )
    if page.compression in _DEFLATE:
        with path.open("rb") as file:
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
                file.seek(offset)
                checked_deflate(file.read(count), page.nbytes)


TIFF = Format(
    suffixes=(".tif", ".tiff"),
    mimetype="multipart/related;type=image/tiff",
    parts=_parts,
    joined=_joined,
    stored=_stored,
)
