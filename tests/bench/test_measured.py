"""The page of measured figures is what its command writes from the benches' files."""

from __future__ import annotations

import json
import shlex
import socket
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bluesky_symdenoise.bench.measured.page import TEMPLATE, about, page
from bluesky_symdenoise.bench.record import TYPED, header
from bluesky_symdenoise.cli import app
from bluesky_symdenoise.denoiser.identity import model_file
from bluesky_symdenoise.errors import SymDenoiseError

DOCS = Path(__file__).resolve().parents[2] / "docs"
RESULTS = DOCS / "measured"


def written(*arguments: str) -> None:
    done = CliRunner().invoke(app, ["bench", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output


def results(folder: Path, template: str, **contents: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / TEMPLATE).write_text(template)
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def transcribed(**figures: Any) -> dict[str, Any]:
    known = {"command": "symdenoise bench tilt", "date": "2026-01-02", "machine": "an abacus", "transcribed": True}
    return {"header": known | {"load": None, "note": "", "versions": {}, "model": None}, "figures": figures}


def test_the_page_is_what_the_command_writes(tmp_path: Path) -> None:
    for name in ("once.md", "again.md"):
        written("report", "--results", str(RESULTS), "--output", str(tmp_path / name))
    assert (tmp_path / "once.md").read_bytes() == (tmp_path / "again.md").read_bytes()
    assert (tmp_path / "once.md").read_text() == (DOCS / "measured.md").read_text(), (
        "write the page with `symdenoise bench report`"
    )


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_each_file_says_how_its_figures_were_made(path: Path) -> None:
    found = json.loads(path.read_text())["header"]
    assert shlex.split(found["command"])[0] in ("symdenoise", "pytest")
    assert found["date"] >= "2026"
    assert found["machine"]
    assert found.get("transcribed") or {"bluesky-symdenoise", "python", "torch"} == set(found["versions"])
    assert path.stat().st_size < 30_000


def test_a_header_names_command_computer_versions_and_model() -> None:
    token = TYPED.set("symdenoise bench tilt")
    try:
        found = header(model_file())
    finally:
        TYPED.reset(token)
    assert found["command"] == "symdenoise bench tilt"
    assert "cores" in found["machine"]
    assert socket.gethostname() not in json.dumps(found)
    assert found["model"]["name"] == "fast"
    assert len(found["model"]["sha256"]) == 64
    assert (found["load"] > 1) == (found["note"] == "busy machine")
    assert header()["model"] is None
    said = about(found)
    assert said.startswith("*`symdenoise bench tilt`, ")
    assert "model `fast` " in said.replace("\n", " ")
    assert "transcribed" not in said


def test_a_bench_is_shown_by_its_tables_and_a_transcription_says_what_it_is(tmp_path: Path) -> None:
    rows = [{"figure": "  longer by", "value": 1.234, "unit": "%", "target": "<= 2"}]
    fresh = {"header": header() | {"command": "symdenoise bench live --only thread"}, "figures": {"thread": rows}}
    folder = results(
        tmp_path / "measured", "{{a.n}} of {{a.about}}\n\n{{b.table}}\n{{b.about}}\n", a=transcribed(n=7), b=fresh
    )
    said = page(folder)
    assert "7 of *`symdenoise bench tilt`, 2026-01-02, an abacus, transcribed from an earlier page.*" in said
    assert "| longer by | 1.23 | % | <= 2 |" in said


def test_no_figure_is_missing_and_none_is_lost(tmp_path: Path) -> None:
    with pytest.raises(SymDenoiseError, match=r"a\.json has no such figure"):
        page(results(tmp_path / "one", "{{a.m}}", a=transcribed(n=7)))
    with pytest.raises(SymDenoiseError, match=r"b\.json"):
        page(results(tmp_path / "two", "{{a.n}}", a=transcribed(n=7), b=transcribed(n=8)))


def test_a_file_is_taken_in_without_its_rows_of_single_cases(tmp_path: Path) -> None:
    folder = results(tmp_path / "measured", "{{tilt.mates}}")
    (tmp_path / "tilt.json").write_text(
        json.dumps({"header": header() | {"command": "symdenoise bench tilt"}, "denoised": [], "mates": []})
    )
    science = {"header": header() | {"command": "symdenoise bench science"}, "summary": [], "rings": [1], "pdf": []}
    (tmp_path / "science.json").write_text(json.dumps(science))
    output = tmp_path / "page.md"
    written("report", "--results", str(folder), "--output", str(output), "--add", str(tmp_path / "tilt.json"))
    assert output.read_text().startswith("| tilt |")
    (folder / TEMPLATE).write_text("{{tilt.mates}}{{science.rings}}")
    written("report", "--results", str(folder), "--output", str(output), "--add", str(tmp_path / "science.json"))
    assert set(json.loads((folder / "science.json").read_text())) == {"header", "summary", "pdf"}
