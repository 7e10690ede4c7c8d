"""Command that prints what the denoiser was worth on a run."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from bluesky_symdenoise.cli.catalog import opened
from bluesky_symdenoise.cli.lazy import Catalog, Runs, run_named
from bluesky_symdenoise.cli.root import app


@app.command("self-check")
def self_check(
    catalog: Catalog,
    runs: Runs,
    anew: Annotated[
        bool, typer.Option("--anew", help="Compute it from the raw run, also for runs without one; nothing is stored.")
    ] = False,
    methods: Annotated[
        bool, typer.Option("--methods", help="Print a paragraph for the methods section of a paper instead.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each run instead.")] = False,
) -> None:
    """Print what the denoiser was worth on denoised RUNs, by photons that it did not see."""
    from bluesky_symdenoise.selfcheck.words import methods_paragraph

    with opened(catalog) as client:
        for number, uid in enumerate(runs):
            run = run_named(client, "denoised", uid)
            if anew:
                from bluesky_symdenoise.acquisition.past.self_check import self_check as computed

                check = computed(run)
            else:
                check = run.self_check
            if as_json:
                typer.echo(json.dumps({"uid": run.start["uid"], **check.to_dict()}))
                continue
            if number:
                typer.echo()
            typer.echo(methods_paragraph(run.start, check) if methods else f"run {run.start['uid']}\n{check}")
