"""The page of measured figures: a template that is filled from the JSON files of the benches."""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from bluesky_symdenoise.bench.measured.sections import LEFT_OUT, SECTIONS, table
from bluesky_symdenoise.errors import SymDenoiseError

#: The template, in the folder of the results.
TEMPLATE = "measured.md.template"
_PLACE = re.compile(r"\{\{(\w+)\.(\w+)\}\}")
_WIDTH = 120


def main(
    results: Annotated[
        Path, typer.Option(help="Folder of the benches' JSON files, and of the page's template.")
    ] = Path("docs/measured"),
    output: Annotated[Path, typer.Option(help="Page to write.")] = Path("docs/measured.md"),
    add: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="JSON file of a bench, to take into the folder first, without its rows of single cases; repeatable.",
        ),
    ] = None,
) -> None:
    """Write the page of measured figures from the JSON files that benches wrote.

    A place such as ``{{tilt.about}}`` in the template is filled from ``tilt.json``.
    """
    for path in add or ():
        content = _read(path)
        kept = {name: value for name, value in content.items() if name not in LEFT_OUT.get(_bench(content), ())}
        (results / path.name).write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    output.write_text(page(results))


def page(results: Path) -> str:
    """Return the page that a folder of results and its template give.

    Raises
    ------
    SymDenoiseError
        If a place of the template has no figure, or a file of the folder has no place.
    """
    figures = {path.stem: texts(_read(path)) for path in sorted(results.glob("*.json"))}
    used = set()

    def filled(place: re.Match[str]) -> str:
        name, figure = place.groups()
        if figure not in figures.get(name, {}):
            raise SymDenoiseError(
                f"place {place.group()!r}", rule=f"{name}.json has no such figure", remedy="mend the template"
            )
        used.add(name)
        return figures[name][figure]

    written = _PLACE.sub(filled, (results / TEMPLATE).read_text())
    if unused := sorted(set(figures) - used):
        raise SymDenoiseError(
            f"{unused[0]}.json", rule="no place of the template shows it", remedy="add a place, or remove the file"
        )
    return written


def texts(content: dict[str, Any]) -> dict[str, str]:
    """Return Markdown by name: how the figures of a file were made (``about``), its figures and its tables.

    Figures that were transcribed are named in their file; those of a bench are in `SECTIONS`.
    """
    if content["header"].get("transcribed"):
        found = {name: str(value) for name, value in content.get("figures", {}).items()}
        found |= {name: table(each["columns"], each["rows"]) for name, each in content.get("tables", {}).items()}
    else:
        found = SECTIONS[_bench(content)](content)
    return {"about": about(content["header"])} | found


def about(header: dict[str, Any]) -> str:
    """Return command, date, machine, versions and model of a file in one paragraph."""
    words = [f"`{header['command']}`", header["date"][:10], header["machine"]]
    if header["load"] is not None:
        words.append(f"load {header['load']:.1f} before" + (f" ({header['note']})" if header["note"] else ""))
    words += [f"{name} {version}" for name, version in header["versions"].items()]
    if model := header["model"]:
        words.append(" ".join(filter(None, ["model", f"`{model['name']}`", model["version"]])))
        if model["sha256"]:
            words[-1] += f" (sha256 {model['sha256'][:12]})"
    if header.get("transcribed"):
        words.append("transcribed from an earlier page")
    return textwrap.fill(f"*{', '.join(words)}.*", _WIDTH, break_long_words=False, break_on_hyphens=False)


def _bench(content: dict[str, Any]) -> str:
    return shlex.split(content["header"]["command"])[2]


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found
