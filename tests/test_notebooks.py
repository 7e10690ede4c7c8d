"""The notebooks among the examples run from top to bottom, and are stored with pictures and no traces of a machine."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.process

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.ipynb"))

PLACES = re.compile(r"/(?:tmp|home|root|usr|var|work)/|127\.0\.0\.1|localhost")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def stored(request: pytest.FixtureRequest) -> nbformat.NotebookNode:
    return nbformat.read(request.param, as_version=4)


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def pictures(notebook: nbformat.NotebookNode) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def test_it_runs_from_any_folder(
    stored: nbformat.NotebookNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And shows as many pictures as are stored; where it trains, it need not do so for a minute."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    fresh = nbformat.from_dict(json.loads(json.dumps(stored).replace("minutes=1,", "minutes=0.1,")))
    client = NotebookClient(
        fresh, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}, record_timing=False
    )
    client.execute()
    assert pictures(fresh) == pictures(stored)


def test_it_is_stored_executed(stored: nbformat.NotebookNode) -> None:
    counts = [cell.execution_count for cell in stored.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert pictures(stored) >= 2
    unwanted = [output for output in outputs(stored) if output.get("name") == "stderr" or output.output_type == "error"]
    assert not unwanted


def test_nothing_stored_names_a_place_on_a_machine(stored: nbformat.NotebookNode) -> None:
    for output in outputs(stored):
        for kind, said in {"text": output.get("text", ""), **output.get("data", {})}.items():
            assert kind == "image/png" or not re.findall(
                r"/(?:tmp|home|root|usr|var|work)/|127\.0\.0\.1|localhost", said
            )
