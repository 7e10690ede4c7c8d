"""Stored runs through the same path as live ones, and single frames computed again from their provenance."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from bluesky_symdenoise.acquisition.frames import StoredFrames
from bluesky_symdenoise.acquisition.plan import Work
from bluesky_symdenoise.acquisition.run import RunDenoiser
from bluesky_symdenoise.catalog.query import raw_for
from bluesky_symdenoise.catalog.row import Row, denoised_row
from bluesky_symdenoise.denoiser.infer import ALGORITHM, Denoiser
from bluesky_symdenoise.denoiser.weights import load_recorded
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.symmetry import Symmetry
from bluesky_symdenoise.recipe import Recipe, array_sha256

if TYPE_CHECKING:
    from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRun
    from tiled.client.container import Container

Document = dict[str, Any]


def replay(
    run: BlueskyRun,
    into: Container,
    *,
    denoiser: Denoiser | None = None,
    directory: str | Path | None = None,
    mask: ArrayLike | None = None,
    exposure: ArrayLike | None = None,
    symmetry: str = "auto",
    beam_center: Sequence[float] | None = None,
    streams: Sequence[str] | None = None,
    data_keys: Sequence[str] | None = None,
) -> BlueskyRun:
    """Denoise a stored run and write what the callback would have written while it was acquired.

    A derived run of the same recipe is returned as it is if it is complete; one that was interrupted or has frames that
    failed is replaced. Parameters after `into` are those of
    `bluesky_symdenoise.DenoiseCallback`.

    Parameters
    ----------
    run
        A finished raw run, from a Tiled catalogue.
    into
        Catalogue for derived runs, ``client["denoised"]``.

    Returns
    -------
    BlueskyRun
        The derived run.

    Raises
    ------
    SymDenoiseError
        If the run has no image or no stop document, or an unfinished derived run of this recipe is in the way.
    """
    work = Work.planned(
        into,
        activity="replay",
        denoiser=denoiser,
        directory=directory,
        mask=mask,
        exposure=exposure,
        symmetry=symmetry,
        beam_center=beam_center,
        streams=streams,
        data_keys=data_keys,
    )
    existing = derived_already(run, work)
    if existing is not None:
        return existing
    stored = {descriptor["uid"]: StoredStream(run, descriptor) for descriptor in run.descriptors}
    pipeline = RunDenoiser(work, source=lambda descriptor: stored[descriptor["uid"]].frames())
    drive(pipeline, run, stored.values())
    return into[pipeline.derived_uid]


def derived_already(run: BlueskyRun, work: Work) -> BlueskyRun | None:
    """The derived run of this work, if it is there and whole; one that was cut short or has failures is deleted.

    Raises
    ------
    SymDenoiseError
        If the run has not ended or is no raw run, or an unfinished derived run is in the way.
    """
    uid, into = run.start["uid"], work.container
    if not run.metadata.get("stop"):
        raise SymDenoiseError(f"run {uid}", rule="it has no stop document yet", remedy="replay it when it has ended")
    if "raw_uid" in run.start:
        raise SymDenoiseError(f"run {uid}", rule="it is denoised already", remedy="give its raw run, raw_for(run)")
    uid = work.recipe.derived_uid(uid)
    if uid not in into:
        return None
    existing = into[uid]
    ended = existing.metadata.get("stop")
    if not ended:
        raise SymDenoiseError(
            f"derived run {uid}",
            rule="it has no stop document: it is being written, or was cut off",
            remedy=f"wait, or remove it with into[{uid!r}].delete(recursive=True, external_only=False)",
        )
    if ended["provenance"]["complete"] and not ended["provenance"]["failures"]:
        return existing
    existing.delete(recursive=True, external_only=False)
    return None


def drive(pipeline: RunDenoiser, run: BlueskyRun, streams: Collection[StoredStream]) -> None:
    """Give a pipeline the documents of a stored run, with its access tags.

    Raises
    ------
    SymDenoiseError
        If the run has no image that was asked for.
    """
    start, stop = dict(run.start), dict(run.metadata["stop"])
    if run.access_tags:
        start["tiled_access_tags"] = list(run.access_tags)
    pipeline.start(start)
    try:
        for stream in streams:
            pipeline.descriptor(stream.descriptor)
        if pipeline.derived_uid is None:
            raise SymDenoiseError(
                f"run {start['uid']}",
                rule=f"no stream of {', '.join(run) or 'none'} holds a 2D image that was asked for",
                remedy="check streams and data_keys",
            )
        for stream in streams:
            for seq_num, time in zip(stream.seq_nums, stream.times, strict=True):
                pipeline.event({"descriptor": stream.descriptor["uid"], "seq_num": seq_num, "time": time, "data": {}})
        pipeline.stop(stop)
    finally:
        pipeline.abandon("the replay was interrupted")


class StoredStream:
    """Event numbers and times of one stream of a stored run."""

    def __init__(self, run: BlueskyRun, descriptor: Document) -> None:
        self.descriptor = descriptor
        self._stream = run[descriptor["name"]]
        columns = set(self._stream)
        self.times: list[float] = []
        self.seq_nums: list[int] = []
        if "time" in columns:
            self.times = [float(value) for value in self._stream["time"].read()]
        if "seq_num" in columns:
            self.seq_nums = [int(value) for value in self._stream["seq_num"].read()]

    def frames(self) -> StoredFrames:
        """Source of the images; a stream without events is numbered from 1."""
        numbers = self.seq_nums
        if not numbers:
            rows = max(
                (self._stream[key].shape[0] for key in self.descriptor["data_keys"] if key in self._stream),
                default=0,
            )
            numbers = list(range(1, rows + 1))
        return StoredFrames(self._stream, self.descriptor, numbers)


def recompute(
    run: BlueskyRun,
    index: int,
    *,
    key: str | None = None,
    stream: str | None = None,
    denoiser: Denoiser | None = None,
) -> xr.Dataset:
    """Compute one frame of a derived run again from the raw frame and the derived run's own provenance.

    Bit for bit what is stored, on the same machine, device, dtype and the recorded number of threads.

    Parameters
    ----------
    run
        A derived run.
    index
        Row of its stream.
    key, stream
        Image data key and stream; by default the first that the provenance names.
    denoiser
        By default the model that the provenance names, with its thread count.

    Returns
    -------
    xarray.Dataset
        ``intensity`` and ``sigma`` in the shape of one stored row.

    Raises
    ------
    SymDenoiseError
        If the recipe's model or algorithm is not this package's, or the raw run or the mask is gone.
    """
    source = run.start["provenance"]["wasDerivedFrom"][0]
    key, stream = key or source["data_key"], stream or source["stream"]
    if stream not in run or key not in run[stream]:
        raise SymDenoiseError(
            f"{stream}/{key}",
            rule="the run has no such image",
            remedy=f"{source['stream']}/{source['data_key']} is one",
        )
    rows = run[stream][key].shape[0]
    if not 0 <= index < rows:
        raise SymDenoiseError(f"row {index}", rule=f"stream {stream!r} has {rows} rows", remedy=f"give 0 to {rows - 1}")
    again = Again(run, stream, key, denoiser or recorded_denoiser(run))
    row = again.row(index, np.asarray(raw_for(run)[stream][key][index : index + 1])[0])
    dims = (*(f"dim_{i}" for i in range(row.intensity.ndim - 2)), "y", "x")
    return xr.Dataset({"intensity": (dims, row.intensity), "sigma": (dims, row.sigma)})


def recorded_denoiser(run: BlueskyRun) -> Denoiser:
    """The model that the provenance of a derived run names, with its device and thread count."""
    provenance: Document = dict(run.start["provenance"])
    return Denoiser(
        load_recorded(provenance["model"]["name"], provenance["model"]["sha256"]),
        device="cpu" if provenance["environment"]["device"] == "cpu" else "auto",
        threads=provenance["environment"]["threads"],
    )


class Again:
    """Rows of one image of a derived run, computed again from the raw run and the provenance.

    Raises
    ------
    SymDenoiseError
        If the recipe's model or algorithm is not this package's, or the raw run or the mask is gone.
    """

    def __init__(self, run: BlueskyRun, stream: str, key: str, denoiser: Denoiser) -> None:
        provenance: Document = dict(run.start["provenance"])
        self.recipe = recipe = Recipe.from_dict(provenance["recipe"])
        if denoiser.model.sha256 != recipe.model_sha256 or recipe.algorithm != ALGORITHM:
            raise SymDenoiseError(
                f"model {denoiser.model.name} ({denoiser.model.sha256[:12]}), algorithm {ALGORITHM}",
                rule=f"the run was made with {recipe.model_sha256[:12]} and algorithm {recipe.algorithm}",
                remedy=f"install version {provenance['wasAssociatedWith']['version']}",
            )
        self.denoiser = denoiser
        self.mask = _stored_array(run, stream, key, "mask", recipe.mask_sha256)
        self.exposure = _stored_array(run, stream, key, "exposure", recipe.exposure_sha256)
        events = run[stream]
        self.groups = [str(group) for group in np.asarray(events[f"{key}_symmetry"].read())]
        centers = (np.asarray(events[f"{key}_center_{axis}"].read(), float) for axis in "yx")
        self.centers = [None if np.isnan(y) else (float(y), float(x)) for y, x in zip(*centers, strict=True)]

    def row(self, index: int, image: NDArray[Any]) -> Row:
        """One row as it was stored, from its raw image.

        Raises
        ------
        SymDenoiseError
            If its frame was not denoised.
        """
        if not self.groups[index]:
            raise SymDenoiseError(
                f"row {index}",
                rule="its frame was not denoised",
                remedy="the run's stop document says why; replay the raw run",
            )
        return denoised_row(
            self.denoiser,
            self.recipe,
            image,
            mask=self.mask,
            exposure=self.exposure,
            symmetry=Symmetry(self.groups[index], self.centers[index]),
        )


def _stored_array(run: BlueskyRun, stream: str, key: str, name: str, sha256: str | None) -> NDArray[Any] | None:
    """The mask or exposure that a derived run was made with, from its own file, checked by its sha256."""
    if sha256 is None:
        return None
    import h5py
    from tiled.utils import path_from_uri

    assets = {asset.parameter: asset for asset in run[stream][key].data_sources()[0].assets}
    path = path_from_uri(assets[name if name in assets else "data_uris"].data_uri)
    try:
        if name in assets:  # A lazy run has a file for each array.
            array: NDArray[Any] = np.load(path, allow_pickle=False)
        else:
            with h5py.File(path, "r", swmr=True) as file:
                array = file[f"entry/process/{name}"][()]
    except (OSError, KeyError, ValueError) as error:
        raise SymDenoiseError(
            f"{name} of run {run.start['uid']}",
            rule=f"it cannot be read from {path} ({error})",
            remedy="run this where the derived run's files can be seen",
        ) from error
    if array_sha256(array) != sha256:
        raise SymDenoiseError(f"{name} in {path}", rule="its sha256 is not the recorded one", remedy="restore the file")
    return array
