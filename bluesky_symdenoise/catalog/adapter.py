"""Tiled adapter of arrays that are computed when they are read: raw files in, denoised frames out."""

from __future__ import annotations

import builtins
import logging
import math
import os
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import anyio
import numpy as np
from anyio.lowlevel import RunVar
from fastapi import HTTPException
from numpy.typing import NDArray
from tiled.adapters.core import Adapter
from tiled.ndslice import NDBlock, NDSlice
from tiled.server.settings import get_settings
from tiled.storage import FileStorage, get_storage
from tiled.structures.array import ArrayStructure
from tiled.structures.core import StructureFamily
from tiled.structures.data_source import Asset, DataSource
from tiled.utils import ensure_uri, path_from_uri

from bluesky_symdenoise.catalog.lazy.cache import RAW_FRAMES, RAW_HELD, Pair, RowCache
from bluesky_symdenoise.catalog.lazy.models import INFERENCE, served_denoiser
from bluesky_symdenoise.catalog.lazy.parameters import EXPOSURE, MASK, SOURCE, LazyImage
from bluesky_symdenoise.derived.lending import lent_by
from bluesky_symdenoise.derived.stated_readout import from_recipe, map_sha256s
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.source import Source, Stamp, stamp
from bluesky_symdenoise.recipe import array_sha256

log = logging.getLogger("bluesky_symdenoise")

#: Default size in bytes of the server's cache of denoised frames, intensity and sigma.
CACHE_VARIABLE = "SYMDENOISE_CACHE_BYTES"
CACHE_BYTES = 2**29
#: Size in bytes of its cache of raw frames that rows lend to each other, so that rows read in order share them.
RAW_CACHE_VARIABLE = "SYMDENOISE_RAW_CACHE_BYTES"
RAW_CACHE_BYTES = 2**28
#: Number of reads of lazy arrays that may hold a thread and a result at a time; others wait without either.
READERS = 8

_READERS: RunVar[anyio.CapacityLimiter] = RunVar("symdenoise_readers")
_UNPROCESSABLE, _BAD_REQUEST = 422, 400


