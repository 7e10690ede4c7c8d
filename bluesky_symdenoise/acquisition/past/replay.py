"""Replay of stored runs through the same code path as live ones."""

from __future__ import annotations

import logging
import sys
import time as clock
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from bluesky_symdenoise._renamed import rows_from
from bluesky_symdenoise.acquisition.cluster.distributed import cluster_denoiser
from bluesky_symdenoise.acquisition.deliver.claim import Claim
from bluesky_symdenoise.acquisition.deliver.outlet import straight_to_tiled
from bluesky_symdenoise.acquisition.derive.run import run_denoiser
from bluesky_symdenoise.acquisition.past.forecast import COMPLETE, Forecast, forecast
from bluesky_symdenoise.acquisition.past.in_memory import denoised_when_read
from bluesky_symdenoise.acquisition.request.images import image_keys
from bluesky_symdenoise.acquisition.request.options import Options
from bluesky_symdenoise.acquisition.request.request import Request, Work
from bluesky_symdenoise.acquisition.runs.ahead import Ahead
from bluesky_symdenoise.acquisition.runs.databroker import tiled_run
from bluesky_symdenoise.acquisition.runs.stored import StoredRun, TiledRun, drive, raw_only, stored_run
from bluesky_symdenoise.catalog.store.containers import run_in
from bluesky_symdenoise.catalog.store.journal import finished
from bluesky_symdenoise.errors import SymDenoiseError

if TYPE_CHECKING:
    import xarray as xr
    from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRun
    from distributed import Client
    from tiled.client.container import Container

    from bluesky_symdenoise.acquisition.request.place import Place
    from bluesky_symdenoise.denoiser.infer import Denoiser

log = logging.getLogger("bluesky_symdenoise")

Document = dict[str, Any]

#: Number of rows whose documents are sent at a time.
BATCH = 100


