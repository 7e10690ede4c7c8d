"""Renewal of lazy runs after an upgrade: registration beside them, with their own settings and newer pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tiled.client.utils import ClientError
from tiled.queries import Key, SpecsQuery

from bluesky_symdenoise.acquisition.derive.recorded import Recorded
from bluesky_symdenoise.acquisition.lazy.register import made_with, registered
from bluesky_symdenoise.acquisition.request.earlier import same_settings
from bluesky_symdenoise.acquisition.request.options import ImageOptions
from bluesky_symdenoise.acquisition.request.request import Work
from bluesky_symdenoise.catalog.find.query import SPEC, raw_for
from bluesky_symdenoise.catalog.store.containers import run_in
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.denoiser.released import older_than
from bluesky_symdenoise.derived.columns import computed_when_read, denoised_images
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.neighbours.window import Borrow
from bluesky_symdenoise.recipe import Recipe

if TYPE_CHECKING:
    from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRun
    from tiled.client.container import Container


@dataclass(frozen=True)
class Renewed:
    """What became of a lazy run.

    Attributes
    ----------
    older
        The run.
    newer
        Run of the same settings with the newer algorithm and weights; `older` itself if that has these.
    made
        Whether `newer` was registered now, and not before.
    deleted
        Whether `older` was deleted.
    """

    older: BlueskyRun
    newer: BlueskyRun
    made: bool
    deleted: bool = False

    def __str__(self) -> str:
        if self.newer is self.older:
            return f"{self.older.start['uid']} is up to date ({made_with(self.older)}): nothing to do"
        did = "is registered" if self.made else "was registered before"
        kept = "which is deleted" if self.deleted else "which stays"
        return (
            f"{self.newer.start['uid']} {did} ({made_with(self.newer)}); it is newer than "
            f"{self.older.start['uid']} ({made_with(self.older)}), {kept}"
        )


def renew(run: BlueskyRun, *, denoiser: Denoiser | None = None, directory: str | Path | None = None) -> Renewed:
    """Register the raw run of a lazy run again, with the same settings, the newest algorithm and present weights.

    The lazy run stays as it is, beside the newer one; `delete_older` deletes it.

    Parameters
    ----------
    run
        A lazy run. This computer must see its mask and exposure, and the raw files.
    denoiser
        By default the model of the same name with its present weights, on the device and threads of the run.
    directory
        Folder for a mask and an exposure; by default the one for derived frames.

    Raises
    ------
    SymDenoiseError
        If the run stores its pixels, or is not older, or has columns that registration cannot make, or the server
        cannot serve the new one.
    """
    if not computed_when_read(run.metadata.get("stop") or {}):
        raise SymDenoiseError(
            f"derived run {run.start['uid']}",
            rule="it is not lazy, or not complete",
            remedy="make runs with stored pixels again with `symdenoise replay`",
        )
    denoiser = denoiser or present_denoiser(run)
    stored = run.start["provenance"]["recipe"]
    if (stored["algorithm"], stored["model_sha256"]) == (denoiser.algorithm, denoiser.model.sha256):
        return Renewed(run, run, made=False)
    if stored["algorithm"] != denoiser.algorithm and not older_than(stored["algorithm"], denoiser.algorithm):
        raise SymDenoiseError(
            f"lazy run {run.start['uid']} of algorithm {stored['algorithm']!r}",
            rule=f"it is not older than algorithm {denoiser.algorithm}",
            remedy="install the version of bluesky-symdenoise that made it, or a newer one",
        )
    raw = raw_for(run)
    options = _options(run, raw)
    work = Work.planned(run.parent, activity="register", denoiser=denoiser, directory=directory, **options)
    if not same_settings(stored, work.recipe):
        raise SymDenoiseError(
            f"lazy run {run.start['uid']}",
            rule="its recipe has settings that registration cannot give, such as columns of an analysis",
            remedy="replay the raw run with these, then `symdenoise evict` it",
        )
    newer, made = registered(raw, work)
    return Renewed(run, newer, made=made)


def present_denoiser(run: BlueskyRun, *, threads: int | None = None, algorithm: str | None = None) -> Denoiser:
    """Return the model of a derived run with the weights that its name has now, on the run's device and threads."""
    environment = run.start["provenance"]["environment"]
    return Denoiser.pretrained(
        run.start["provenance"]["model"]["name"],
        device="cpu" if environment["device"] == "cpu" else "auto",
        threads=threads or environment["threads"],
        algorithm=algorithm,
    )


def delete_older(renewed: Renewed) -> Renewed:
    """Delete the older run where there is a newer one; raw files and files of arrays stay.

    Raises
    ------
    SymDenoiseError
        If the server cannot read the newer one. The older one then stays.
    """
    if renewed.newer is renewed.older:
        return renewed
    _refuse_unreadable(renewed.newer)
    renewed.older.delete(recursive=True, external_only=False)
    return replace(renewed, deleted=True)


def _refuse_unreadable(run: BlueskyRun) -> None:
    """Read a pixel of the last row of each image."""
    for stream in run:
        for key in denoised_images(list(run[stream])):
            array = run[stream][key]
            corner = (slice(array.shape[0] - 1, array.shape[0]), *(slice(0, 1) for _ in array.shape[1:]))
            try:
                array[corner]
            except ClientError as error:
                raise SymDenoiseError(
                    f"{stream}/{key} of run {run.start['uid']}",
                    rule=f"the server cannot read it ({str(error).splitlines()[0]})",
                    remedy="see the server's log, then renew again: the older run stays",
                ) from error


def _options(run: BlueskyRun, raw: BlueskyRun) -> ImageOptions:
    """Return the settings of a lazy run as they were given to `register`."""
    recipe = Recipe.from_dict(run.start["provenance"]["recipe"])
    source = run.start["provenance"]["wasDerivedFrom"][0]
    borrow = None if recipe.borrow is None else Borrow.from_text(recipe.borrow)
    recorded = Recorded(run, raw, recipe, stream=source["stream"], key=source["data_key"])
    return ImageOptions(
        mask=None if recipe.mask_sha256 is None else recorded.mask,
        exposure=recorded.exposure,
        symmetry=recipe.symmetry,
        beam_center=recipe.beam_center,
        noise=recipe.noise,
        readout=recorded.readout,
        streams=recipe.streams,
        data_keys=recipe.data_keys,
        **({} if borrow is None else {"borrow": borrow.side, "borrow_reach": borrow.reach}),
    )


def lazy_runs(denoised: Container, raw_uid: str | None = None) -> Iterator[BlueskyRun]:
    """Yield the lazy runs of a raw run, or all of them, oldest first."""
    found = denoised if raw_uid is None else denoised.search(Key("start.raw_uid") == raw_uid)
    found = found.search(SpecsQuery([SPEC])).search(Key("stop.provenance.bytes") == 0)
    # List first: those that are registered meanwhile would shift the pages.
    uids = [each["value"] for each in found.distinct("start.uid")["metadata"]["start.uid"]]
    runs = (run for uid in uids if (run := run_in(denoised, uid)) is not None)
    lazy = (run for run in runs if computed_when_read(run.metadata.get("stop") or {}))
    yield from sorted(lazy, key=lambda run: float(run.start["time"]))
