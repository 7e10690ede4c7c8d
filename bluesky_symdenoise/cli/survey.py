"""Command that says what denoising runs or files would gain, before any of it is done."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from contextlib import ExitStack
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bluesky_symdenoise.cli.options import (
    Center,
    Device,
    ModelName,
    Noise,
    Raw,
    ReadoutFile,
    Symmetry,
    Threads,
)
from bluesky_symdenoise.cli.root import app
from bluesky_symdenoise.errors import SymDenoiseError

if TYPE_CHECKING:
    from bluesky_symdenoise.acquisition.past.survey import Surveyed
    from bluesky_symdenoise.selfcheck.worth import Worth


@app.command()
def survey(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="CATALOG_URI [RUN...] | FILE...",
            help="Files or glob patterns, one series each; or the URL of a catalogue and runs of it, as for replay.",
        ),
    ],
    since: Annotated[datetime | None, typer.Option(help="Runs that began after this, local time.")] = None,
    query: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Runs whose start document has this value; repeatable."),
    ] = None,
    plan: Annotated[str | None, typer.Option(help="Runs of this plan.")] = None,
    stream: Annotated[list[str] | None, typer.Option(help="Stream to look at; repeatable.")] = None,
    data_key: Annotated[list[str] | None, typer.Option(help="Image to look at; repeatable.")] = None,
    symmetry: Symmetry = "auto",
    beam_center: Center = None,
    noise: Noise = None,
    readout: ReadoutFile = None,
    raw: Raw = "raw",
    model: ModelName = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead of a table.")] = False,
) -> None:
    """Say what denoising would gain, alone and with photons of neighbouring frames, and how long it would take.

    Five frames of each are read. Without RUN and searching, all ended raw runs of the catalogue. Exit status 1:
    something could not be read.
    """
    from rich.console import Console

    from bluesky_symdenoise.acquisition.past.survey import ranked, surveyed
    from bluesky_symdenoise.denoiser.infer import Denoiser

    options = {
        "symmetry": symmetry,
        "beam_center": beam_center,
        "noise": noise,
        "readout": readout,
        "streams": stream,
        "data_keys": data_key,
    }
    given: Any = {name: value for name, value in options.items() if value is not None}
    with ExitStack() as stack:
        from_catalog = "://" in sources[0]
        if from_catalog:
            runs, failures = _runs(stack, sources, raw=raw, since=since, query=query, plan=plan)
        elif since or query or plan or stream or data_key:
            raise SymDenoiseError(
                "--since, --query, --plan, --stream, --data-key",
                rule="they choose among the runs of a catalogue, and files were named",
                remedy="give the URL of the catalogue first",
            )
        else:
            runs, failures = sources, []
        denoiser = Denoiser.pretrained(model, device=device, threads=threads)
        found = _followed(surveyed(runs, denoiser=denoiser, **given), len(runs))
    rows = ranked([*found, *failures])
    if as_json:
        typer.echo(json.dumps([each.to_dict() for each in rows], indent=2))
    else:
        Console().print(_table(rows))
        typer.echo(LEGEND)
    if any(str(each.failure).startswith("not readable") for each in rows):
        raise typer.Exit(1)


LEGEND = (
    "alone, borrowed: exposure of a raw frame with the same squared error, in units of half the frame's own, and in "
    "brackets nat/pixel above a Gaussian filter, by held-out photons in a window; borrowed: with four neighbours."
)


def _runs(
    stack: ExitStack,
    sources: list[str],
    *,
    raw: str,
    since: datetime | None,
    query: list[str] | None,
    plan: str | None,
) -> tuple[list[Any], list[Surveyed]]:
    """Return the runs of a catalogue that are named or searched for, and rows for those that are not there."""
    from bluesky_symdenoise.acquisition.past.survey import Surveyed
    from bluesky_symdenoise.cli.catalog import opened
    from bluesky_symdenoise.cli.replay import all_named, searched

    uri, *names = sources
    if names and (since or query or plan):
        raise SymDenoiseError(
            "the runs to survey",
            rule="runs are either named or searched for",
            remedy="give RUN..., or --since, --query and --plan",
        )
    client = stack.enter_context(opened(uri, raw=raw, denoised=raw))
    if names:
        found, unknown = all_named(client[raw], names)
        return found, [Surveyed(each.uid, failure=f"not readable: {each.result}") for each in unknown]
    after = None if since is None else since.timestamp()
    return list(searched(client[raw], query or [], plan, after, unfinished=False)), []


def _followed(rows: Iterable[Surveyed], number: int) -> list[Surveyed]:
    """Return the rows, with a bar on terminals while they are made."""
    import sys

    from rich.progress import track

    return list(track(rows, total=number, description="surveying", disable=not sys.stderr.isatty()))


def _table(rows: list[Surveyed]) -> Any:
    from rich.table import Table

    table = Table()
    table.add_column("run or files", overflow="fold")
    for name in ("frames", "size", "counts?", "per pixel", "symmetry", "alone", "borrowed", "minutes", "GB"):
        table.add_column(name, justify="left" if name in ("counts?", "symmetry") else "right")
    for row in rows:
        said = row.failure or row.counts
        minutes = "" if math.isnan(row.minutes) else f"{row.minutes:.2g} / {row.minutes_borrowed:.2g}"
        table.add_row(
            row.name,
            str(row.frames or ""),
            "x".join(map(str, row.shape)) if row.frames else "",
            said,
            "" if math.isnan(row.level) else f"{row.level:.3g}",
            row.symmetry,
            _worth(row.alone),
            _worth(row.borrowed),
            minutes,
            "" if math.isnan(row.gigabytes) else f"{row.gigabytes:.2g}",
        )
    return table


def _worth(found: Worth | None) -> str:
    return "" if found is None else f"{found.exposure:.3g} ({found.above_gaussian:+.2g})"
