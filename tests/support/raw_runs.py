"""Raw runs: written into a Tiled server, or as documents."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from bluesky_tiled_plugins import TiledWriter
from event_model import compose_run
from tiled.client.container import Container


def write_run(
    container: Container,
    folder: Path,
    images: Mapping[str, np.ndarray],
    *,
    scalars: Mapping[str, Sequence[Any]] | None = None,
    times: Sequence[float] | None = None,
    start: Mapping[str, Any] | None = None,
    stop: Mapping[str, Any] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    events: bool = True,
    ended: bool = True,
) -> str:
    """Write stacks of frames (n, H, W) as external HDF5, and scalars in events; return the run's uid."""
    # All events in one request; a run that does not end would keep them back.
    writer = TiledWriter(container) if ended else TiledWriter(container, batch_size=1)
    metadata = dict(start or {})
    run = compose_run(uid=metadata.pop("uid", None), time=metadata.pop("time", None), metadata=metadata)
    writer("start", run.start_doc)
    n = len(next(iter(images.values())))
    times = times if times is not None else [run.start_doc["time"] + i for i in range(n)]
    scalars = scalars or {}
    keys: dict[str, Any] = {
        key: {
            "source": "test",
            "dtype": "array",
            "dtype_numpy": stack.dtype.str,
            "shape": [1, *stack.shape[1:]],
            "external": "STREAM:",
            "dims": list((dims or {}).get(key, [f"{key}_dim{i}" for i in range(3)])),
        }
        for key, stack in images.items()
    }
    for key, column in scalars.items():
        keys[key] = {
            "source": "test",
            "dtype": "string" if isinstance(column[0], str) else "number",
            "shape": [],
        }
    descriptor = run.compose_descriptor(name="primary", data_keys=keys, time=times[0])
    writer("descriptor", descriptor.descriptor_doc)
    path = folder / f"{run.start_doc['uid']}.h5"
    with h5py.File(path, "w") as file:
        for key, stack in images.items():
            file.create_dataset(key, data=stack[:, np.newaxis], chunks=(1, 1, *stack.shape[1:]))
    for key, stack in images.items():
        resource = run.compose_stream_resource(
            mimetype="application/x-hdf5",
            uri=f"file://localhost{path}",
            data_key=key,
            parameters={"dataset": key, "chunk_shape": (1, 1, *stack.shape[1:])},
        )
        writer("stream_resource", resource.stream_resource_doc)
        indices = {"start": 0, "stop": n}
        seq_nums = {"start": 1, "stop": n + 1}
        writer("stream_datum", resource.compose_stream_datum(indices, seq_nums, descriptor.descriptor_doc))
    if events:
        for i, moment in enumerate(times):
            data = {key: column[i] for key, column in scalars.items()}
            stamps = dict.fromkeys(data, time.time())
            event = descriptor.compose_event(data=data, timestamps=stamps, seq_num=i + 1, time=moment)
            writer("event", event)
    if ended:
        writer("stop", {**run.compose_stop(), **(stop or {})})
    uid: str = run.start_doc["uid"]
    return uid


def step_scan(
    folder: Path,
    counts: np.ndarray,
    *,
    scalars: Mapping[str, Sequence[float]] | None = None,
    metadata: Mapping[str, Any] | None = None,
    events: bool = True,
    ended: bool = True,
) -> Iterator[tuple[str, Any]]:
    """Documents of a scan of frames (n, y, x), as a RunEngine emits them: one stream_datum and one event for each."""
    run = compose_run(metadata=dict(metadata or {}))
    folder.mkdir(exist_ok=True)
    path = folder / f"{run.start_doc['uid']}.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("counts", data=counts, chunks=(1, *counts.shape[1:]))
    yield "start", run.start_doc
    shape = [1, *counts.shape[1:]]
    image = {"source": "t", "dtype": "array", "dtype_numpy": counts.dtype.str, "shape": shape, "external": "STREAM:"}
    number = {"source": "t", "dtype": "number", "shape": []}
    keys = {"det": image, **dict.fromkeys(scalars or {}, number)}
    stream = run.compose_descriptor(name="primary", data_keys=keys)
    yield "descriptor", stream.descriptor_doc
    resource = run.compose_stream_resource(
        mimetype="application/x-hdf5",
        uri=f"file://localhost{path}",
        data_key="det",
        parameters={"dataset": "counts", "chunk_shape": tuple(shape)},
    )
    yield "stream_resource", resource.stream_resource_doc
    for row in range(len(counts)):
        place = {"start": row, "stop": row + 1}, {"start": row + 1, "stop": row + 2}
        yield "stream_datum", resource.compose_stream_datum(*place, stream.descriptor_doc)
        if events:
            data = {name: column[row] for name, column in (scalars or {}).items()}
            yield "event", stream.compose_event(data=data, timestamps=dict.fromkeys(data, 0.0), seq_num=row + 1)
    if ended:
        yield "stop", run.compose_stop()


def written(
    client: Container, documents: Iterable[tuple[str, Any]], callback: Callable[[str, Any], Any] = lambda *_: None
) -> Any:
    """The raw run of these documents, which a callback sees too."""
    writer = TiledWriter(client["raw"])
    uid = ""
    for name, doc in documents:
        uid = doc["uid"] if name == "start" else uid
        writer(name, doc)
        callback(name, doc)
    return client["raw"][uid]
