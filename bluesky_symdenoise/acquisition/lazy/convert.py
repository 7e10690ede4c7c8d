"""Conversion of stored pixels to computed ones and back: `evict` frees the disk space, `materialize` refills it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tiled.utils import path_from_uri, safe_json_dump

from bluesky_symdenoise.acquisition.request.place import Place
from bluesky_symdenoise.acquisition.request.request import frames_folder
from bluesky_symdenoise.acquisition.runs.raw_files import raw_source
from bluesky_symdenoise.catalog.find.query import raw_for
from bluesky_symdenoise.catalog.lazy.parameters import MIMETYPE, QUANTITIES, LazyImage
from bluesky_symdenoise.catalog.store.writer import DerivedStream
from bluesky_symdenoise.derived.columns import PENDING, SCALARS, denoised_images
from bluesky_symdenoise.derived.row import Row, empty_row
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.opened import open_for_reading
from bluesky_symdenoise.files.source import Source
from bluesky_symdenoise.physics.symmetry import Symmetry

if TYPE_CHECKING:
    from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRun
    from tiled.structures.data_source import DataSource

    from bluesky_symdenoise.acquisition.past.recompute import Again
    from bluesky_symdenoise.denoiser.infer import Denoiser

Document = dict[str, Any]

#: Entries of a recipe that a server cannot apply when frames are read.
_KEEPS = ("beamline", "frames", "fold_sha256")


def evict(run: BlueskyRun, *, directory: str | Path | None = None, denoiser: Denoiser | None = None) -> int:
    """Delete the stored pixels of a derived run and let the server compute them when they are read.

    Every frame is computed first and must be bit for bit what is stored; then the server must give the same for one.
    The files are deleted last: if this is interrupted at any time, the run can be read and this can be called again.
    Uid, metadata and scalars stay.

    Parameters
    ----------
    run
        A derived run that has ended. This computer must see its files and the raw run's.
    directory
        Folder for a mask and an exposure; by default the one for derived frames.
    denoiser
        By default the model that the provenance names, with its thread count.

    Returns
    -------
    int
        Bytes freed.

    Raises
    ------
    SymDenoiseError
        If a frame differs: the pixels stay as they are.
    """
    _refuse_unfinished(run)
    from bluesky_symdenoise.acquisition.past.recompute import recorded_denoiser

    denoiser = denoiser or recorded_denoiser(run)
    images = [_StoredImage.of(run, stream, key, denoiser, directory) for stream, key in _images(run)]
    for image in images:
        image.refuse_different()
    for image in images:
        image.make_lazy()
    freed = 0
    for path in {image.pixels for image in images if image.pixels is not None}:
        freed += path.stat().st_size
        path.unlink()
    for image in images:
        image.forget_pixels()
    _note_bytes(run, 0)
    return freed


def materialize(run: BlueskyRun, *, directory: str | Path | None = None, denoiser: Denoiser | None = None) -> int:
    """Compute the pixels of a lazy derived run and store them, as if it had been replayed; the inverse of `evict`.

    The file is complete before the run refers to it, so this may be interrupted at any time and called again.

    Parameters
    ----------
    run
        A lazy derived run.
    directory
        Folder for its file; by default the one that the container of derived runs names.
    denoiser
        By default the model that the provenance names, with its thread count.

    Returns
    -------
    int
        Bytes written.

    Raises
    ------
    SymDenoiseError
        If the raw files have changed since the run was registered, or cannot be read.
    """
    _refuse_unfinished(run)
    from bluesky_symdenoise.acquisition.past.recompute import recorded_denoiser

    denoiser = denoiser or recorded_denoiser(run)
    folder = frames_folder(_container(run), Place(directory))
    by_stream: dict[str, list[str]] = {}
    for stream, key in _images(run):
        by_stream.setdefault(stream, []).append(key)
    written = 0
    for stream, keys in by_stream.items():
        if any(_data_source(run, stream, name).mimetype == MIMETYPE for key in keys for name in (key, f"{key}_sigma")):
            written += _store(run, stream, keys, denoiser, folder)
    _note_bytes(run, written)
    return written


def _images(run: BlueskyRun) -> Iterator[tuple[str, str]]:
    """Yield stream and data key of each denoised image."""
    for stream in run:
        for key in denoised_images(list(run[stream])):
            yield stream, key


def _refuse_unfinished(run: BlueskyRun) -> None:
    stop = run.metadata.get("stop")
    if "raw_uid" not in run.start or not stop:
        raise SymDenoiseError(
            f"run {run.start['uid']}",
            rule="it is not a derived run that has ended",
            remedy="give one, denoised_for(run)",
        )


def _container(run: BlueskyRun) -> Any:
    return run.parent


def _data_source(run: BlueskyRun, stream: str, name: str) -> DataSource[Any]:
    found: DataSource[Any] = run[stream][name].data_sources()[0]
    return found


def _descriptor(run: BlueskyRun, stream: str) -> Document:
    return dict(next(each for each in run.descriptors if each["name"] == stream))


def _put(run: BlueskyRun, stream: str, name: str, source: DataSource[Any]) -> None:
    """Make an array node refer to other data, with one request that takes effect wholly or not at all."""
    from tiled.client.utils import handle_error

    node = run[stream][name]
    source.id = node.data_sources()[0].id
    url = node.uri.replace("/metadata/", "/data_source/", 1)
    handle_error(node.context.http_client.put(url, content=safe_json_dump({"data_source": source})))


def _note_bytes(run: BlueskyRun, count: int) -> None:
    stop = dict(run.metadata["stop"])
    stop["provenance"] = {**stop.get("provenance", {}), "bytes": count}
    run.update_metadata({"stop": stop}, drop_revision=True)


@dataclass(frozen=True)
class _StoredImage:
    """One image of a derived run with its pixel file, and how it would be registered."""

    run: Any
    stream: str
    key: str
    again: Again
    source: Source
    lazy: Any
    pixels: Path | None
    dataset: str
    arrays: dict[str, str]

    @classmethod
    def of(
        cls, run: BlueskyRun, stream: str, key: str, denoiser: Denoiser, directory: str | Path | None
    ) -> _StoredImage:
        from bluesky_symdenoise.acquisition.lazy.register import lazy_key
        from bluesky_symdenoise.acquisition.past.recompute import Again
        from bluesky_symdenoise.catalog.lazy.documents import stored_array

        recipe = run.start["provenance"]["recipe"]
        if "time" not in run[stream] or any(recipe.get(name) for name in _KEEPS):
            raise SymDenoiseError(
                f"pixels of {stream}/{key}",
                rule="they stay stored in a run of chosen frames, without events, with a checked symmetry or with "
                "settings from its documents",
                remedy="leave it as it is",
            )
        again = Again(run, stream, key, denoiser)
        raw = raw_for(run)
        source, uris = raw_source(raw, _descriptor(raw, stream), key)
        groups = again.groups
        last = max((row for row, group in enumerate(groups) if group), default=-1)
        symmetry = Symmetry(groups[last], again.centers[last]) if last >= 0 else Symmetry()
        first = len(groups)
        while first and (not groups[first - 1] or Symmetry(groups[first - 1], again.centers[first - 1]) == symmetry):
            first -= 1
        data = _data_source(run, stream, key)
        stored = [path_from_uri(a.data_uri) for a in data.assets if a.parameter == "data_uris"]
        pixels = stored[0] if stored and stored[0].is_file() else None
        if pixels is None and data.mimetype != MIMETYPE:
            raise SymDenoiseError(
                f"pixels of {stream}/{key}",
                rule="this computer cannot read their file",
                remedy="run this on a computer that can",
            )
        folder = frames_folder(_container(run), Place(directory)) if again.arrays else Path()
        return cls(
            run=run,
            stream=stream,
            key=key,
            again=again,
            source=source,
            lazy=lazy_key(again.denoiser, again.recipe, source, uris, symmetry, first),
            pixels=pixels,
            dataset=f"entry/data/{key}",
            arrays={name: stored_array(folder, array) for name, array in again.arrays.items()},
        )

    def _computed(self, row: int) -> Row:
        """Return the row that the server's adapter computes."""
        image: LazyImage = self.lazy.image
        if row >= self.source.shape[0]:
            return empty_row(self.source.row_shape)
        return image.row(
            self.again.denoiser,
            self.source.read(row),
            row,
            mask=self.again.mask,
            exposure=self.again.exposure,
            readout=self.again.readout,
        )

    def refuse_different(self) -> None:
        """Compute every stored row again, and raise an error if one differs."""
        if self.pixels is None:
            return
        with open_for_reading(self.pixels) as file:
            intensity, sigma = file[self.dataset], file[f"{self.dataset}_sigma"]
            for row in range(intensity.shape[0]):
                again = self._computed(row)
                if not (_same(again.intensity, intensity[row]) and _same(again.sigma, sigma[row])):
                    raise SymDenoiseError(
                        f"row {row} of {self.stream}/{self.key}",
                        rule="the recomputed row differs from the stored one",
                        remedy="evict it on the machine that denoised it, or keep the pixels",
                    )

    def make_lazy(self) -> None:
        """Refer to the raw files, and check that the server gives a row as stored; if not, undo that."""
        from bluesky_symdenoise.catalog.lazy.consolidator import LazyConsolidator

        if self.pixels is None:
            return
        before = {name: _data_source(self.run, self.stream, name) for name in (self.key, f"{self.key}_sigma")}
        for (name, old), quantity in zip(before.items(), QUANTITIES, strict=True):
            resource = {
                "uid": "",
                "mimetype": MIMETYPE,
                "data_key": name,
                "uri": self.lazy.uris[0],
                "parameters": self.lazy.resource(quantity, self.arrays),
            }
            new = LazyConsolidator(resource, _descriptor(self.run, self.stream)).get_data_source()
            _put(self.run, self.stream, name, replace(new, structure=old.structure))
        try:
            self._probe(self.pixels)
        except BaseException:
            for name, old in before.items():
                _put(self.run, self.stream, name, old)
            raise

    def _probe(self, pixels: Path) -> None:
        from tiled.client.utils import ClientError

        row = min(self.lazy.image.first_row, len(self.again.groups) - 1)
        with open_for_reading(pixels) as file:
            for name in (self.key, f"{self.key}_sigma"):
                stored = file[f"entry/data/{name}"][row]
                try:
                    served = np.asarray(self.run[self.stream][name][row])
                except ClientError as error:
                    raise SymDenoiseError(
                        f"{self.stream}/{name}", rule=f"the server cannot compute it ({error})", remedy="see its log"
                    ) from error
                if not _same(served, stored):
                    raise SymDenoiseError(
                        f"row {row} of {self.stream}/{name}",
                        rule="the row that the server computes differs from the stored one",
                        remedy="keep the pixels, or set the server's device and threads as in the provenance",
                    )

    def forget_pixels(self) -> None:
        """Remove the deleted file from the arrays; a server that does not allow it keeps the name."""
        from tiled.client.utils import handle_error

        for name in (self.key, f"{self.key}_sigma"):
            node = self.run[self.stream][name]
            for asset in node.data_sources()[0].assets:
                if asset.parameter == "data_uris":
                    url = node.uri.replace("/metadata/", "/asset/", 1)
                    answer = node.context.http_client.delete(url, params={"id": asset.id})
                    if answer.status_code not in (200, 403, 404, 405):
                        handle_error(answer)


