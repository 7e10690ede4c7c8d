"""README.md and the pages in docs: code blocks run, and links lead somewhere."""

from __future__ import annotations

import grp
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any

import bluesky.plans as bp
import numpy as np
import pytest
import raw_runs
import tiled.client
from bluesky import RunEngine
from bluesky_tiled_plugins import TiledWriter
from ophyd_async.core import StaticPathProvider, UUIDFilenameProvider, init_devices
from tiled.client.container import DEFAULT_STRUCTURE_CLIENT_DISPATCH

import bluesky_symdenoise
from bluesky_symdenoise import Beamline, DenoiseCallback, Denoiser, denoised_for, embedded_catalog
from bluesky_symdenoise.acquisition.live.threaded import ThreadedDenoiseCallback
from bluesky_symdenoise.acquisition.play import PlayDetector
from bluesky_symdenoise.acquisition.request.toml import _PLAIN, read_arguments
from bluesky_symdenoise.acquisition.service.health import Health
from bluesky_symdenoise.catalog.lazy import cache
from bluesky_symdenoise.derived.columns import SCALARS

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
#: Pages as they are written; what a build leaves is none.
PAGES = [
    README,
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if not {"_build", "jupyter_execute"} & {*page.parts}),
]
MARKED = re.compile(r"<!-- examples: (.+?) -->\n(.*?)<!-- end -->", re.DOTALL)
#: Gives the class of denoised runs, in another process, too: clients go there with it.
DENOISED = partial(resolve_name, "bluesky_symdenoise.catalog.client:SymDenoisedRun")
#: Names of the sections that a test below runs.
RUN: set[str] = set()


