"""Scans of a ring before a callback: their documents, and what is derived from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from event_model import compose_run
from tiled.client.container import Container

from bluesky_symdenoise.acquisition.live.status import Status
from bluesky_symdenoise.catalog.find.query import denoised_for

Documents = list[tuple[str, dict[str, Any]]]
HEIGHT, WIDTH = 64, 80
CENTER = (31.5, 39.5)


def rings(n: int = 3) -> np.ndarray:
    """Frames (n, y, x) of Poisson counts of a ring with two-fold texture about `CENTER`."""
    y, x = np.ogrid[:HEIGHT, :WIDTH]
    radius = np.hypot(y - CENTER[0], x - CENTER[1])
    azimuth = np.arctan2(y - CENTER[0], x - CENTER[1])
    rate = 0.3 + 9 * np.exp(-((radius - 18) ** 2) / 20) * (1 + np.cos(2 * azimuth))
    counts = np.random.default_rng(7).poisson(rate, (n, HEIGHT, WIDTH)).astype(np.uint16)
    counts.flags.writeable = False
    return counts


@dataclass(frozen=True)
class Scan:
    """A finished scan: its documents, and the status of the callback that saw them."""

    documents: Documents
    status: Status

    @property
    def uid(self) -> str:
        return str(self.documents[0][1]["uid"])

    def of(self, name: str) -> list[dict[str, Any]]:
        return [doc for each, doc in self.documents if each == name]


def composed(
    images: np.ndarray,
    path: Path,
    *,
    bulk: bool = False,
    announced: range | None = None,
    descriptors: int = 1,
    start: dict[str, Any] | None = None,
) -> Documents:
    """Documents of a run of events (n, ..., y, x) in an HDF5 file at `path`, which is not written here.

    Frame by frame, or in bulk: all events, then one stream_datum. With more `descriptors`, events go round them.
    """
    run = compose_run(metadata=start or {})
    shape = list(images.shape[1:]) if images.ndim == 4 else [1, *images.shape[1:]]
    key = {
        "source": "test",
        "dtype": "array",
        "dtype_numpy": images.dtype.str,
        "shape": shape,
        "external": "STREAM:",
    }
    opened = [run.compose_descriptor(name="primary", data_keys={"det": key}) for _ in range(descriptors)]
    resource = run.compose_stream_resource(
        mimetype="application/x-hdf5",
        uri=f"file://localhost{path}",
        data_key="det",
        parameters={"dataset": "counts", "chunk_shape": (1, *shape)},
    )

    def datum(indices: range, descriptor: Any) -> tuple[str, dict[str, Any]]:
        return "stream_datum", resource.compose_stream_datum(
            {"start": indices.start, "stop": indices.stop},
            {"start": indices.start + 1, "stop": indices.stop + 1},
            descriptor.descriptor_doc,
        )

    rows = range(len(images))
    announced = rows if announced is None else announced
    events = [
        (
            "event",
            opened[row % descriptors].compose_event(data={}, timestamps={}, seq_num=row + 1, time=1e9 + row),
        )
        for row in rows
    ]
    documents: Documents = [("start", run.start_doc)]
    documents += [("descriptor", each.descriptor_doc) for each in opened]
    documents += [("stream_resource", resource.stream_resource_doc)]
    if bulk:
        documents += [*events, datum(announced, opened[0])]
    else:
        for row in rows:
            if row in announced:
                documents.append(datum(range(row, row + 1), opened[row % descriptors]))
            documents.append(events[row])
    return [*documents, ("stop", run.compose_stop())]


def write(images: np.ndarray, path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file["counts"] = images.reshape(-1, *images.shape[-2:])
    return path


def fed(callback: Any, documents: Documents) -> Scan:
    for name, doc in documents:
        callback(name, doc)
    return Scan(documents, callback.close(timeout=60))


def derived_of(client: Container, scan: Scan) -> Any:
    derived = denoised_for(client, scan.uid)
    assert derived is not None
    return derived


def images_of(run: Any, key: str = "det") -> np.ndarray:
    return np.asarray(run["primary"][key].read())


def column(run: Any, name: str) -> np.ndarray:
    return np.asarray(run["primary"][name].read())


def outcome(run: Any) -> dict[str, Any]:
    return dict(run.metadata["stop"]["provenance"])
