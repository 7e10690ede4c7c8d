"""The command line as Markdown, from typer's own description of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from bluesky_symdenoise.cli import app


def as_markdown() -> str:
    """All commands, each with usage, arguments and options."""
    command = typer.main.get_command(app)
    return "\n\n".join(_described(command, command.context_class(command, info_name="symdenoise")))


def _described(command: Any, context: Any, level: int = 2) -> Iterator[str]:
    # A bench is imported when it is used.
    command = getattr(command, "loaded", command)
    inner = getattr(command, "commands", {})
    yield f"{'#' * level} `{context.command_path}`"
    yield _text(command.help or "")
    usage = " ".join(command.get_usage(context).removeprefix("Usage:").split())
    yield f"```text\n{usage}\n```"
    rows = [record for each in command.params if (record := each.get_help_record(context)) is not None]
    rows = [(name, said) for name, said in rows if "--help" not in name]
    if rows:
        lines = [f"| `{_cell(name)}` | {_text(_cell(said))} |" for name, said in rows]
        yield "\n".join(["| option | what |", "|---|---|", *lines])
    for name, each in inner.items():
        yield from _described(each, each.context_class(each, info_name=name, parent=context), min(level + 1, 4))


def _text(said: str) -> str:
    """Help is no Markdown: what would be markup stays as it is written."""
    return said.replace("<", r"\<").replace("*", r"\*").replace("[", r"\[").replace("_", r"\_")


def _cell(said: str) -> str:
    return " ".join(said.split()).replace("|", r"\|")
