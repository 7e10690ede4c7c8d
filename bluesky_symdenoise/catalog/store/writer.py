"""One derived run: its documents go to Tiled, its frames to HDF5 files that the documents announce."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
from event_model import compose_run
from numpy.typing import NDArray

from bluesky_symdenoise import __version__
from bluesky_symdenoise.catalog.store.journal import Journal
from bluesky_symdenoise.derived.columns import BORROWING, SCALARS
from bluesky_symdenoise.derived.row import CompressedFrame, CompressedRow, Row
from bluesky_symdenoise.files.nexus import add_entry, add_images, add_parameters, add_process
from bluesky_symdenoise.recipe import array_sha256

Document = dict[str, Any]
Emit = Callable[[str, Document], Any]


#: Large blocks: the smooth upper bits of whole frames compress together, a seventh smaller than with the filter's
#: default. The lowest level takes a quarter of the time of level 9, for 1.5 % more bytes.
COMPRESSION = hdf5plugin.Bitshuffle(nelems=2**20, cname="zstd", clevel=1)

#: Dtypes of the scalars by their type: in the table of events, and in the file of a stream without events. The longest
#: string is a turned point group on a tilted detector, about 40 characters.
TABLE_DTYPES = {"number": "<f8", "string": "<U64"}
COLUMN_DTYPES = {"number": "<f8", "string": "|S64"}


class DerivedRun:
    """Compose the documents of one derived run and pass them to a writer such as TiledWriter.

    Parameters
    ----------
    emit
        Called with each (name, document).
    journal
        Journal held for this run; the HDF5 files are beside it, one per stream.
    start
        Start document without uid and time.
    uid, time
        Uid and time of the derived run.
    arrays
        Mask and exposure, stored in each file and named by their sha256.
    created
        Called with the path of each new file.
    columns
        Name and type of the scalars of each row.
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
        created: Callable[[Path], None] = lambda _: None,
        columns: Mapping[str, str] = SCALARS,
    ) -> None:
        self._columns = columns
        self._emit, self.journal, self._arrays, self._created = emit, journal, dict(arrays), created
        self._run = compose_run(uid=uid, time=time, metadata=start)
        self._streams: list[DerivedStream] = []
        emit("start", self._run.start_doc)

    @property
    def uid(self) -> str:
        """Uid of the derived run."""
        return str(self._run.start_doc["uid"])

    def stream(
        self,
        descriptor: Document,
        keys: Sequence[str],
        *,
        arrays: Mapping[str, NDArray[Any]] | None = None,
        configuration: Document | None = None,
        flown: bool = False,
    ) -> DerivedStream:
        """Open the stream that mirrors a raw one, for its image data keys.

        Parameters
        ----------
        arrays
            Arrays to store in the stream's file beside those of the run.
        configuration
            What was found about the images; it goes into the descriptor.
        flown
            Whether the raw stream has no events; this one then has none either, and its scalars are columns in the
            file.
        """
        path = self.journal.new_file(descriptor["name"])
        opened = DerivedStream(
            self._emit,
            self._run,
            descriptor=descriptor,
            keys=keys,
            path=path,
            entered=partial(self.journal.enter, file=path, stream=descriptor["name"]),
            arrays=self._arrays | dict(arrays or {}),
            configuration=configuration or {},
            flown=flown,
            created=self._created,
            start=self._run.start_doc,
            columns=self._columns,
        )
        self._streams.append(opened)
        return opened

    def stop(self, *, exit_status: str, reason: str, provenance: Document) -> None:
        """Close the files and the run; remove what earlier writers left if the run is complete."""
        try:
            for stream in self._streams:
                stream.close()
            stop = self._run.compose_stop(exit_status=exit_status, reason=reason)
            self._emit("stop", dict(stop, provenance=provenance))
            if provenance["complete"]:
                self.journal.forget_parts()
            if provenance["complete"] and not provenance["failures"]:
                self.journal.finish()
        finally:
            self.journal.close()

    def leave(self) -> None:
        """Close the files but not the run: the next writer continues with its rows."""
        for stream in self._streams:
            stream.close()
        self.journal.close()


