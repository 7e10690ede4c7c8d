"""Stored runs through the same path as live ones, and single frames computed again from their provenance."""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from bluesky_symdenoise.acquisition.claim import Claim
from bluesky_symdenoise.acquisition.frames import StoredFrames
from bluesky_symdenoise.acquisition.plan import Work
from bluesky_symdenoise.acquisition.run import RunDenoiser
from bluesky_symdenoise.catalog.query import raw_for
from bluesky_symdenoise.catalog.row import denoised_row
from bluesky_symdenoise.denoiser.infer import ALGORITHM, Denoiser
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

    A derived run of the same recipe is returned as it is if it is complete. One that was interrupted or has frames that
    failed is replaced; what its dead writer had finished is taken over. Parameters after `into` are those of
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
        If the run has no image or no stop document, or a living process writes its derived run of this recipe.
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
    return replay_with(work, run)


class NothingToDenoiseError(SymDenoiseError):
    """The run has no image that was asked for."""


def replay_with(
    work: Work,
    run: BlueskyRun,
    *,
    older_than: float | None = None,
    finished_frame: Callable[[str | None], None] = lambda _: None,
) -> BlueskyRun:
    """Denoise a stored run as planned; see `replay`.

    Parameters
    ----------
    older_than
        Seconds without a sign of life after which a run without a stop document counts as ended.
    finished_frame
        Called after each frame was written with None, or with the reason why it is NaN. If it raises, the derived run
        is left unfinished, and the next replay goes on with its rows.

    Raises
    ------
    NothingToDenoiseError
        If the run has no image that was asked for.
    HeldError
        If a living process writes the derived run.
    SymDenoiseError
        For what else keeps it from being denoised.
    """
    start, stop = dict(run.start), run.metadata.get("stop")
    if "raw_uid" in start:
        raise SymDenoiseError(
            f"run {start['uid']}", rule="it is denoised already", remedy="give its raw run, raw_for(run)"
        )
    claim = Claim(raw_stop=stop, older_than=older_than)
    uid = work.recipe.derived_uid(start["uid"])
    if uid in work.container and claim.stands(existing := work.container[uid]):
        return existing
    stored = {descriptor["uid"]: _Stored(run, descriptor) for descriptor in run.descriptors}
    if not stop:
        stop = _assumed_stop(run, list(stored.values()), older_than)
    if run.access_tags:
        start["tiled_access_tags"] = list(run.access_tags)
    pipeline = RunDenoiser(
        work,
        source=lambda descriptor: stored[descriptor["uid"]].frames(),
        finished_frame=finished_frame,
        claim=claim,
    )
    pipeline.start(start)
    try:
        for stream in stored.values():
            pipeline.descriptor(stream.descriptor)
        if pipeline.derived_uid is None:
            raise NothingToDenoiseError(
                f"run {start['uid']}",
                rule=f"no stream of {', '.join(run) or 'none'} holds a 2D image that was asked for",
                remedy="check streams and data_keys",
            )
        for uid_, stream in stored.items():
            for seq_num, time in zip(stream.seq_nums, stream.times, strict=True):
                pipeline.event({"descriptor": uid_, "seq_num": seq_num, "time": time, "data": {}})
        pipeline.stop(dict(stop))
    finally:
        if not pipeline.closed:
            pipeline.leave()
    return work.container[uid]


def _assumed_stop(run: BlueskyRun, streams: Sequence[_Stored], older_than: float | None) -> Document:
    """The stop document of a run whose writer died before it wrote one."""
    uid, seen = run.start["uid"], max([run.start["time"], *(moment for each in streams for moment in each.times)])
    if older_than is None:
        raise SymDenoiseError(f"run {uid}", rule="it has no stop document yet", remedy="replay it when it has ended")
    if clock.time() - seen < older_than:
        raise SymDenoiseError(
            f"run {uid}",
            rule=f"it has no stop document, and its last sign of life is {clock.time() - seen:.0f} s ago",
            remedy="wait until it has ended",
        )
    reason = f"the raw run has no stop document and showed no sign of life for {older_than:g} s"
    return {"run_start": uid, "time": seen, "exit_status": "fail", "reason": reason}


class _Stored:
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
    raw = raw_for(run)
    provenance: Document = dict(run.start["provenance"])
    source = provenance["wasDerivedFrom"][0]
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
    recipe = Recipe.from_dict(provenance["recipe"])
    if denoiser is None:
        denoiser = Denoiser.pretrained(
            provenance["model"]["name"],
            device="cpu" if provenance["environment"]["device"] == "cpu" else "auto",
            threads=provenance["environment"]["threads"],
        )
    if denoiser.model.sha256 != recipe.model_sha256 or recipe.algorithm != ALGORITHM:
        raise SymDenoiseError(
            f"model {denoiser.model.name} ({denoiser.model.sha256[:12]}), algorithm {ALGORITHM}",
            rule=f"the run was made with {recipe.model_sha256[:12]} and algorithm {recipe.algorithm}",
            remedy=f"install version {provenance['wasAssociatedWith']['version']}",
        )
    image = np.asarray(raw[stream][key][index : index + 1])[0]
    events = run[stream]
    group = str(np.asarray(events[f"{key}_symmetry"].read())[index])
    if not group:
        raise SymDenoiseError(
            f"row {index}",
            rule="its frame was not denoised",
            remedy="the run's stop document says why; replay the raw run",
        )
    center = tuple(float(np.asarray(events[f"{key}_center_{axis}"].read())[index]) for axis in "yx")
    symmetry = Symmetry(group, None if np.isnan(center[0]) else (center[0], center[1]))
    row = denoised_row(
        denoiser,
        recipe,
        image,
        mask=_stored_array(run, stream, key, "mask", recipe.mask_sha256),
        exposure=_stored_array(run, stream, key, "exposure", recipe.exposure_sha256),
        symmetry=symmetry,
    )
    dims = (*(f"dim_{i}" for i in range(image.ndim - 2)), "y", "x")
    return xr.Dataset({"intensity": (dims, row.intensity), "sigma": (dims, row.sigma)})


def _stored_array(run: BlueskyRun, stream: str, key: str, name: str, sha256: str | None) -> NDArray[Any] | None:
    """The mask or exposure that a derived run was made with, from its own file, checked by its sha256."""
    if sha256 is None:
        return None
    import h5py
    from tiled.utils import path_from_uri

    asset = run[stream][key].data_sources()[0].assets[0]
    path = path_from_uri(asset.data_uri)
    try:
        with h5py.File(path, "r", swmr=True) as file:
            array: NDArray[Any] = file[f"entry/process/{name}"][()]
    except (OSError, KeyError) as error:
        raise SymDenoiseError(
            f"{name} of run {run.start['uid']}",
            rule=f"it cannot be read from {path} ({error})",
            remedy="run this where the derived run's files can be seen",
        ) from error
    if array_sha256(array) != sha256:
        raise SymDenoiseError(f"{name} in {path}", rule="its sha256 is not the recorded one", remedy="restore the file")
    return array
