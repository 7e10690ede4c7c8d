"""Commands for the administrator of a Tiled server."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from bluesky_symdenoise.cli.root import app

ServerUri = Annotated[str, typer.Argument(metavar="CATALOG_URI", help="Such as http://tiled.example.org:8000.")]


@app.command()
def doctor(
    uri: ServerUri,
    directory: Annotated[
        Path | None, typer.Option(help="Folder of denoised frames, if the container does not name it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False,
) -> None:
    """Check a Tiled server and this installation, with a remedy for each problem; the API key is TILED_API_KEY.

    Exit status: 0 without problems (warnings allowed), 1 with problems, 2 if the check could not be made.
    """
    from bluesky_symdenoise.catalog.server.doctor import examine

    findings = []
    for finding in examine(uri, api_key=os.environ.get("TILED_API_KEY"), directory=directory):
        findings.append(finding)
        if not as_json:
            remedy = f"; {finding.remedy}" if finding.remedy else ""
            typer.echo(f"{finding.verdict:<8}{finding.check}: {finding.said}{remedy}")
    if as_json:
        typer.echo(json.dumps([finding.to_dict() for finding in findings], indent=2))
    if any(finding.verdict == "problem" for finding in findings):
        raise typer.Exit(1)


@app.command()
def prepare(
    uri: ServerUri,
    frames: Annotated[
        Path, typer.Option(help="Folder of denoised frames: written here, in the server's readable_storage.")
    ],
    access_tag: Annotated[
        list[str] | None,
        typer.Option(
            help="Access tag of both containers, replacing theirs; for servers with an access policy. Repeatable."
        ),
    ] = None,
) -> None:
    """Make the containers `raw` and `denoised` on a Tiled server, and the folder; the API key is TILED_API_KEY."""
    from contextlib import closing

    import httpx
    from tiled.client import from_uri
    from tiled.client.context import CannotPrompt
    from tiled.client.utils import ClientError

    from bluesky_symdenoise.catalog.store.containers import prepare as prepare_root
    from bluesky_symdenoise.errors import SymDenoiseError

    try:
        client = from_uri(uri, api_key=os.environ.get("TILED_API_KEY"), trust_env=False)
        with closing(client.context.http_client):
            prepare_root(client, frames=frames, access_tags=access_tag or ())
    except (CannotPrompt, ClientError, httpx.HTTPError, RuntimeError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SymDenoiseError(
            uri,
            rule=f"the server refused or failed ({said})",
            remedy="set TILED_API_KEY, and run `symdenoise doctor` on it",
        ) from error
    typer.echo(f"{uri}: raw and denoised are there; denoised frames go to {frames.resolve()}")
    try:
        # Make parent folders for a local server only: those of a remote server may be on another computer.
        frames.mkdir(parents=httpx.URL(uri).host in ("localhost", "127.0.0.1", "::1"), exist_ok=True)
    except OSError as error:
        typer.echo(
            f"That folder cannot be made here ({error.strerror}): make it on the computer that denoises, "
            f"mkdir -p {frames.resolve()}"
        )
