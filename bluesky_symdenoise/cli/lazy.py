"""Commands for derived runs that are computed when they are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from bluesky_symdenoise.cli.catalog import opened
from bluesky_symdenoise.cli.options import Center, ModelName, Noise, ReadoutFile, Symmetry
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
    runs: Runs,
    symmetry: Symmetry = "auto",
    beam_center: Center = None,
    noise: Noise = None,
    readout: ReadoutFile = None,
    model: ModelName = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads, here and when frames are read.")] = None,
) -> None:
    """Write denoised runs of raw RUNs that store no pixels: the server denoises frames when they are read."""
    from bluesky_symdenoise.acquisition.lazy.register import register as register_run
    from bluesky_symdenoise.denoiser.infer import Denoiser

    denoiser = Denoiser.pretrained(model, threads=threads)
    with opened(catalog) as client:
        for uid in runs:
            raw = run_named(client, "raw", uid)
            made = register_run(
                raw,
                client["denoised"],
                denoiser=denoiser,
                symmetry=symmetry,
                beam_center=beam_center,
                noise=noise,
                readout=readout,
            )
            typer.echo(f"{uid}: {made.start['uid']}")


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
