"""What the README tells a reader to paste works on a catalogue that the package made."""

from __future__ import annotations

import re
from pathlib import Path

import bluesky.plans as bp
import numpy as np
import pytest
from bluesky import RunEngine
from bluesky_tiled_plugins import TiledWriter
from ophyd_async.core import StaticPathProvider, UUIDFilenameProvider, init_devices
from tiled.client.container import DEFAULT_STRUCTURE_CLIENT_DISPATCH

from bluesky_symdenoise import DenoiseCallback, embedded_catalog
from bluesky_symdenoise.acquisition.play import PlayDetector
from bluesky_symdenoise.catalog.client import SymDenoisedRun

README = Path(__file__).parents[1] / "README.md"


def _blocks(section: str) -> list[str]:
    """Python blocks between the two comments that mark a section."""
    marked = re.search(rf"<!-- examples: {section} -->\n(.*?)<!-- end -->", README.read_text(), re.DOTALL)
    assert marked is not None, f"README.md has no section between `<!-- examples: {section} -->` and `<!-- end -->`"
    blocks = re.findall(r"```python\n(.*?)```", marked[1], re.DOTALL)
    assert blocks, f"the section {section} has no python block"
    return blocks


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the catalogue that the examples open: one run, denoised while it was acquired."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "symdenoise-demo"
    frames = np.random.default_rng(0).poisson(2.0, (2, 48, 48)).astype(np.uint16)
    with embedded_catalog(folder) as client:
        RE = RunEngine()
        with init_devices():
            det = PlayDetector(frames, StaticPathProvider(UUIDFilenameProvider(), folder / "frames"), name="det")
        RE.subscribe(TiledWriter(client["raw"], batch_size=1))
        with DenoiseCallback(client["denoised"], symmetry="2mm", beam_center=(23.5, 23.5)) as callback:
            RE.subscribe(callback)
            RE(bp.count([det], num=2))
    # What the package's entry point does where it is installed.
    DEFAULT_STRUCTURE_CLIENT_DISPATCH["numpy"].set("SymDenoised", lambda: SymDenoisedRun)
    return tmp_path


def test_the_examples_of_queries_run_as_they_are_printed(demo, capsys):
    names: dict[str, object] = {"__name__": "readme"}
    for block in _blocks("query"):
        exec(compile(block, str(README), "exec"), names)
    assert names["run"].start["uid"] == names["every"][0].start["uid"] == names["fast"].start["uid"]
    assert names["run"].start["raw_uid"] == names["raw"].start["uid"]
    assert names["raw"].start["uid"] in capsys.readouterr().out
    assert (demo / "frame.png").read_bytes().startswith(b"\x89PNG")


def test_a_section_that_is_missing_is_noticed():
    with pytest.raises(AssertionError, match="no section between"):
        _blocks("no such section")
