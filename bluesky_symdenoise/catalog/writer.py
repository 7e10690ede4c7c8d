"""One derived run: its documents go to Tiled, its frames to HDF5 files that the documents announce."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
from event_model import compose_run
from numpy.typing import NDArray

from bluesky_symdenoise import __version__
from bluesky_symdenoise.catalog.columns import SCALARS
from bluesky_symdenoise.catalog.row import Row
from bluesky_symdenoise.files.nexus import add_entry, add_images, add_parameters, add_process
from bluesky_symdenoise.recipe import array_sha256

Document = dict[str, Any]
Emit = Callable[[str, Document], Any]


#: Large blocks: the smooth upper bits of whole frames compress together, by a seventh better than the filter's default.
COMPRESSION = hdf5plugin.Bitshuffle(nelems=2**20, cname="zstd", clevel=9)


class DerivedRun:
    """Composes the documents of one derived run and hands them to a writer such as TiledWriter.

    Parameters
    ----------
    emit
        Called with each (name, document).
    folder
        Where the HDF5 files go: one a stream, ``<uid>-<stream>.h5``.
    start
        Start document but for uid and time.
    uid, time
        Of the derived run.
    arrays
        Mask and exposure: stored in each file, named by their sha256.
    """

    def __init__(
        self,
        emit: Emit,
        *,
        folder: Path,
        start: Document,
        uid: str,
        time: float,
        arrays: Mapping[str, NDArray[Any]],
    ) -> None:
        self._emit, self._folder, self._arrays = emit, folder, dict(arrays)
        self._run = compose_run(uid=uid, time=time, metadata=start)
        self._streams: list[DerivedStream] = []
        emit("start", self._run.start_doc)

    @property
    def uid(self) -> str:
        """Of the derived run."""
        return str(self._run.start_doc["uid"])

    def stream(self, descriptor: Document, keys: Sequence[str]) -> DerivedStream:
        """Open the stream that mirrors a raw one, for its image data keys."""
        path = self._folder / f"{self.uid}-{descriptor['name']}.h5"
        opened = DerivedStream(
            self._emit,
            self._run,
            descriptor=descriptor,
            keys=keys,
            path=path,
            arrays=self._arrays,
            start=self._run.start_doc,
        )
        self._streams.append(opened)
        return opened

    def stop(self, *, exit_status: str, reason: str, provenance: Document) -> None:
        """Close the files and the run."""
        for stream in self._streams:
            stream.close()
        stop = self._run.compose_stop(exit_status=exit_status, reason=reason)
        self._emit("stop", dict(stop, provenance=provenance))


class DerivedStream:
    """The rows of one stream: an SWMR file that stays open until the run ends, and its documents."""

    def __init__(
        self,
        emit: Emit,
        run: Any,
        *,
        descriptor: Document,
        keys: Sequence[str],
        path: Path,
        arrays: Mapping[str, NDArray[Any]],
        start: Document,
    ) -> None:
        self._emit, self.path = emit, path
        self.shapes = {key: tuple(descriptor["data_keys"][key]["shape"]) for key in keys}
        self._rows = 0
        self._composed = run.compose_descriptor(
            name=descriptor["name"],
            time=descriptor["time"],
            data_keys=derived_data_keys(descriptor, keys),
        )
        emit("descriptor", self._composed.descriptor_doc)
        self._open(arrays, start)
        self._resources = {}
        for name, dataset in self._datasets.items():
            resource = run.compose_stream_resource(
                mimetype="application/x-hdf5",
                uri=f"file://localhost{path.as_posix()}",
                data_key=name,
                parameters={"dataset": dataset.name, "chunk_shape": dataset.chunks},
            )
            emit("stream_resource", resource.stream_resource_doc)
            self._resources[name] = resource

    def _open(self, arrays: Mapping[str, NDArray[Any]], start: Document) -> None:
        self._file = h5py.File(self.path, "w", libver="v110")
        entry = add_entry(self._file)
        self._datasets = add_images(entry, self.shapes, **COMPRESSION)
        date = datetime.fromtimestamp(start["time"], UTC).isoformat(timespec="seconds")
        process = add_process(entry, version=__version__, date=date)
        add_parameters(process, start.get("provenance", {}))
        for name, array in arrays.items():
            stored = process.create_dataset(name, data=array, **hdf5plugin.Bitshuffle(cname="zstd"))
            stored.attrs["sha256"] = array_sha256(array)
        # From here on HDF5 takes rows only: no group, dataset or attribute can be added.
        self._file.swmr_mode = True

    def append(self, *, seq_num: int, time: float, rows: Mapping[str, Row]) -> None:
        """Write one event: frames first, on disk before they are announced, then the documents."""
        index = self._rows
        scalars: Document = {}
        for key, row in rows.items():
            for name, value in ((key, row.intensity), (f"{key}_sigma", row.sigma)):
                dataset = self._datasets[name]
                dataset.resize(index + 1, axis=0)
                dataset[index] = value
                dataset.flush()
            scalars |= {f"{key}_{name}": value for name, value in row.scalars.items()}
        self._rows += 1
        for resource in self._resources.values():
            self._emit(
                "stream_datum",
                resource.compose_stream_datum(
                    {"start": index, "stop": index + 1},
                    {"start": seq_num, "stop": seq_num + 1},
                    self._composed.descriptor_doc,
                ),
            )
        event = self._composed.compose_event(
            data=scalars, timestamps=dict.fromkeys(scalars, time), seq_num=seq_num, time=time
        )
        self._emit("event", event)

    def close(self) -> None:
        """Close the file; its size is final."""
        if self._file:
            self._file.close()

    @property
    def bytes_written(self) -> int:
        """Size of the file on disk."""
        return os.path.getsize(self.path)


def derived_data_keys(descriptor: Document, keys: Sequence[str]) -> Document:
    """Data keys of the derived stream: the raw shape and dims for image and sigma, and the scalars."""
    out: Document = {}
    for key in keys:
        raw = descriptor["data_keys"][key]
        shape = list(raw["shape"])
        image = {
            "source": "symdenoise",
            "dtype": "array",
            "dtype_numpy": "<f4",
            "shape": shape,
            "dims": list(raw.get("dims") or [f"{key}_dim{i + 1}" for i in range(len(shape))]),
            "external": "STREAM:",
            "units": "counts",
        }
        out[key] = image
        out[f"{key}_sigma"] = dict(image)
        for name, dtype in SCALARS.items():
            out[f"{key}_{name}"] = {"source": "symdenoise", "dtype": dtype, "shape": []}
    return out