def replay(
    run: BlueskyRun | str | Path | Iterable[tuple[str, Document]],
    *,
    into: Container | None = None,
    denoiser: Denoiser | None = None,
    directory: str | Path | Place | None = None,
    rows: slice | range | Sequence[int] | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: bool | None = None,
    scheduler: Client | None = None,
    frames: slice | range | Sequence[int] | None = None,
    **options: Unpack[Options],
) -> BlueskyRun | xr.Dataset | Forecast:
    """Denoise a stored run: lazily in memory, or into a catalogue as if it had been denoised live.

    In a catalogue, a derived run of the same recipe is returned as it is if it is complete. One that was interrupted,
    by Ctrl-C or a crash, or has frames that failed, is replaced; its finished rows are taken over. `denoiser`
    and `directory` are those of `bluesky_symdenoise.DenoiseCallback`.

    Parameters
    ----------
    run
        A finished raw run: a run of a Tiled catalogue; a Header or run of databroker; the path of a document backup in
        JSON Lines, as TiledWriter's ``backup_directory`` has them; or (name, document) pairs, start first.
    into
        Catalogue for derived runs, ``client["denoised"]``. None: nothing is written.
    rows
        Rows of each stream that are wanted, counted from 0, in the order of the run and each once; those of a list must
        be there, while a slice or a range may go beyond the end. Such a part of a run has another recipe and uid than
        the whole; each of its frames is bit for bit as in the whole. `denoised_for(..., rows=rows)` finds it again.
    force
        Make a complete derived run again: the one that is there is deleted first.
    dry_run
        Only say what would be done: one frame is denoised, nothing is written.
    progress
        Whether to draw a bar; by default in notebooks and on terminals.
    scheduler
        Client of a Dask cluster (`dask.distributed.Client`) whose workers read the raw frames, from files where they
        see them and else through Tiled, and denoise them; with `into` only, and for runs of a Tiled catalogue. The
        derived run is bit for bit the one without, at equal device and threads: those of the denoiser, or, if it does
        not say, of each worker. Where tasks run is decided by the ordinary means of Dask, such as
        ``dask.annotate(resources={"GPU": 1})``; with a device ``auto`` a worker takes the GPU that it sees, which
        dask-cuda makes one each. Workers need the folder of the derived files, the model under its sha256, and this
        version of the package; they are given this client's Tiled key, so use TLS between computers.
    frames
        Former name of `rows`, accepted for one release.
    **options
        `mask`, `exposure`, `symmetry`, `beam_center`, `streams`, `data_keys`, `borrow`, `beamline`, `analysis`: see
        `bluesky_symdenoise.acquisition.request.options.Options`.

    Returns
    -------
    BlueskyRun
        The derived run, with `into`.
    xarray.Dataset
        Without: what `bluesky_symdenoise.aligned` gives for raw and derived run, of the stream ``primary`` or the one
        in `streams`, with all images as dask arrays of one frame a chunk. A frame is read and denoised when it is
        computed, and rounded as a stored one: both are the same bit for bit.
    Forecast
        With `dry_run`.

    Raises
    ------
    SymDenoiseError
        If the run has no image or no stop document, or a living process writes its derived run of this recipe.
    """
    rows = rows_from(rows, frames)
    if into is None:
        if scheduler is not None:
            raise SymDenoiseError(
                "scheduler= without into=",
                rule="a Dataset is computed by the threads of the process that uses it",
                remedy="give into=..., or leave out the scheduler",
            )
        held = tiled_run(run)
        asked = Request.asked(
            activity="replay",
            denoiser=denoiser,
            rows=rows,
            raw=None if held is None else held.parent,
            **options,
        )
        stored = raw_only(stored_run(run))
        if dry_run:
            _refuse_missing_rows(stored, asked)
            return forecast(stored, asked, state="computed when it is read", compressed=False)
        return denoised_when_read(stored, asked)
    work = Work.planned(into, activity="replay", denoiser=denoiser, directory=directory, rows=rows, **options)
    stored = raw_only(stored_run(run, columns=work.beamline.columns))
    if dry_run:
        return planned(stored, work, force=force)
    with progress_bar(stored, work, progress) as advance:
        return replay_with(work, stored, force=force, finished_frame=advance, scheduler=scheduler)


def replay_with(
    work: Work,
    run: StoredRun,
    *,
    older_than: float | None = None,
    force: bool = False,
    finished_frame: Callable[[str | None], None] = lambda _: None,
    scheduler: Client | None = None,
) -> BlueskyRun:
    """Denoise a stored run into a catalogue as planned; see `replay`.

    Parameters
    ----------
    older_than
        Seconds without a sign of life after which a run without a stop document counts as ended.
    finished_frame
        Called after each frame has been written: with None, or with the reason why it is NaN. If it raises, the run
        is left unfinished, and the next replay continues with its rows.
    scheduler
        Client of the Dask cluster that denoises; None: this process does.

    Raises
    ------
    NothingToDenoiseError
        If the run has no image that was asked for.
    HeldError
        If a living process writes the derived run.
    SymDenoiseError
        If the run cannot be denoised for another reason.
    """
    claim = Claim(raw_stop=run.stop, older_than=older_than, force=force)
    existing = derived_already(run, work, claim)
    if existing is not None:
        return existing
    _refuse_missing_rows(run, work)
    stop = _ended(run, older_than)
    outlet = straight_to_tiled(claim, batch_size=BATCH)
    if scheduler is None:
        ahead = (lambda descriptor: Ahead(run.frames(descriptor))) if isinstance(run, TiledRun) else run.frames
        pipeline = run_denoiser(work, source=ahead, finished_frame=finished_frame, outlet=outlet)
    else:
        pipeline = cluster_denoiser(work, run, scheduler, finished_frame=finished_frame, outlet=outlet)
    drive(pipeline, run, stop=lambda: stop or run.stop or _assumed_stop(run, older_than))
    try:
        work.refuse_missing(pipeline.held)
    except SymDenoiseError as error:
        # If the run was given as documents, the number of rows is known only now, when the work is done.
        log.warning("run %s: %s", run.start["uid"][:8], error)
    return work.container[pipeline.derived_uid]


