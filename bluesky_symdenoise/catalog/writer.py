"""One derived run: its documents go to Tiled, its frames to HDF5 files that the documents announce."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import h5py
import hdf5plugin
import numpy as np
from event_model import compose_run
from numpy.typing import NDArray

from bluesky_symdenoise.catalog.journal import DATA, Journal
from bluesky_symdenoise.catalog.row import SCALARS, Row
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
    journal
        HeldError for this run; the HDF5 files lie beside it, one a stream.
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
        journal: Journal,
        start: Document,
        uid: str,
        time: float,
        arrays: Mapping[str, NDArray[Any]],
    ) -> None:
        self._emit, self.journal, self._arrays = emit, journal, dict(arrays)
        self._run = compose_run(uid=uid, time=time, metadata=start)
        self._streams: list[DerivedStream] = []
        emit("start", self._run.start_doc)

    @property
    def uid(self) -> str:
        """Of the derived run."""
        return str(self._run.start_doc["uid"])

    def stream(self, descriptor: Document, keys: Sequence[str]) -> DerivedStream:
        """Open the stream that mirrors a raw one, for its image data keys."""
        opened = DerivedStream(
            self._emit,
            self._run,
            descriptor=descriptor,
            keys=keys,
            journal=self.journal,
            arrays=self._arrays,
            provenance=self._run.start_doc.get("provenance", {}),
        )
        self._streams.append(opened)
        return opened

    def stop(self, *, exit_status: str, reason: str, provenance: Document) -> None:
        """Close the files and the run; of a run that is whole, what earlier writers left is removed."""
        try:
            for stream in self._streams:
                stream.close()
            stop = self._run.compose_stop(exit_status=exit_status, reason=reason)
            self._emit("stop", dict(stop, provenance=provenance))
            if provenance["complete"] and not provenance["failures"]:
                self.journal.finish()
        finally:
            self.journal.close()

    def leave(self) -> None:
        """Close the files but not the run: the next writer goes on with its rows."""
        for stream in self._streams:
            stream.close()
        self.journal.close()


class DerivedStream:
    """The rows of one stream: an SWMR file that stays open until the run ends, and its documents."""

    def __init__(
        self,
        emit: Emit,
        run: Any,
        *,
        descriptor: Document,
        keys: Sequence[str],
        journal: Journal,
        arrays: Mapping[str, NDArray[Any]],
        provenance: Document,
    ) -> None:
        self._emit, self._journal, self._name = emit, journal, descriptor["name"]
        self.path = path = journal.new_file(self._name)
        self.shapes = {key: tuple(descriptor["data_keys"][key]["shape"]) for key in keys}
        self._rows = 0
        self._composed = run.compose_descriptor(
            name=descriptor["name"],
            time=descriptor["time"],
            data_keys=_data_keys(descriptor, keys),
        )
        emit("descriptor", self._composed.descriptor_doc)
        self._open(arrays, provenance)
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

    def _open(self, arrays: Mapping[str, NDArray[Any]], provenance: Document) -> None:
        self._file = h5py.File(self.path, "w", libver="v110")
        entry = self._file.create_group("entry")
        entry.attrs.update(NX_class="NXentry", default="data")
        data = self._file.create_group(DATA)
        data.attrs.update(NX_class="NXdata", signal=next(iter(self.shapes)))
        process = entry.create_group("process")
        process.attrs.update(NX_class="NXprocess", parameters=json.dumps(provenance))
        self._datasets = {}
        for key, shape in self.shapes.items():
            frame = shape[-2:]
            leading = (1,) * (len(shape) - 2)
            for name in (key, f"{key}_sigma"):
                self._datasets[name] = data.create_dataset(
                    name,
                    (0, *shape),
                    np.float32,
                    maxshape=(None, *shape),
                    chunks=(1, *leading, *frame),
                    **COMPRESSION,
                )
                self._datasets[name].attrs["units"] = "counts"
            self._datasets[f"{key}_sigma"].attrs["note"] = "errors of neighbouring pixels are correlated"
        for name, array in arrays.items():
            stored = process.create_dataset(name, data=array, **hdf5plugin.Bitshuffle(cname="zstd"))
            stored.attrs["sha256"] = array_sha256(array)
        self._file.swmr_mode = True

    def append(self, *, seq_num: int, time: float, rows: Mapping[str, Row]) -> None:
        """Write one event: frames first, in the file and the journal before they are announced, then the documents."""
        index = self._rows
        scalars: Document = {}
        for key, row in rows.items():
            for name, value in ((key, row.intensity), (f"{key}_sigma", row.sigma)):
                dataset = self._datasets[name]
                dataset.resize(index + 1, axis=0)
                dataset[index] = value
                dataset.flush()
            scalars |= {f"{key}_{name}": value for name, value in row.scalars.items()}
        self._journal.enter(file=self.path, index=index, stream=self._name, seq_num=seq_num, rows=rows)
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


def _data_keys(descriptor: Document, keys: Sequence[str]) -> Document:
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
