"""The files of a raw image, as its run in a Tiled catalogue refers to them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tiled.utils import path_from_uri

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.source import HDF5, TIFF, ZARR, Source, stamp

if TYPE_CHECKING:
    from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRun

Document = dict[str, Any]


@dataclass(frozen=True)
class RawFiles:
    """The files of a raw image as they are registered, seen from here or not; attributes as those of `Source`."""

    mimetype: str
    uris: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    dataset: str | None

    def source(self) -> Source:
        """The files as this computer sees them.

        Raises
        ------
        OSError, ValueError
            If it does not.
        """
        paths = tuple(path_from_uri(uri) for uri in self.uris)
        return Source(
            mimetype=self.mimetype,
            paths=paths,
            roots=(Path("/"),) * len(paths),
            stamps=tuple(stamp(path) for path in paths),
            shape=self.shape,
            dtype=self.dtype,
            dataset=self.dataset,
        )


def raw_files(run: BlueskyRun, descriptor: Document, key: str) -> RawFiles:
    """The files of a raw image.

    Raises
    ------
    SymDenoiseError
        If they are of a kind that is not read here.
    """
    name = f"image {descriptor['name']}/{key}"
    array = run[descriptor["name"]][key]
    data, shape = array.data_sources()[0], tuple(array.shape)
    parameters = data.parameters
    plain = not (parameters.get("slice") or parameters.get("squeeze"))
    if (
        data.mimetype not in (HDF5, TIFF, ZARR)
        or not plain
        or shape[1:] != tuple(descriptor["data_keys"][key]["shape"])
    ):
        raise SymDenoiseError(
            f"{name} in {data.mimetype} of shape {shape}",
            rule="lazy runs read HDF5, sequences of TIFF, and zarr as Tiled writes it, unsliced and in rows of events",
            remedy="replay the run instead",
        )
    listed = sorted((a for a in data.assets if a.parameter == "data_uris"), key=lambda asset: asset.num or 0)
    return RawFiles(
        mimetype=data.mimetype,
        uris=tuple(asset.data_uri for asset in listed or data.assets[:1]),
        shape=shape,
        dtype=array.dtype,
        dataset=parameters.get("dataset"),
    )


def raw_source(run: BlueskyRun, descriptor: Document, key: str) -> tuple[Source, list[str]]:
    """The files of a raw image, as this computer sees them, and their URIs as registered.

    Raises
    ------
    SymDenoiseError
        If they are of a kind that is not read lazily, or cannot be seen from here.
    """
    files = raw_files(run, descriptor, key)
    try:
        return files.source(), list(files.uris)
    except (OSError, ValueError) as error:
        raise SymDenoiseError(
            f"image {descriptor['name']}/{key} in {files.uris[0]}",
            rule=f"this computer cannot see its files ({error})",
            remedy="register the run where they can be seen",
        ) from error