class DenoisedArrayAdapter(Adapter[ArrayStructure]):  # type: ignore[misc]
    """Intensity or sigma of the frames of a raw image, denoised when they are read; no pixel is stored.

    Whole frames are denoised and kept in memory for a while; the requested slice is cut out afterwards. Any error in
    the source, the parameters or the model gives a response 4xx with one line.
    """

    structure_family = StructureFamily.array

    def __init__(
        self, image: LazyImage, source: Source, arrays: Mapping[str, Path], structure: ArrayStructure, node: Any
    ):
        super().__init__(structure, metadata=node.metadata_, specs=node.specs)
        self._image, self._source, self._arrays = image, source, arrays

    @classmethod
    def from_catalog(
        cls, data_source: DataSource[ArrayStructure], node: Any, /, **parameters: Any
    ) -> DenoisedArrayAdapter:
        """Make the adapter from what was registered; Tiled makes one for every request."""
        try:
            return cls(*_parsed(data_source, parameters), data_source.structure, node)
        except SymDenoiseError as error:
            raise HTTPException(_UNPROCESSABLE, str(error)) from error

    async def read(self, slice: NDSlice = NDSlice(...)) -> NDArray[np.float32]:  # noqa: B008
        """Return what a numpy array of this shape gives for the slice."""
        return await self._in_turn([range(size) for size in self._structure.shape], slice)

    async def read_block(self, block: NDBlock, slice: NDSlice = NDSlice(...)) -> NDArray[np.float32]:  # noqa: B008
        """Return a slice of a block of the structure's chunks."""
        return await self._in_turn(
            [
                range(*part.indices(size))
                for part, size in zip(
                    block.slice_from_chunks(self._structure.chunks), self._structure.shape, strict=True
                )
            ],
            slice,
        )

    async def _in_turn(self, window: list[range], slice: NDSlice) -> NDArray[np.float32]:
        try:
            limiter = _READERS.get()
        except LookupError:
            limiter = anyio.CapacityLimiter(READERS)
            _READERS.set(limiter)
        return await anyio.to_thread.run_sync(partial(self._answer, window, slice), limiter=limiter)

    def _answer(self, window: list[range], slice: NDSlice) -> NDArray[np.float32]:
        try:
            return self._cut(window, slice)
        except HTTPException:
            raise
        except SymDenoiseError as error:
            raise HTTPException(_UNPROCESSABLE, str(error)) from error
        except Exception as error:
            # Tiled's client repeats a request that ends with 500 ten times, each time running the model again.
            log.exception("a lazy array could not be read")
            what = f"the frame could not be denoised ({type(error).__name__}); the server's log says why"
            raise HTTPException(_UNPROCESSABLE, what) from error

    def _cut(self, window: list[range], slice: NDSlice) -> NDArray[np.float32]:
        try:
            index = (slice or NDSlice(...)).expand_for_shape(tuple(len(part) for part in window))
        except (IndexError, ValueError) as error:
            raise HTTPException(_BAD_REQUEST, f"slice: {error}") from error
        asked = [part[each] for part, each in zip(window, index, strict=True)]
        rows, pixels = asked[0], tuple(_indices(part) for part in asked[1:])
        lines = [rows] if isinstance(rows, int) else rows
        shape = tuple(len(part) for part in asked[1:] if isinstance(part, range))
        self._refuse_too_many(len(lines), shape)
        out = np.empty((len(lines), *shape), np.float32)
        if out.size:
            for number, row in enumerate(lines):
                out[number] = self._row(row)[pixels]
        return np.asarray(out[0]) if isinstance(rows, int) else out

    def _refuse_too_many(self, rows: int, shape: tuple[int, ...]) -> None:
        """Refuse a request that is too large before anything is computed: Tiled checks the size only afterwards."""
        limit = get_settings().response_bytesize_limit
        whole = math.prod(self._source.row_shape) * 4
        if rows * whole > limit and math.prod(shape):
            raise HTTPException(
                _BAD_REQUEST,
                f"{rows} frames of {whole} bytes: a request may have {limit} bytes of frames denoised; "
                f"ask for at most {limit // whole} frames at a time",
            )

    def _row(self, row: int) -> NDArray[np.float32]:
        if row >= self._source.shape[0]:  # The raw run has no frame for this event.
            return np.full(self._source.row_shape, np.nan, np.float32)
        image = self._image
        key = (
            self._source.identity(row, [lender.row for lender in image.lenders(row)]),
            image.recipe.sha256,
            (image.symmetry, row < image.first_row, image.rows, image.scan),
            (image.recipe.model_sha256, image.device, image.threads),
            self._source.dtype,
        )
        pair = _cache().get(key, partial(self._computed, row))
        return pair.intensity if image.quantity == "intensity" else pair.sigma

    def _computed(self, row: int) -> Pair:
        image = self._image
        recipe = image.recipe
        denoiser = served_denoiser(
            image.model,
            recipe.model_sha256,
            algorithm=recipe.algorithm,
            device=image.device,
            threads=image.threads,
        )
        shape = self._source.row_shape[-2:]
        mask = _array(self._arrays, MASK, recipe.mask_sha256, shape, "|b1")
        exposure = _array(self._arrays, EXPOSURE, recipe.exposure_sha256, shape, "<f8")
        readout = from_recipe(recipe.readout, lambda name, sha256: _array(self._arrays, name, sha256, shape, "<f8"))
        with INFERENCE:
            lenders = image.lenders(row)
            counts = self._raw(row) if lenders else self._source.read(row)
            # A row that was to lend and cannot be read now may be there later: nothing is served without it.
            lent = lent_by(lenders, self._raw)
            found = image.row(denoiser, counts, row, mask=mask, exposure=exposure, readout=readout, lent=lent)
        for array in (found.intensity, found.sigma):
            array.flags.writeable = False
        return Pair(found.intensity, found.sigma)

    def _raw(self, row: int) -> NDArray[Any]:
        """Return a raw row; those that were read recently are kept, because rows next to each other borrow them."""

        def read() -> NDArray[Any]:
            counts = self._source.read(row)
            counts.flags.writeable = False
            return counts

        return _raw_cache().get((self._source.identity(row), self._source.dtype), read)


