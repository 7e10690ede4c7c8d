"""Stored runs through the same path as live ones, and single frames computed again from their provenance."""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from bluesky_symdenoise.acquisition.beamline import Beamline
from bluesky_symdenoise.acquisition.claim import Claim
from bluesky_symdenoise.acquisition.frames import StoredFrames
from bluesky_symdenoise.acquisition.outlet import straight_to_tiled
from bluesky_symdenoise.acquisition.plan import Work
from bluesky_symdenoise.acquisition.recorded import Recorded
from bluesky_symdenoise.acquisition.run import RunDenoiser
from bluesky_symdenoise.catalog.query import raw_for
from bluesky_symdenoise.catalog.row import Row, denoised_row
from bluesky_symdenoise.denoiser.identity import ALGORITHM
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.symmetry import Symmetry
from bluesky_symdenoise.recipe import Recipe

if TYPE_CHECKING:
    from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRun
    from tiled.client.container import Container

    from bluesky_symdenoise.acquisition.place import Place
    from bluesky_symdenoise.denoiser.infer import Denoiser

Document = dict[str, Any]


def replay(
    run: BlueskyRun,
    into: Container,
    *,
    denoiser: Denoiser | None = None,
    directory: str | Path | Place | None = None,
    mask: ArrayLike | None = None,
    exposure: ArrayLike | None = None,
    symmetry: str = "auto",
    beam_center: Sequence[float] | None = None,
    streams: Sequence[str] | None = None,
    data_keys: Sequence[str] | None = None,
    beamline: Beamline | None = None,
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
        beamline=beamline,
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
    claim = Claim(raw_stop=run.metadata.get("stop"), older_than=older_than)
    existing = derived_already(run, work, claim)
    if existing is not None:
        return existing
    stored = stored_streams(run, work.beamline)
    stop = claim.raw_stop or _assumed_stop(run, stored.values(), older_than)
    pipeline = RunDenoiser(
        work,
        source=lambda descriptor: stored[descriptor["uid"]].frames(),
        finished_frame=finished_frame,
        outlet=straight_to_tiled(claim),
    )
    drive(pipeline, run, stored.values(), stop=stop)
    return work.container[pipeline.derived_uid]


def derived_already(run: BlueskyRun, work: Work, claim: Claim) -> BlueskyRun | None:
    """The derived run of this work, if it is there and whole.

    Raises
    ------
    SymDenoiseError
        If the run is no raw run.
    """
    uid = run.start["uid"]
    if "raw_uid" in run.start:
        raise SymDenoiseError(f"run {uid}", rule="it is denoised already", remedy="give its raw run, raw_for(run)")
    uid = work.recipe.derived_uid(uid)
    return existing if uid in work.container and claim.stands(existing := work.container[uid]) else None


def drive(pipeline: RunDenoiser, run: BlueskyRun, streams: Collection[StoredStream], *, stop: Document) -> None:
    """Give a pipeline the documents of a stored run, with its access tags and this stop document.

    Raises
    ------
    NothingToDenoiseError
        If the run has no image that was asked for.
    """
    start = dict(run.start)
    if run.access_tags:
        start["tiled_access_tags"] = list(run.access_tags)
    pipeline.start(start)
    try:
        for stream in streams:
            pipeline.descriptor(stream.descriptor)
        if pipeline.derived_uid is None:
            raise NothingToDenoiseError(
                f"run {start['uid']}",
                rule=f"no stream of {', '.join(run) or 'none'} holds a 2D image that was asked for",
                remedy="check streams and data_keys",
            )
        # In the order of the run, for a dark belongs to the images after it.
        for event in sorted((event for stream in streams for event in stream.events()), key=_moment):
            pipeline.event(event)
        pipeline.stop(stop)
    finally:
        if not pipeline.closed:
            pipeline.leave()


def _assumed_stop(run: BlueskyRun, streams: Collection[StoredStream], older_than: float | None) -> Document:
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


def stored_streams(run: BlueskyRun, beamline: Beamline) -> dict[str, StoredStream]:
    """The streams of a stored run by the uid of their first descriptor: one configured anew has several."""
    first = {descriptor["name"]: descriptor for descriptor in reversed(list(run.descriptors))}
    return {descriptor["uid"]: StoredStream(run, descriptor, beamline) for descriptor in first.values()}


def _moment(event: Document) -> float:
    return float(event["time"])


class StoredStream:
    """Events and frames of one stream of a stored run."""

    def __init__(self, run: BlueskyRun, descriptor: Document, beamline: Beamline) -> None:
        self.descriptor = descriptor
        self._stream = run[descriptor["name"]]
        self._beamline = beamline
        self._held = set(self._stream)

    def _column(self, name: str) -> list[Any]:
        return list(np.asarray(self._stream[name].read()).tolist()) if name in self._held else []

    @property
    def seq_nums(self) -> list[int]:
        """Of its events."""
        return [int(number) for number in self._column("seq_num")]

    @property
    def times(self) -> list[float]:
        """Of its events."""
        return [float(moment) for moment in self._column("time")]

    def events(self) -> list[Document]:
        """Event documents with the columns that the images' settings need; none for a stream without events."""
        names = set[str]().union(*(self._beamline.columns(key) for key in self.descriptor["data_keys"])) & self._held
        columns = {name: self._column(name) for name in sorted(names)}
        return [
            {
                "descriptor": self.descriptor["uid"],
                "seq_num": seq_num,
                "time": time,
                "data": {name: column[row] for name, column in columns.items()},
            }
            for row, (seq_num, time) in enumerate(zip(self.seq_nums, self.times, strict=True))
        ]

    def frames(self) -> StoredFrames:
        """Source of the images; rows without events are numbered after those that have one."""
        numbers = self.seq_nums
        external = (key for key, value in self.descriptor["data_keys"].items() if "external" in value)
        rows = max((self._stream[key].shape[0] for key in external if key in self._held), default=0)
        last = max(numbers, default=0)
        numbers += range(last + 1, last + 1 + rows - len(numbers))
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
    from bluesky_symdenoise.denoiser.infer import Denoiser

    provenance: Document = dict(run.start["provenance"])
    return Denoiser.pretrained(
        provenance["model"]["name"],
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
        self._recorded = Recorded(run, raw_for(run), recipe, stream=stream, key=key)
        self.mask, self.exposure = self._recorded.mask(), self._recorded.exposure()
        events = run[stream]
        named = np.asarray(events[f"{key}_symmetry"].read()).tolist()
        self.groups = [group.decode() if isinstance(group, bytes) else str(group) for group in named]
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
        symmetry = Symmetry(self.groups[index], self.centers[index])
        mask, background = self._recorded.with_dark(self.denoiser, index, symmetry)
        return denoised_row(
            self.denoiser,
            self.recipe,
            image,
            mask=mask,
            exposure=self.exposure,
            symmetry=symmetry,
            background=background,
        )