def _same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return one.shape == other.shape and np.array_equal(one.view(np.uint32), other.view(np.uint32))


def _store(run: BlueskyRun, stream: str, keys: list[str], denoiser: Denoiser, folder: Path) -> int:
    """Write the file of one stream, then let its arrays refer to it."""
    from bluesky_tiled_plugins.writing.consolidators import consolidator_factory
    from event_model import compose_run

    from bluesky_symdenoise.acquisition.past.recompute import Again
    from bluesky_symdenoise.catalog.lazy.documents import write_pending

    uid = run.start["uid"]
    images = {key: Again(run, stream, key, denoiser) for key in keys}
    sources = {key: _registered_source(run, stream, key) for key in keys}
    rows = len(next(iter(images.values())).groups)
    documents: list[tuple[str, Document]] = []
    part, final = folder / f"{uid}-{stream}.h5.part", folder / f"{uid}-{stream}.h5"
    raw_descriptor = _descriptor(raw_for(run), stream)
    some = next(iter(images.values()))
    opened = DerivedStream(
        lambda name, doc: documents.append((name, doc)),
        compose_run(uid=uid, time=run.start["time"]),
        descriptor=raw_descriptor,
        keys=keys,
        path=part,
        arrays=some.arrays,
        configuration=dict(run[stream].metadata.get("configuration", {}).get("symdenoise", {}).get("data", {})),
        flown=False,
        entered=lambda **_: None,
        created=lambda _: None,
        start=dict(run.start),
    )
    columns: dict[str, list[float]] = {f"{key}_{name}": [] for key in keys for name in PENDING}
    try:
        for index in range(rows):
            computed = {key: _computed(image, sources[key], index) for key, image in images.items()}
            for key, row in computed.items():
                for name in PENDING:
                    columns[f"{key}_{name}"].append(row.scalars[name])
            # Of the columns, those of a readout are in the table already, or nowhere, as a lazy run has none.
            kept = {
                key: replace(row, scalars={name: row.scalars[name] for name in SCALARS})
                for key, row in computed.items()
            }
            opened.append(seq_num=index + 1, time=run.start["time"] + index, rows=kept)
    finally:
        opened.close()
    size = opened.bytes_written
    part.replace(final)
    descriptor = next(doc for name, doc in documents if name == "descriptor")
    for resource in (doc for name, doc in documents if name == "stream_resource"):
        consolidator = consolidator_factory({**resource, "uri": f"file://localhost{final.as_posix()}"}, descriptor)
        for name, doc in documents:
            if name == "stream_datum" and doc["stream_resource"] == resource["uid"]:
                consolidator.consume_stream_datum(doc)
        _put(run, stream, resource["data_key"], consolidator.get_data_source())
    node = run.base[stream].base
    if set(columns) <= set(node):  # Otherwise they are still in the table of events, as before the eviction.
        write_pending(node, columns, run.access_tags)
    return size


def _registered_source(run: BlueskyRun, stream: str, key: str) -> Source:
    """Return the raw files, which must be unchanged since the run was registered."""
    data = _data_source(run, stream, key)
    raw = raw_for(run)
    source, _ = raw_source(raw, _descriptor(raw, stream), key)
    if data.mimetype != MIMETYPE:
        return source
    return replace(source, stamps=LazyImage.from_dict(data.parameters).stamps)


def _computed(image: Again, source: Source, row: int) -> Row:
    if row >= source.shape[0] or not image.groups[row]:
        return empty_row(source.row_shape)
    counts = source.read(row)
    try:
        return image.row(row, counts)
    except SymDenoiseError:
        return empty_row(source.row_shape)
