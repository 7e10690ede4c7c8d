"""The main command, and the options that several of its commands share."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from bluesky_symdenoise import __version__

#: Commands in the order in which people need them.
PANELS = {
    "Start here": ("demo", "denoise"),
    "At the beamline": ("watch", "catch-up"),
    "Past scans": ("survey", "replay", "symmetry", "readout", "self-check", "register", "evict", "materialize"),
    "Your server": ("serve", "prepare", "doctor"),
    "Models": ("models", "finetune", "train"),
    "Measure": ("bench",),
}


class Commands(TyperGroup):
    """List the commands by panels; one without a panel comes last, under its own heading."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in their order."""
        order = [name for names in PANELS.values() for name in names]
        return sorted(super().list_commands(ctx), key=lambda name: order.index(name) if name in order else len(order))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command, with the heading of its panel."""
        command: Any = super().get_command(ctx, cmd_name)
        panel = next((panel for panel, names in PANELS.items() if cmd_name in names), None)
        if command is not None and panel is not None:
            command.rich_help_panel = panel
        return command


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Denoise X-ray detector images from their physical symmetry while the experiment runs.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"symdenoise {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
