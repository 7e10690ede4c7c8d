"""Test, before a scan, whether the server can read the files that will be written."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import h5py
import httpx
import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.acquisition.deliver.delivery import is_away
from bluesky_symdenoise.acquisition.deliver.outlet import refusal
from bluesky_symdenoise.acquisition.deliver.spool import spool_folder
from bluesky_symdenoise.acquisition.request.request import Work
from bluesky_symdenoise.errors import SymDenoiseError

if TYPE_CHECKING:
    from tiled.structures.data_source import DataSource

log = logging.getLogger("bluesky_symdenoise")


def check_server(work: Work) -> None:
    """Write a small array the way frames are going to be written, read it back and remove it.

    A server that does not answer now is no error: it may do so later.

    Raises
    ------
    SymDenoiseError
        If the client may not write, or the server cannot see the files.
    """
    from tiled.client.utils import ClientError, retry_context

    container, folder = work.container, work.folder
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    key = f"symdenoise-probe-{uuid4()}"
    path = spool_folder(folder) / f"{key}.h5"
    base = container.base if hasattr(container, "base") else container
    try:
        node = _written(base, values, key, path if work.frames == "files" else None)
        # Do not use `node.read()`: for a server that cannot see the file, it repeats the request for a minute.
        link = node.item["links"]["full"]
        answer = container.context.http_client.get(link, headers={"Accept": "application/octet-stream"})
        # The server resets the connection after it has answered 500: a second attempt opens a new one.
        for attempt in retry_context():
            with attempt:
                container.context.http_client.delete(node.uri, params={"external_only": False, "recursive": True})
    except httpx.HTTPError as error:
        if is_away(error):
            log.warning("Tiled at %s does not answer (%s): denoised runs wait on disk", container.uri, error)
            return
        if isinstance(error, ClientError):
            raise refusal(error, key, container.uri) from error
        raise
    finally:
        path.unlink(missing_ok=True)
    if answer.is_error or answer.content != values.tobytes():
        raise SymDenoiseError(
            f"folder {folder}",
            rule=f"the server cannot read what is written there (status {answer.status_code})",
            remedy="add it to the server's readable_storage and mount it there, or pass frames='http'",
        )


def _written(base: Any, values: NDArray[np.float32], key: str, path: Path | None) -> Any:
    if path is None:
        return base.write_array(values, key=key)
    from tiled.structures.core import StructureFamily

    with h5py.File(path, "w") as file:
        file["probe"] = values
    return base.new(
        structure_family=StructureFamily.array, data_sources=[_source(path, values)], key=key, metadata={}, specs=[]
    )


def _source(path: Path, values: NDArray[np.float32]) -> DataSource:
    from tiled.structures.array import ArrayStructure
    from tiled.structures.core import StructureFamily
    from tiled.structures.data_source import Asset, DataSource, Management

    return DataSource(
        structure_family=StructureFamily.array,
        structure=ArrayStructure.from_array(values),
        mimetype="application/x-hdf5",
        parameters={"dataset": "probe"},
        management=Management.external,
        assets=[Asset(data_uri=f"file://localhost{path.as_posix()}", is_directory=False, parameter="data_uris", num=0)],
    )