def runs(section: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Note which section of the pages a test runs."""

    def noted(test: Callable[..., None]) -> Callable[..., None]:
        assert section not in RUN
        RUN.add(section)
        return test

    return noted


def blocks(section: str, language: str = "python") -> list[str]:
    """Code between the two comments that mark a section."""
    (marked,) = (body for page in PAGES for name, body in MARKED.findall(page.read_text()) if name == section)
    return re.findall(rf"```{language}\n(.*?)```", marked, re.DOTALL)


def run(section: str, names: dict[str, Any], **places: str) -> dict[str, Any]:
    """Run a section as it is printed, but for places that are not on this computer."""
    names |= {"__name__": "page"}
    for block in blocks(section):
        for place, here in places.items():
            assert place in block
            block = block.replace(place, here)
        exec(compile(block, section, "exec"), names)
    return names


def taken(folder: Path, number: int, start: dict[str, Any] | None = None) -> None:
    """Add a run to the embedded catalogue of a folder, denoised while it was acquired."""
    frames = np.random.default_rng(0).poisson(2.0, (number, 48, 48)).astype(np.uint16)
    with embedded_catalog(folder) as client:
        RE = RunEngine(start or {})
        with init_devices():
            det = PlayDetector(frames, StaticPathProvider(UUIDFilenameProvider(), folder / "frames"), name="det")
        RE.subscribe(TiledWriter(client["raw"]))
        denoiser = Denoiser.pretrained(threads=1)
        with ThreadedDenoiseCallback(
            client["denoised"], denoiser=denoiser, symmetry="2mm", beam_center=(23.5, 23.5)
        ) as callback:
            RE.subscribe(callback)
            RE(bp.count([det], num=number))
    # What the package's entry point does where it is installed.
    DEFAULT_STRUCTURE_CLIENT_DISPATCH["numpy"].set("SymDenoised", DENOISED)


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the catalogue that the examples open."""
    monkeypatch.chdir(tmp_path)
    taken(tmp_path / "symdenoise-demo", 2)
    return tmp_path


@pytest.fixture
def attached(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A catalogue as ``client``, and a RunEngine as ``RE`` whose callbacks are closed at the end."""
    subscribed: list[Any] = []
    with embedded_catalog(tmp_path / "catalogue", readable=[tmp_path]) as client:
        yield {"client": client, "RE": SimpleNamespace(subscribe=subscribed.append), "subscribed": subscribed}
        for each in subscribed:
            if isinstance(each, DenoiseCallback):
                each.close()


@runs("query")
def test_the_examples_of_queries_run_as_they_are_printed(demo, capsys):
    names = run("query", {})
    assert names["run"].start["uid"] == names["every"][0].start["uid"] == names["fast"].start["uid"]
    assert names["run"].start["raw_uid"] == names["raw"].start["uid"]
    assert names["raw"].start["uid"] in capsys.readouterr().out
    assert (demo / "frame.png").read_bytes().startswith(b"\x89PNG")


@runs("delete")
def test_denoised_runs_are_deleted_as_it_is_printed(tmp_path):
    taken(tmp_path, 1)
    taken(tmp_path, 1, {"proposal": {"id": 77}})
    with embedded_catalog(tmp_path) as client:
        gone = client["denoised"].values().last().start["uid"]
        run("delete", {"client": client}, **{"/data/denoised": str(tmp_path)})
        (left,) = client["denoised"]
        assert len(client["raw"]) == 2
    assert left != gone
    assert [*tmp_path.rglob(f"{left}*.h5")]
    assert not [*tmp_path.rglob(f"{gone}*")]


@runs("demo")
def test_the_first_scan_is_looked_at_as_it_is_printed(demo):
    names = run("demo", {})
    assert {"det", "det_denoised", "det_sigma"} <= set(names["ds"])
    assert names["again"].start["provenance"]["recipe"]["symmetry"] == "1"
    assert names["frame"]["intensity"].shape[-2:] == (48, 48)


@runs("replay")
def test_past_scans_are_replayed_as_it_is_printed(tmp_path, capsys):
    taken(tmp_path / "catalogue", 18)
    with embedded_catalog(tmp_path / "catalogue") as client:
        names = run("replay", {"client": client, "raw": client["raw"].values().last()})
    assert names["data"].sizes["time"] == 18
    assert names["part"].start["provenance"]["recipe"]["frames"] == "0:91:10"
    assert capsys.readouterr().out


@pytest.mark.process
@runs("beamline")
def test_the_callback_is_attached_as_it_is_printed(attached, tmp_path, monkeypatch):
    assert blocks("beamline")[0] in README.read_text()
    monkeypatch.setattr(tiled.client, "from_uri", lambda uri, api_key: attached["client"])
    run("beamline", attached, **{"/data/denoised": str(tmp_path / "denoised")})
    assert [type(each).__name__ for each in attached["subscribed"]] == ["TiledWriter", "DenoiseCallback"]


@pytest.mark.process
@runs("settings")
def test_the_callback_is_set_as_it_is_printed(attached, tmp_path):
    group = grp.getgrgid(os.getgid()).gr_name
    names = run("settings", attached, **{"/data/denoised": str(tmp_path / "denoised"), '"saxs"': repr(group)})
    names["callback"].close()


@pytest.mark.process
@runs("rings")
def test_rings_are_asked_for_as_it_is_printed(attached):
    run("rings", attached)
    assert len(attached["subscribed"]) == 1


@pytest.mark.process
@runs("borrow")
def test_frames_share_photons_as_it_is_printed(attached, tmp_path):
    frames = np.random.default_rng(0).poisson(2.0, (3, 48, 48)).astype(np.uint16)
    raw = raw_runs.written(attached["client"], raw_runs.step_scan(tmp_path / "frames", frames))
    run("borrow", attached | {"uid": raw.start["uid"]})
    assert len(attached["subscribed"]) == 1
    made = denoised_for(attached["client"], raw)
    assert made.start["provenance"]["recipe"]["borrow"] == "both:8"


@runs("names")
def test_names_of_a_beamline_are_given_as_it_is_printed():
    assert isinstance(run("names", {})["beamline"], Beamline)


@runs("arrays")
def test_arrays_are_denoised_as_it_is_printed():
    counts = np.random.default_rng(0).poisson(2.0, (1, 48, 48))
    names = run("arrays", {"counts": counts, "mask": np.zeros((48, 48), bool)})
    assert names["result"].intensity.shape == (1, 48, 48)


@runs("settings file")
def test_the_settings_file_is_read_as_it_is_printed(tmp_path):
    (text,) = blocks("settings file", "toml")
    (tmp_path / "settings.toml").write_text(text)
    for name in ("mask", "exposure"):
        np.save(tmp_path / f"{name}.npy", np.ones((8, 8)))
    given = read_arguments(tmp_path / "settings.toml")
    # Frames are counts, or the signal of a detector: the other one is a comment.
    assert set(given) == {*_PLAIN, "beamline", "analysis"} - {"readout"}
    assert re.search(r'^# readout = "\w+\.toml" ', text, re.MULTILINE)
    assert [ring.name for ring in given["analysis"]] == ["inner", "outer"]


def test_every_marked_section_is_run_by_a_test():
    text = {page: page.read_text() for page in PAGES}
    names = [name for page in PAGES for name, _ in MARKED.findall(text[page])]
    begun = [name for page in PAGES for name in re.findall(r"<!-- examples: (.+?) -->", text[page])]
    assert names == begun, "a section has no end"
    assert sorted(names) == sorted(RUN)
    for page in PAGES:
        for name, body in MARKED.findall(text[page]):
            assert re.search(r"```(python|toml)\n", body), f"the section {name} of {page} has no code"


def test_the_readme_is_a_front_page():
    text = README.read_text()
    assert len(text.splitlines()) <= 60
    assert len(text.encode()) <= 4096
    installs = "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt"
    assert f"\n{installs} . && .venv/bin/symdenoise demo\n" in text
    assert f"<!-- test command -->\n```bash\n{installs} '.[test]' && .venv/bin/pytest\n```\n" in text
    built = text.splitlines()[-2].removeprefix(".venv/bin/pip install -c constraints.txt '.[docs]' && ")
    assert built == ".venv/bin/sphinx-build -W -b html docs docs/_build/html"
    checked = ROOT / ".ci" / "run"
    assert not checked.exists() or built.removeprefix(".venv/") in checked.read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_point_to_what_is_there(page):
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        path, _, _ = link.partition("#")
        if path and "://" not in link:
            assert (page.parent / path).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_prose_is_wrapped(page):
    fenced = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    assert not [line for line in fenced.splitlines() if len(line) > 120 and not line.startswith(("|", "!["))]


def written(page: str) -> str:
    return (ROOT / "docs" / page).read_text()


def test_the_reference_has_every_name():
    api, columns, metrics = (written(f"reference/{page}.md") for page in ("api", "columns", "metrics"))
    for name in bluesky_symdenoise._HOME:
        assert re.search(rf"auto(class|function|exception):: bluesky_symdenoise\.{name}$", api, re.MULTILINE), name
    for name in SCALARS:
        assert f"`<key>_{name}`" in columns, name
    for metric in (*Health().registry.collect(), *cache.FRAMES.collect(), *cache.HELD.collect()):
        assert f"`{metric.name}" in metrics, metric.name
    settings = written("reference/settings.md")
    for name in _PLAIN:
        assert f"`{name}`" in settings, name


def test_messages_are_those_of_the_package():
    """What a user looks up under its message is what the package says."""
    said = "".join(path.read_text() for path in (ROOT / "bluesky_symdenoise").rglob("*.py"))
    messages = re.findall(r"^### `(.+)`$", written("guides/troubleshooting.md"), re.MULTILINE)
    assert len(messages) > 20
    assert [message for message in messages if message not in said] == []


def test_places_to_change_are_there():
    paths = re.findall(r"`([\w/]+\.(?:py|md|txt|toml))`", written("reference/where_do_i_change.md"))
    assert len(paths) > 30
    for path in paths:
        assert (ROOT / "bluesky_symdenoise" / path).exists() or (ROOT / path).exists(), path