class DerivedStream:
    """Rows of one stream: an SWMR file, from the first row until the run ends, and its documents."""

    def __init__(
        self,
        emit: Emit,
        run: Any,
        *,
        descriptor: Document,
        keys: Sequence[str],
        path: Path,
        arrays: Mapping[str, NDArray[Any]],
        entered: Callable[..., None],
        configuration: Document,
        flown: bool,
        created: Callable[[Path], None],
        start: Document,
        columns: Mapping[str, str] = SCALARS,
    ) -> None:
        self._columns = columns
        self._emit, self._run, self.path, self._flown = emit, run, path, flown
        self._arrays, self._entered, self._created, self._start = arrays, entered, created, start
        self._turns: Counter[int] = Counter()
        #: Names of the scalars of the last row; its documents were checked, or were like those that were.
        self._checked: Collection[str] | None = None
        self.shapes = {key: tuple(descriptor["data_keys"][key]["shape"]) for key in keys}
        self._rows = 0
        self._composed = run.compose_descriptor(
            name=descriptor["name"],
            time=descriptor["time"],
            data_keys=derived_data_keys(descriptor, keys, flown=flown, columns=columns, configuration=configuration),
            configuration=configuration_of(configuration, descriptor["time"]),
            **hints_of(keys, columns),
        )
        emit("descriptor", self._composed.descriptor_doc)
        self._file: Any = None
        self._datasets: dict[str, Any] = {}
        self._resources: dict[str, Any] = {}

    def _open(self) -> None:
        """Make the file and announce it, with the first row, so that no unused file is left."""
        # Replace the file that a killed writer left, so that its readers keep their open file unchanged.
        self.path.unlink(missing_ok=True)
        self._file = h5py.File(self.path, "x", libver="v110")
        self._created(self.path)
        entry = add_entry(self._file)
        described = self._composed.descriptor_doc["data_keys"]
        units = {key: described[key]["units"] for key in self.shapes}
        self._datasets = add_images(entry, self.shapes, units=units, **COMPRESSION)
        if self._flown:
            for key in self.shapes:
                for name, dtype in self._columns.items():
                    self._datasets[f"{key}_{name}"] = entry["data"].create_dataset(
                        f"{key}_{name}", (0,), COLUMN_DTYPES[dtype], maxshape=(None,), chunks=(1024,)
                    )
        date = datetime.fromtimestamp(self._start["time"], UTC).isoformat(timespec="seconds")
        process = add_process(entry, version=__version__, date=date)
        add_parameters(process, self._start.get("provenance", {}))
        for name, array in self._arrays.items():
            stored = process.create_dataset(name, data=array, **hdf5plugin.Bitshuffle(cname="zstd"))
            stored.attrs["sha256"] = array_sha256(array)
        # From here on (SWMR) HDF5 accepts rows only: no group, dataset or attribute can be added.
        self._file.swmr_mode = True
        for name, dataset in self._datasets.items():
            resource = self._run.compose_stream_resource(
                mimetype="application/x-hdf5",
                uri=f"file://localhost{self.path.as_posix()}",
                data_key=name,
                parameters={"dataset": dataset.name, "chunk_shape": dataset.chunks},
            )
            self._emit("stream_resource", resource.stream_resource_doc)
            self._resources[name] = resource

    def append(self, *, seq_num: int, time: float | None, rows: Mapping[str, Row | CompressedRow]) -> None:
        """Write one row: frames first, in the file and the journal before they are announced, then the documents.

        ``time`` is the time of the event; a flown stream has none.
        """
        if self._file is None:
            self._open()
        index = self._rows
        values: Document = {}
        scalars: Document = {}
        for key, row in rows.items():
            values |= {key: row.intensity, f"{key}_sigma": row.sigma}
            scalars |= stored_scalars(key, row.scalars, self._columns)
        for name, value in (values | scalars if self._flown else values).items():
            dataset = self._datasets[name]
            dataset.resize(index + 1, axis=0)
            if isinstance(value, CompressedFrame):
                value.copy_to(dataset, index)
            else:
                dataset[index] = value
            dataset.flush()
        self._entered(index=index, seq_num=seq_num, turn=self._turns[seq_num], rows=rows)
        self._turns[seq_num] += 1
        self._rows += 1
        number = int(seq_num)
        # The documents of all rows are alike: event-model's check of the first one takes as long as all else here.
        unlike = scalars.keys() != self._checked
        self._checked = scalars.keys()
        for resource in self._resources.values():
            self._emit(
                "stream_datum",
                resource.compose_stream_datum(
                    {"start": index, "stop": index + 1},
                    {"start": number, "stop": number + 1},
                    self._composed.descriptor_doc,
                    validate=unlike,
                ),
            )
        if not self._flown:
            assert time is not None, "only a flown stream has no times"
            moment = float(time)
            event = self._composed.compose_event(
                data=scalars,
                timestamps=dict.fromkeys(scalars, moment),
                seq_num=number,
                time=moment,
                validate=unlike,
            )
            self._emit("event", event)

    def close(self) -> None:
        """Close the file; its size is final."""
        if self._file:
            self._file.close()
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    @property
    def bytes_written(self) -> int:
        """Size of the file on disk."""
        return os.path.getsize(self.path) if self._file is not None else 0


