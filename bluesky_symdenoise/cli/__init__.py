"""The command ``symdenoise``: parse, call, exit code. Nothing heavy is imported before a command runs."""

from __future__ import annotations

from typing import Any

import typer

from bluesky_symdenoise._garbage import end_quickly
from bluesky_symdenoise.cli import (
    adapt,
    benches,
    doctor,
    jobs,
    lazy,
    live,
    models,
    readout,
    replay,
    self_check,
    survey,
    symmetry,
)
from bluesky_symdenoise.cli.root import app
from bluesky_symdenoise.errors import SymDenoiseError


def main(arguments: list[str] | None = None) -> Any:
    """Run the command; an error that the user can fix becomes one line and exit status 2."""
    end_quickly()
    try:
        return app(arguments)
    except SymDenoiseError as error:
        typer.echo(f"symdenoise: {error}", err=True)
        raise SystemExit(2) from None


__all__ = [
    "adapt",
    "app",
    "benches",
    "doctor",
    "jobs",
    "lazy",
    "live",
    "main",
    "models",
    "readout",
    "replay",
    "self_check",
    "survey",
    "symmetry",
]
