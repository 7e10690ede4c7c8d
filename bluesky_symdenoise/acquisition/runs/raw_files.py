"""Files of a raw image, as its run in a Tiled catalogue refers to them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tiled.utils import path_from_uri

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.formats import by_mimetype, stored_mimetypes
from bluesky_symdenoise.files.source import Source, stamp

if TYPE_CHECKING:
    from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRun

log = logging.getLogger("bluesky_symdenoise")

Document = dict[str, Any]


@dataclass(frozen=True)
class RawFiles:
    """Files of a raw image as registered, readable from here or not; attributes as those of `Source`."""

    mimetype: str
    uris: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    dataset: str | None

    def source(self) -> Source:
        """Return the files as this computer sees them.

        Raises
        ------
        OSError, ValueError
            If this computer cannot read them.
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
    """Return the files of a raw image.

    Raises
    ------
    SymDenoiseError
        If the files are of a kind that is not read here.
    """
    name = f"image {descriptor['name']}/{key}"
    array = run[descriptor["name"]][key]
    data, shape = array.data_sources()[0], tuple(array.shape)
    parameters = data.parameters
    plain = not (parameters.get("slice") or parameters.get("squeeze"))
    if (
        data.mimetype not in stored_mimetypes()
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
    """Return the files of a raw image as this computer sees them, and their URIs as registered.

    Raises
    ------
    SymDenoiseError
        If the files are of a kind that is not read lazily, or cannot be seen from here.
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


def refuse_other_rows(
    name: str, array: Any, sources: Iterable[Any], used: Mapping[tuple[str, str | None], Collection[str]]
) -> None:
    """Raise SymDenoiseError if rows of a raw image, as the server gives them, are not those that were announced.

    Tiled stores which files an image has, but not which of their rows were announced, and it reads all of them from
    the first on, in the shape that the data key states. The files themselves decide, if this computer can see them.

    Parameters
    ----------
    name
        Name of the image, ``stream/key``.
    array
        Client of the image.
    sources
        Its data sources.
    used
        Names of the images that each file, with the dataset in it, belongs to.
    """
    for source in sources:
        dataset = source.parameters.get("dataset")
        uris = [asset.data_uri for asset in source.assets]
        if len(set(uris)) < len(uris):
            raise other_rows(
                f"image {name}", f"file {max(uris, key=uris.count)} was announced more than once: it was written anew"
            )
        for uri in uris:
            others = ", ".join(sorted(set(used.get((uri, dataset), ())) - {name}))
            if others:
                raise other_rows(
                    f"image {name}",
                    f"it shares file {uri} with {others}, and Tiled does not keep which rows belong to which image",
                )
        of = by_mimetype(source.mimetype)
        if of and of.shape and not any(source.parameters.get(each) for each in ("slice", "squeeze")):
            _refuse_other_shapes(name, tuple(array.shape), uris, dataset, of.shape)


def _refuse_other_shapes(
    name: str,
    shape: tuple[int, ...],
    uris: Sequence[str],
    dataset: str | None,
    stored: Callable[[Path, str | None], tuple[int, ...]],
) -> None:
    own = []
    for uri in uris:
        try:
            own.append(stored(path_from_uri(uri), dataset))
        except (OSError, KeyError, ValueError) as error:
            # Only the server needs to read these files.
            log.debug("the file of %s cannot be seen from here: %s", name, error)
            return
    for each in own:
        if each[-2:] != shape[-2:]:
            raise other_rows(
                f"image {name} of shape {shape}",
                f"its file holds images of shape {each[-2:]}, and Tiled gives their pixels in another order",
            )
    if len(own) > 1:
        rows = sum(math.prod(each[:-2]) for each in own)
        if rows != math.prod(shape[:-2]):
            raise other_rows(
                f"image {name}",
                f"its {len(own)} files hold {rows} frames and {math.prod(shape[:-2])} were announced; Tiled does not "
                "keep which",
            )


def other_rows(value: str, rule: str) -> SymDenoiseError:
    """Return the error that the server's rows of an image are not those that were announced, for this reason."""
    return SymDenoiseError(
        value,
        rule=rule,
        remedy="replay the run from its documents, as a backup of TiledWriter has them, or denoise the file with "
        "`symdenoise denoise`",
    )
