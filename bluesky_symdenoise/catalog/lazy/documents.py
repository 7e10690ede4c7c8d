"""Documents of a derived run without pixels: as with stored pixels, except for where its images are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_symdenoise.catalog.lazy.parameters import MIMETYPE, QUANTITIES, SOURCE, LazyImage
from bluesky_symdenoise.catalog.store.journal import Journal
from bluesky_symdenoise.catalog.store.writer import DerivedRun, configuration_of, derived_data_keys, stored_scalars
from bluesky_symdenoise.derived.columns import BORROWED, BORROWING, PENDING, SCALARS
from bluesky_symdenoise.derived.row import Row
from bluesky_symdenoise.recipe import Recipe, array_sha256

Document = dict[str, Any]


def pending(recipe: Recipe) -> tuple[str, ...]:
    """Return the columns of a lazy run that are known once its frames are computed."""
    return PENDING if recipe.borrow is None else (*PENDING, BORROWED)


@dataclass(frozen=True)
class LazyKey:
    """Registration of one image of a stream.

    Attributes
    ----------
    image
        Parameters of the image.
    uris
        URIs of the raw files, in order.
    is_directory
        Whether they are folders, as zarr arrays are.
    """

    image: LazyImage
    uris: tuple[str, ...]
    is_directory: bool

    def resource(self, quantity: str, arrays: Mapping[str, str]) -> Document:
        """Return parameters of the stream_resource of intensity or sigma."""
        assets = [
            {"data_uri": uri, "is_directory": self.is_directory, "parameter": SOURCE, "num": number}
            for number, uri in enumerate(self.uris)
        ]
        assets += [
            {"data_uri": uri, "is_directory": False, "parameter": name, "num": None} for name, uri in arrays.items()
        ]
        return {"assets": assets, "image": replace(self.image, quantity=quantity).to_dict()}


class LazyRun(DerivedRun):
    """A derived run whose streams are lazy.

    Parameters
    ----------
    plan
        How each image is registered, by (stream, data key).
    """

    def __init__(
        self,
        emit: Callable[[str, Document], Any],
        *,
        plan: Mapping[tuple[str, str], LazyKey],
        journal: Journal,
        start: Document,
        uid: str,
        time: float,
        arrays: Mapping[str, NDArray[Any]],
    ) -> None:
        # Tiled's writer takes a second to import: not what imports this module, but what writes a run needs it.
        from bluesky_symdenoise.catalog.lazy.consolidator import register_consolidator

        register_consolidator()
        super().__init__(emit, journal=journal, start=start, uid=uid, time=time, arrays=arrays)
        self._plan = plan

    def stream(
        self,
        descriptor: Document,
        keys: Sequence[str],
        *,
        arrays: Mapping[str, NDArray[Any]] | None = None,
        configuration: Document | None = None,
        flown: bool = False,
    ) -> Any:
        """Open the stream that mirrors a raw one, for its image data keys; the stream must have events."""
        folder = self.journal.path.parent
        opened = LazyStream(
            self._emit,
            self._run,
            descriptor=descriptor,
            keys={key: self._plan[descriptor["name"], key] for key in keys},
            arrays={name: stored_array(folder, array) for name, array in (self._arrays | dict(arrays or {})).items()},
            configuration=configuration or {},
        )
        self._streams.append(opened)  # type: ignore[arg-type]
        return opened


class LazyStream:
    """Write the events of one stream, and one reference for all rows of each image."""

    bytes_written = 0

    def __init__(
        self,
        emit: Callable[[str, Document], Any],
        run: Any,
        *,
        descriptor: Document,
        keys: Mapping[str, LazyKey],
        arrays: Mapping[str, str],
        configuration: Document,
    ) -> None:
        self._emit = emit
        #: Columns of each image that are not written with its events.
        self._pending = {key: pending(lazy.image.recipe) for key, lazy in keys.items()}
        borrowing = any(BORROWED in names for names in self._pending.values())
        self._columns = SCALARS | BORROWING if borrowing else SCALARS
        self.shapes = {key: tuple(descriptor["data_keys"][key]["shape"]) for key in keys}
        self._composed = run.compose_descriptor(
            name=descriptor["name"],
            time=descriptor["time"],
            data_keys=derived_data_keys(
                descriptor, list(keys), flown=False, columns=self._columns, configuration=configuration
            ),
            configuration=configuration_of(configuration, descriptor["time"]),
        )
        emit("descriptor", self._composed.descriptor_doc)
        self._resources: list[Any] = []
        self._rows = 0
        for key, lazy in keys.items():
            for name, quantity in zip((key, f"{key}_sigma"), QUANTITIES, strict=True):
                resource = run.compose_stream_resource(
                    mimetype=MIMETYPE,
                    uri=lazy.uris[0],
                    data_key=name,
                    parameters=lazy.resource(quantity, arrays),
                )
                emit("stream_resource", resource.stream_resource_doc)
                self._resources.append(resource)

    def append(self, *, seq_num: int, time: float | None, rows: Mapping[str, Row]) -> None:
        """Write one event: the symmetry is known, those of `pending` are not."""
        assert time is not None, "only streams with events are registered"
        index, self._rows = self._rows, self._rows + 1
        for resource in self._resources:
            self._emit(
                "stream_datum",
                resource.compose_stream_datum(
                    {"start": index, "stop": index + 1},
                    {"start": seq_num, "stop": seq_num + 1},
                    self._composed.descriptor_doc,
                ),
            )
        scalars: Document = {}
        for key, row in rows.items():
            scalars |= stored_scalars(key, row.scalars, self._columns)
        moment = float(time)
        event = self._composed.compose_event(
            data=scalars, timestamps=dict.fromkeys(scalars, moment), seq_num=int(seq_num), time=moment
        )
        later = {f"{key}_{name}" for key, names in self._pending.items() for name in names}
        kept = [name for name in scalars if name not in later]
        self._emit(
            "event",
            event | {part: {name: event[part][name] for name in kept} for part in ("data", "timestamps")},
        )

    def close(self) -> None:
        """Do nothing: no file is open."""


def stored_array(folder: Path, array: NDArray[Any]) -> str:
    """Return the URI of the file in a folder that holds an array, named by its sha256."""
    path = folder / f"{array_sha256(array)}.npy"
    if not path.exists():
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
        part.replace(path)
    return f"file://localhost{path.as_posix()}"


def write_pending(stream: Any, columns: Mapping[str, Sequence[float]], access_tags: Sequence[str] | None) -> None:
    """Write the scalars of `pending` beside a stream's events, an array each, replacing values of existing ones."""
    for name, column in columns.items():
        values = np.asarray(column, np.float64)
        if name in stream:
            stream[name].write(values)
        else:
            tags = None if access_tags is None else list(access_tags)
            stream.write_array(values, key=name, dims=("time",), access_tags=tags)
