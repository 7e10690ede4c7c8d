"""Commands for derived runs that are computed when they are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from bluesky_symdenoise.cli.catalog import opened
from bluesky_symdenoise.cli.options import (
    Algorithm,
    Borrow,
    BorrowReach,
    Center,
    ModelName,
    Noise,
    ReadoutFile,
    Symmetry,
)
from bluesky_symdenoise.cli.root import app
from bluesky_symdenoise.errors import SymDenoiseError

if TYPE_CHECKING:
    from tiled.client.container import Container

Catalog = Annotated[
    str,
    typer.Argument(
        metavar="CATALOG_URI", help="URL of the server whose root holds raw and denoised; TILED_API_KEY opens it."
    ),
]
Runs = Annotated[list[str], typer.Argument(metavar="RUN...", help="Uids, or their first eight characters or more.")]


@app.command()
def register(
    catalog: Catalog,
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN...", help="Uids, or their first eight characters or more; with --renew none: all."),
    ] = None,
    symmetry: Symmetry = "auto",
    beam_center: Center = None,
    noise: Noise = None,
    readout: ReadoutFile = None,
    borrow: Borrow = None,
    borrow_reach: BorrowReach = None,
    model: ModelName = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads, here and when frames are read.")] = None,
    algorithm: Algorithm = None,
    renew: Annotated[
        bool,
        typer.Option(
            "--renew",
            help="Register lazy runs of an older algorithm or weights again, beside them and with their settings.",
        ),
    ] = False,
    delete_older: Annotated[
        bool, typer.Option("--delete-older", help="With --renew: delete each older run when the newer one can be read.")
    ] = False,
) -> None:
    """Write denoised runs of raw RUNs that store no pixels: the server denoises frames when they are read.

    A RUN with a complete one of the same settings and model of before an upgrade is left alone. Exit status 1: a run
    could not be renewed.
    """
    from bluesky_symdenoise.acquisition.lazy.register import made_with, older_complete
    from bluesky_symdenoise.acquisition.lazy.register import register as register_run
    from bluesky_symdenoise.acquisition.request.request import Request
    from bluesky_symdenoise.catalog.store.containers import run_in
    from bluesky_symdenoise.denoiser.infer import Denoiser

    given = {
        "symmetry": symmetry,
        "beam_center": beam_center,
        "noise": noise,
        "readout": readout,
        "borrow": borrow,
        "borrow_reach": borrow_reach,
    }
    if renew and any(value not in (None, "auto") for value in given.values()):
        raise SymDenoiseError(
            "--renew with settings of images",
            rule="a run is renewed with the settings that it has",
            remedy="leave out --symmetry, --beam-center, --noise, --readout and --borrow",
        )
    if not runs and not renew:
        raise SymDenoiseError("no RUN", rule="the raw runs are named", remedy="give their uids")
    if delete_older and not renew:
        raise SymDenoiseError("--delete-older", rule="it goes with --renew", remedy="give both, or neither")
    with opened(catalog) as client:
        if renew:
            _renew(client, runs, model=model, threads=threads, algorithm=algorithm, delete=delete_older)
            return
        denoiser = Denoiser.pretrained(model, threads=threads, algorithm=algorithm)
        recipe = Request.asked(activity="register", denoiser=denoiser, **given).recipe  # type: ignore[arg-type]
        for uid in runs or ():
            raw = run_named(client, "raw", uid)
            before = older_complete(client["denoised"], raw, recipe, model=denoiser.model.name)
            if model is not None:
                # Other weights of a model that was named are no upgrade.
                before = [each for each in before if each.start["provenance"]["model"]["sha256"] == recipe.model_sha256]
            there = run_in(client["denoised"], recipe.derived_uid(raw.start["uid"])) is not None
            if before and algorithm is None and not there:
                kept = f"{before[0].start['uid']} ({made_with(before[0])})"
                typer.echo(f"{uid}: left alone, has {kept} with the same settings; --renew registers a newer one")
                continue
            made = register_run(raw, client["denoised"], denoiser=denoiser, **given)  # type: ignore[arg-type]
            typer.echo(f"{uid}: {made.start['uid']}")


def _renew(
    client: Container,
    runs: list[str] | None,
    *,
    model: str | None,
    threads: int | None,
    algorithm: str | None,
    delete: bool,
) -> None:
    """Renew the lazy runs of these raw runs, or all, one after another, and say what was done."""
    from bluesky_symdenoise.acquisition.lazy.renew import delete_older, lazy_runs, present_denoiser, renew
    from bluesky_symdenoise.denoiser.infer import Denoiser

    denoised, failed = client["denoised"], 0
    raws = [None] if not runs else [run_named(client, "raw", uid).start["uid"] for uid in runs]
    older = [run for raw_uid in raws for run in lazy_runs(denoised, raw_uid)]
    chosen = None if model is None else Denoiser.pretrained(model, threads=threads, algorithm=algorithm)
    for run in older:
        try:
            denoiser = chosen or present_denoiser(run, threads=threads, algorithm=algorithm)
            renewed = renew(run, denoiser=denoiser)
            if renewed.newer is run and not runs:
                continue
            said = str(delete_older(renewed) if delete else renewed)
        except SymDenoiseError as error:
            failed += 1
            said = f"{run.start['uid']} is not renewed: {error}"
        typer.echo(f"{run.start['raw_uid']}: {said}")
    typer.echo(f"{len(older) - failed} of {len(older)} lazy runs are up to date or renewed")
    if failed:
        raise typer.Exit(1)


@app.command()
def evict(catalog: Catalog, runs: Runs) -> None:
    """Delete the stored pixels of denoised RUNs, after checking that they can be computed again bit for bit."""
    from bluesky_symdenoise.acquisition.lazy.convert import evict as evict_run

    with opened(catalog) as client:
        for uid in runs:
            typer.echo(f"{uid}: {evict_run(run_named(client, 'denoised', uid))} bytes freed")


@app.command()
def materialize(catalog: Catalog, runs: Runs) -> None:
    """Compute and store the pixels of lazy denoised RUNs: the inverse of evict."""
    from bluesky_symdenoise.acquisition.lazy.convert import materialize as materialize_run

    with opened(catalog) as client:
        for uid in runs:
            typer.echo(f"{uid}: {materialize_run(run_named(client, 'denoised', uid))} bytes written")


def run_named(client: Container, part: str, uid: str) -> Any:
    """Return the one run in ``raw`` or ``denoised`` whose uid is this, or begins with it."""
    from bluesky_tiled_plugins.queries import PartialUID

    found = client[part].search(PartialUID(uid)).keys()[:2] if len(uid) >= 8 else []
    if len(found) != 1:
        raise SymDenoiseError(
            f"run {uid!r}", rule=f"{len(found) or 'no'} uids in {part!r} begin with it", remedy="give the whole uid"
        )
    return client[part][found[0]]
