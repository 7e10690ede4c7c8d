"""Conversion of stored pixels to computed ones and back: `evict` frees the disk space, `materialize` refills it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tiled.utils import path_from_uri

from bluesky_symdenoise.acquisition.lazy.lending_source import LendingSource, window_of
from bluesky_symdenoise.acquisition.lazy.nodes import data_source, descriptor, put
from bluesky_symdenoise.acquisition.lazy.refill import store
from bluesky_symdenoise.acquisition.request.place import Place
from bluesky_symdenoise.acquisition.request.request import frames_folder
from bluesky_symdenoise.acquisition.runs.raw_files import raw_source
from bluesky_symdenoise.catalog.find.query import raw_for
from bluesky_symdenoise.catalog.lazy.parameters import MIMETYPE, QUANTITIES, LazyImage
from bluesky_symdenoise.derived.columns import denoised_images
from bluesky_symdenoise.derived.row import Row, empty_row
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.opened import open_for_reading
from bluesky_symdenoise.files.source import Source
from bluesky_symdenoise.physics.symmetry import Symmetry

if TYPE_CHECKING:
    from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRun

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
        if any(data_source(run, stream, name).mimetype == MIMETYPE for key in keys for name in (key, f"{key}_sigma")):
            written += store(run, stream, keys, denoiser, folder)
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
    reads: LendingSource

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
        source, uris = raw_source(raw, descriptor(raw, stream), key)
        window = window_of(raw, stream, again.recipe)
        groups = again.groups
        last = max((row for row, group in enumerate(groups) if group), default=-1)
        symmetry = Symmetry(groups[last], again.centers[last]) if last >= 0 else Symmetry()
        first = len(groups)
        while first and (not groups[first - 1] or Symmetry(groups[first - 1], again.centers[first - 1]) == symmetry):
            first -= 1
        data = data_source(run, stream, key)
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
            lazy=lazy_key(again.denoiser, again.recipe, source, uris, symmetry, first, window=window),
            reads=LendingSource(source, window),
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
            self.reads.read(row),
            row,
            lent=self.reads.lent(row),
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
        before = {name: data_source(self.run, self.stream, name) for name in (self.key, f"{self.key}_sigma")}
        for (name, old), quantity in zip(before.items(), QUANTITIES, strict=True):
            resource = {
                "uid": "",
                "mimetype": MIMETYPE,
                "data_key": name,
                "uri": self.lazy.uris[0],
                "parameters": self.lazy.resource(quantity, self.arrays),
            }
            new = LazyConsolidator(resource, descriptor(self.run, self.stream)).get_data_source()
            put(self.run, self.stream, name, replace(new, structure=old.structure))
        try:
            self._probe(self.pixels)
        except BaseException:
            for name, old in before.items():
                put(self.run, self.stream, name, old)
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