def _refuse_missing_rows(run: StoredRun, asked: Request) -> None:
    """Refuse, before anything is written, rows that are known to be missing."""
    if isinstance(run, TiledRun):
        streams = [each for each in run.streams.values() if image_keys(each.descriptor, asked.recipe)]
        dark = asked.beamline.dark_stream
        held = {each.descriptor["name"]: each.rows for each in streams if each.descriptor["name"] != dark}
        if held:
            asked.refuse_missing(held)


def derived_already(run: StoredRun, work: Work, claim: Claim) -> BlueskyRun | None:
    """Return the derived run of this work if it exists and is complete.

    Raises
    ------
    SymDenoiseError
        If the run is not a raw run.
    """
    existing = run_in(work.container, work.recipe.derived_uid(raw_only(run).start["uid"]))
    return existing if existing is not None and claim.stands(existing) else None


def planned(run: StoredRun, work: Work, *, older_than: float | None = None, force: bool = False) -> Forecast:
    """Return what `replay_with` would do; raise where it would refuse."""
    was = state(run, work)
    if was == COMPLETE and not force:
        return forecast(run, work, state=was, compressed=True)
    _refuse_missing_rows(run, work)
    _ended(run, older_than)
    uid = work.recipe.derived_uid(run.start["uid"])
    kept = finished(
        work.folder_named(run.start)[0] / f"{uid}.journal",
        made_with={"recipe_sha256": work.recipe.sha256, "environment": work.environment},
    )
    said = f"{COMPLETE}, to be made again" if was == COMPLETE else was
    found = forecast(run, work, state=said, compressed=True, kept=kept)
    # If the run was given as documents, they have been read by now, and the stop document is known.
    _ended(run, older_than)
    return found


def state(run: StoredRun, work: Work) -> str:
    """Return the state of the derived run, in words."""
    existing = run_in(work.container, work.recipe.derived_uid(raw_only(run).start["uid"]))
    if existing is None:
        return "not denoised"
    if Claim(raw_stop=run.stop).stands(existing):
        return COMPLETE
    return "frames failed or are missing" if existing.metadata.get("stop") else "interrupted"


def _ended(run: StoredRun, older_than: float | None) -> Document | None:
    """Return the stop document, or the assumed one; None if it is known only after the documents have been read."""
    return _assumed_stop(run, older_than) if run.stop is None and run.last_seen is not None else run.stop


def _assumed_stop(run: StoredRun, older_than: float | None) -> Document:
    """Return the stop document of a run whose writer died before it wrote one."""
    uid, seen = run.start["uid"], run.last_seen or run.start["time"]
    if older_than is None:
        raise SymDenoiseError(
            f"run {uid}",
            rule="it has no stop document yet",
            remedy="replay it when it has ended; if its writer died, use `symdenoise replay --older-than HOURS`",
        )
    if clock.time() - seen < older_than:
        raise SymDenoiseError(
            f"run {uid}",
            rule=f"it has no stop document, and its last sign of life is {clock.time() - seen:.0f} s ago",
            remedy="wait until it has ended",
        )
    reason = f"the raw run has no stop document and showed no sign of life for {older_than:g} s"
    return {"run_start": uid, "time": seen, "exit_status": "fail", "reason": reason}


@contextmanager
def progress_bar(run: StoredRun, work: Work, wanted: bool | None) -> Iterator[Callable[[str | None], None]]:
    """Draw a bar that counts images; the yielded function is called after each image."""
    if not (_somebody_looks() if wanted is None else wanted):
        yield lambda _: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=run.images(work), unit="image", desc=f"run {run.start['uid'][:8]}") as bar:
        yield lambda _: bar.update() and None


def _somebody_looks() -> bool:
    """Return whether output goes to a terminal or a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return sys.stderr.isatty() or hasattr(shell, "kernel")