def stored_scalars(key: str, scalars: Mapping[str, Any], columns: Mapping[str, str] = SCALARS) -> Document:
    """Return the scalars of one image by their data keys, every number a float and every string a str.

    TiledWriter makes a table with the types of the first rows that it sends: an int, a bool or None there would refuse
    or change what comes later. A number that is not known is NaN, a string that is not known is empty.
    """
    return {f"{key}_{name}": _STORED[columns[name]](value) for name, value in scalars.items()}


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _string(value: Any) -> str:
    # NaN is the only value that differs from itself.
    return "" if value is None or value != value else str(value)


_STORED: Mapping[str, Callable[[Any], float | str]] = {"number": _number, "string": _string}


def configuration_of(found: Document, time: float) -> Document:
    """Return what was found about the images, in the form of a device's configuration."""
    if not found:
        return {}
    return {
        "symdenoise": {
            "data": found,
            "timestamps": dict.fromkeys(found, time),
            "data_keys": {name: {"source": "symdenoise", "dtype": "array", "shape": []} for name in found},
        }
    }


def hints_of(keys: Sequence[str], columns: Mapping[str, str]) -> Document:
    """Return what tables and plots show by default, as descriptor arguments: values of analyses without their sigma."""
    shown = [name for name in columns if name not in SCALARS | BORROWING and not name.endswith("_sigma")]
    if not shown:
        return {}
    fields = [f"{key}_{name}" for key in keys for name in shown]
    return {
        "object_keys": {"symdenoise": [f"{key}_{name}" for key in keys for name in columns]},
        "hints": {"symdenoise": {"fields": fields}},
    }


def derived_data_keys(
    descriptor: Document,
    keys: Sequence[str],
    *,
    flown: bool,
    columns: Mapping[str, str] = SCALARS,
    configuration: Mapping[str, Any],
) -> Document:
    """Return data keys of the derived stream: the raw shape and dims for image and sigma, and the scalars.

    Parameters
    ----------
    configuration
        What was found about the images: of integrating detectors it has ``<key>_units`` and ``<key>_readout``.
    """
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
            "units": configuration.get(f"{key}_units", "counts"),
        }
        if f"{key}_readout" in configuration:
            image["readout"] = configuration[f"{key}_readout"]
        out[key] = image
        out[f"{key}_sigma"] = image | {"note": "of one pixel; neighbours' errors are correlated: see integrate()"}
        for name, dtype in columns.items():
            stored = COLUMN_DTYPES if flown else TABLE_DTYPES
            column = {"source": "symdenoise", "dtype": dtype, "dtype_numpy": stored[dtype], "shape": []}
            out[f"{key}_{name}"] = column | ({"external": "STREAM:"} if flown else {})
    return out
