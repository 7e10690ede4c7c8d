"""Runs that are put together document by document, as people make them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tifffile
from event_model import compose_run
from tiled.client.container import Container

from bluesky_symdenoise import denoised_for
from bluesky_symdenoise.acquisition.live.status import Status

Documents = list[tuple[str, Any]]
HEIGHT, WIDTH = 48, 64


def frames(n: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Frames (n, y, x): each with a sum of its own, and brighter towards the first pixel."""
    y, x = np.ogrid[:height, :width]
    rate = 1 + 8 * np.exp(-((y / 9.0) ** 2) - (x / 20.0) ** 2)
    return np.random.default_rng(1).poisson(rate, (n, height, width)).astype(np.uint16)


def described(
    shape: Sequence[int | None], external: str | None = "STREAM:", dtype: str | None = "<u2"
) -> dict[str, Any]:
    key: dict[str, Any] = {"source": "test", "dtype": "array", "shape": list(shape)}
    return key | ({"external": external} if external else {}) | ({"dtype_numpy": dtype} if dtype else {})


class Made:
    """Documents of a run, put together one by one."""

    def __init__(self, folder: Path, **metadata: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.run, self.folder = compose_run(metadata=metadata), folder
        self.documents: Documents = [("start", self.run.start_doc)]
        self.uid = str(self.run.start_doc["uid"])

    def stream(self, name: str = "primary", **keys: dict[str, Any]) -> Any:
        made = self.run.compose_descriptor(name=name, data_keys=keys)
        self.documents.append(("descriptor", made.descriptor_doc))
        return made

    def hdf5(self, name: str, stack: np.ndarray, key: str = "det", uri: str | None = None) -> Any:
        path = self.folder / f"{self.uid}-{name}.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset("counts", data=stack, chunks=(1, *stack.shape[1:]))
        made = self.run.compose_stream_resource(
            mimetype="application/x-hdf5",
            uri=uri or f"file://localhost{path}",
            data_key=key,
            parameters={"dataset": "counts", "chunk_shape": (1, *stack.shape[1:])},
        )
        self.documents.append(("stream_resource", made.stream_resource_doc))
        return made

    def tiffs(self, stack: np.ndarray, key: str = "det") -> Any:
        for number, image in enumerate(stack):
            tifffile.imwrite(self.folder / f"{self.uid}_{number:04d}.tif", image)
        made = self.run.compose_stream_resource(
            mimetype="multipart/related;type=image/tiff",
            uri=f"file://localhost{self.folder}/",
            data_key=key,
            parameters={"template": self.uid + "_{:04d}.tif", "chunk_shape": (1,), "join_method": "stack"},
        )
        self.documents.append(("stream_resource", made.stream_resource_doc))
        return made

    def row(self, stream: Any, resource: Any, index: int, seq_num: int) -> None:
        """Announce one frame, and its event."""
        place = {"start": index, "stop": index + 1}, {"start": seq_num, "stop": seq_num + 1}
        self.documents.append(("stream_datum", resource.compose_stream_datum(*place, stream.descriptor_doc)))
        self.documents.append(("event", stream.compose_event(data={}, timestamps={}, seq_num=seq_num)))

    def event(self, stream: Any, **data: Any) -> None:
        """An event with these values, whatever they are."""
        doc = stream.compose_event(data=dict.fromkeys(data, 0), timestamps=dict.fromkeys(data, 0.0), validate=False)
        self.documents.append(("event", doc | {"data": data}))

    def ended(self) -> Documents:
        return [*self.documents, ("stop", self.run.compose_stop())]


def fed(callback: Any, documents: Documents, *others: Any) -> Status:
    for name, doc in documents:
        for each in (callback, *others):
            each(name, doc)
    status: Status = callback.close(timeout=120)
    return status


def derived(client: Container, uid: str) -> Any:
    found = denoised_for(client, uid)
    assert found is not None
    return found


def counts_in(run: Any, stream: str = "primary", key: str = "det") -> list[float]:
    return list(np.asarray(run[stream][f"{key}_counts_in"].read()))


def sums(stack: np.ndarray) -> list[float]:
    return [float(image.sum()) for image in stack]