def _parsed(data_source: Any, parameters: Mapping[str, Any]) -> tuple[LazyImage, Source, dict[str, Path]]:
    image = LazyImage.from_dict(parameters)
    structure = data_source.structure
    expected = (image.shape[1:], np.dtype(np.float32))
    if (tuple(structure.shape[1:]), structure.data_type.to_numpy_dtype()) != expected:
        raise SymDenoiseError(
            f"array of shape {tuple(structure.shape)}",
            rule=f"its rows must be float32 of shape {image.shape[1:]}, as the raw image's",
            remedy="register the run again",
        )
    assets = sorted((a for a in data_source.assets if a.parameter == SOURCE), key=lambda asset: asset.num or 0)
    rooted = [_rooted(asset) for asset in assets]
    if not rooted or len(rooted) != len(image.stamps):
        raise SymDenoiseError(
            f"{len(rooted)} files",
            rule=f"{len(image.stamps)} were registered, and one at least is needed",
            remedy="register the run again",
        )
    source = Source(
        mimetype=image.mimetype,
        paths=tuple(path for path, _ in rooted),
        roots=tuple(root for _, root in rooted),
        stamps=image.stamps,
        shape=image.shape,
        dtype=np.dtype(image.dtype),
        dataset=image.dataset,
    )
    named = {MASK, EXPOSURE, *map_sha256s(image.recipe.readout)}
    arrays = {a.parameter: _resolved(a) for a in data_source.assets if a.parameter in named}
    return image, source, arrays


def _rooted(asset: Asset) -> tuple[Path, Path]:
    """Return the path of an asset and the folder of the server's readable storage that holds it, links followed."""
    refused = SymDenoiseError(
        f"asset {asset.data_uri[:200]!r}",
        rule="it is not a file in the server's readable storage",
        remedy="register files that lie there",
    )
    try:
        path = path_from_uri(asset.data_uri) if asset.data_uri.startswith("file://") else None
    except ValueError:
        path = None
    if path is None or not path.is_absolute() or ".." in path.parts or "\0" in str(path):
        raise refused
    for folder in path.parents:
        try:
            storage = get_storage(ensure_uri(folder))
        except KeyError:
            continue
        if isinstance(storage, FileStorage):
            return path, folder.resolve()
    raise refused


def _resolved(asset: Asset) -> Path:
    path, root = _rooted(asset)
    try:
        resolved = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise SymDenoiseError(f"file {path.name}", rule="it is gone", remedy="put it back where it was") from error
    if not resolved.is_relative_to(root):
        raise SymDenoiseError(
            f"file {path.name}",
            rule="it refers to a place outside the server's readable storage",
            remedy="keep the file, not a link to it, where the server may read",
        )
    return resolved


def _array(
    arrays: Mapping[str, Path], name: str, sha256: str | None, shape: tuple[int, ...], dtype: str
) -> NDArray[Any] | None:
    """Return mask or exposure of the recipe, verified by its sha256."""
    if sha256 is None:
        return None
    path = arrays.get(name)
    if path is None:
        raise SymDenoiseError(
            name, rule="the recipe has one, but the data source has no file for it", remedy="register the run again"
        )
    return _loaded(path, stamp(path), sha256, shape, dtype)


@lru_cache(maxsize=16)
def _loaded(path: Path, _: Stamp, sha256: str, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    refused = SymDenoiseError(
        f"file {path.name}", rule=f"it is not the array of shape {shape} that was registered", remedy="restore it"
    )
    try:
        with path.open("rb") as file:
            major, _minor = np.lib.format.read_magic(file)
            reader = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}[major]
            found, fortran, of = reader(file)
            if found != shape or of != np.dtype(dtype) or fortran:
                raise refused
            array = np.frombuffer(file.read(math.prod(shape) * of.itemsize), of).reshape(shape)
    except (OSError, ValueError, KeyError) as error:
        raise refused from error
    if array_sha256(array) != sha256:
        raise refused
    return array


@lru_cache(maxsize=1)
def _cache() -> RowCache[Pair]:
    return RowCache(_limit(CACHE_VARIABLE, CACHE_BYTES))


@lru_cache(maxsize=1)
def _raw_cache() -> RowCache[NDArray[Any]]:
    return RowCache(_limit(RAW_CACHE_VARIABLE, RAW_CACHE_BYTES), frames=RAW_FRAMES, size=RAW_HELD)


def _limit(variable: str, default: int) -> int:
    given = os.environ.get(variable, str(default))
    if not given.isdecimal():
        raise SymDenoiseError(f"{variable}={given}", rule="it must be a number of bytes", remedy="set it to one")
    return int(given)


def _indices(part: range | int) -> builtins.slice | int:
    """Return a range as the slice that selects it."""
    if isinstance(part, int):
        return part
    return builtins.slice(part.start, part.stop if part.stop >= 0 else None, part.step)
