"""`symdenoise doctor` on a good server and on broken ones: each fault is named, and nothing is left behind."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from facility import KEY, TiledProcess, scan, tiled_process
from servers import free_port
from typer.testing import CliRunner

from bluesky_symdenoise import SymDenoiseError
from bluesky_symdenoise.catalog.server.serve import config_path
from bluesky_symdenoise.catalog.store.containers import prepare
from bluesky_symdenoise.cli import app

pytestmark = [pytest.mark.server, pytest.mark.process]


def doctor(uri: str, *options: str, key: str = KEY) -> tuple[int, dict[str, tuple[str, str, str]]]:
    """Exit status, and verdict, words and remedy of each check."""
    done = CliRunner().invoke(app, ["doctor", uri, "--json", *options], env={"TILED_API_KEY": key})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    found = json.loads(done.stdout)
    assert len({each["check"] for each in found}) == len(found)
    assert all(each["remedy"] or each["verdict"] == "OK" for each in found)
    return done.exit_code, {each["check"]: (each["verdict"], each["said"], each["remedy"]) for each in found}


def problems(found: dict[str, tuple[str, str, str]]) -> set[str]:
    return {check for check, (verdict, _, _) in found.items() if verdict == "problem"}


def configuration() -> dict[str, Any]:
    return dict(yaml.safe_load(config_path().read_text()))


def assets(server: TiledProcess) -> list[str]:
    """What the catalogue's own database holds of files."""
    with closing(sqlite3.connect(server.folder / "symdenoise-catalog.db")) as database:
        return sorted(uri for (uri,) in database.execute("SELECT data_uri FROM assets"))


@pytest.fixture(autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What pip notes of the package, which a source tree on the path lacks."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    folder = tmp_path_factory.mktemp("site")
    noted = folder / "bluesky_symdenoise-0.dist-info"
    noted.mkdir()
    (noted / "METADATA").write_text("Metadata-Version: 2.1\nName: bluesky-symdenoise\nVersion: 0\n")
    (noted / "entry_points.txt").write_text(
        "\n".join(
            line
            for group, points in project["entry-points"].items()
            for line in (f"[{group}]", *(f"{name} = {where}" for name, where in points.items()))
        )
    )
    monkeypatch.syspath_prepend(folder)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TiledProcess]:
    with tiled_process(tmp_path_factory.mktemp("good")) as server:
        yield server


@pytest.fixture
def prepared(good: TiledProcess) -> TiledProcess:
    prepare(good.client(), frames=good.folder / "symdenoise-data" / "frames")
    return good


class TestAGoodServer:
    def test_before_it_is_prepared_the_containers_are_missed(self, good: TiledProcess) -> None:
        status, found = doctor(good.url)
        assert status == 1
        assert problems(found) == {"raw", "denoised"}
        assert "symdenoise prepare" in found["denoised"][2]

    def test_prepared_by_the_command_it_has_no_problem(self, good: TiledProcess) -> None:
        frames = good.folder / "symdenoise-data" / "frames" / "new"
        command = ["prepare", good.url, "--frames", str(frames)]
        done = CliRunner().invoke(app, command, env={"TILED_API_KEY": KEY})
        assert done.exit_code == 0, done.output
        assert frames.is_dir()
        client = good.client()
        scan(client["raw"], client["denoised"], frames)
        before = assets(good), sorted(frames.iterdir())
        status, found = doctor(good.url.removesuffix("/api/v1"))
        assert (status, problems(found)) == (0, set()), found
        assert "read by the server" in found["frames"][1]
        for check in ("server", "clock", "scopes", "exporters", "streaming", "specs", "model", "client class"):
            assert found[check][0] == "OK", found[check]
        assert found["tables"][0] == "warning", "SQLite takes one writer at a time"
        assert (assets(good), sorted(frames.iterdir())) == before
        assert len(client["denoised"]) == 1

    def test_each_line_is_for_people(self, good: TiledProcess) -> None:
        done = CliRunner().invoke(app, ["doctor", good.url], env={"TILED_API_KEY": KEY})
        assert all(line.split()[0] in ("OK", "warning", "problem") for line in done.stdout.splitlines())
        assert KEY not in done.output

    def test_without_a_key_a_command_says_so_in_one_line(self, good: TiledProcess) -> None:
        """All in one process: to start it takes longer than they do."""
        commands = [["prepare", good.url, "--frames", str(good.folder)]]
        commands += [[name, good.url, "0" * 36] for name in ("register", "materialize", "evict")]
        program = f"""
import sys
from bluesky_symdenoise.cli import main
for command in {commands!r}:
    try:
        main(command)
    except SystemExit as end:
        print("status", end.code, file=sys.stderr)
"""
        without = {name: value for name, value in os.environ.items() if name != "TILED_API_KEY"}
        done = subprocess.run([sys.executable, "-c", program], env=without, capture_output=True, text=True, check=True)
        lines = done.stderr.splitlines()
        assert lines[1::2] == ["status 2"] * len(commands)
        assert all("set TILED_API_KEY" in line for line in lines[::2])
        assert done.stdout == ""

    def test_without_a_key_doctor_names_the_variable(self, good: TiledProcess) -> None:
        status, found = doctor(good.url, key="")
        assert (status, problems(found), found["key"][1]) == (1, {"key"}, "TILED_API_KEY is not set")

    def test_a_wrong_key(self, good: TiledProcess) -> None:
        status, found = doctor(good.url, key="ab12")
        assert (status, problems(found)) == (1, {"key"})
        assert "TILED_API_KEY" in found["key"][2]

    def test_a_folder_that_the_server_may_not_read(self, prepared: TiledProcess, tmp_path: Path) -> None:
        before = assets(prepared)
        status, found = doctor(prepared.url, "--directory", str(tmp_path))
        assert (status, problems(found)) == (1, {"frames"})
        assert "readable_storage" in found["frames"][2]
        assert (assets(prepared), list(tmp_path.iterdir())) == (before, [])
        assert "not tried" in found["lazy runs"][1], "it is not known whether the server has the adapter"

    def test_a_folder_that_is_not_there(self, prepared: TiledProcess, tmp_path: Path) -> None:
        status, found = doctor(prepared.url, "--directory", str(tmp_path / "missing"))
        assert (status, problems(found)) == (1, {"frames"})
        assert found["frames"][1] == f"this computer has no folder {tmp_path / 'missing'}"
        assert "not tried" in found["lazy runs"][1]


def test_a_server_that_is_down() -> None:
    status, found = doctor(f"http://127.0.0.1:{free_port()}")
    assert (status, problems(found)) == (1, {"server"})
    assert "cannot be reached" in found["server"][1]


@pytest.mark.parametrize("uri", ["facility", "ftp://facility", "http://", ""])
def test_no_address_at_all(uri: str) -> None:
    done = CliRunner().invoke(app, ["doctor", uri])
    assert isinstance(done.exception, SymDenoiseError), "exit status 2 and one line"
    assert "not the address" in str(done.exception)


def test_a_server_with_no_exporter_no_streaming_and_other_storage(tmp_path: Path) -> None:
    """What a facility's own configuration lacks before ours is merged into it."""
    config = configuration()
    del config["media_types"], config["streaming_cache"]
    config["catalog"]["readable_storage"] = [str(tmp_path / "elsewhere")]
    with tiled_process(tmp_path / "server", config) as server:
        prepare(server.client(), frames=tmp_path / "frames")
        (tmp_path / "frames").mkdir()
        status, found = doctor(server.url)
    assert (status, problems(found)) == (1, {"exporters", "frames"})
    assert "application/json-seq of BlueskyRun" in found["exporters"][1]
    assert found["streaming"][0] == "warning"


def test_a_server_without_our_adapter(tmp_path: Path) -> None:
    config = configuration()
    del config["catalog"]["adapters_by_mimetype"]
    with tiled_process(tmp_path / "server", config) as server:
        frames = server.folder / "symdenoise-data" / "frames"
        frames.mkdir(parents=True)
        prepare(server.client(), frames=frames)
        status, found = doctor(server.url)
        assert not list(frames.iterdir())
    assert (status, problems(found)) == (1, {"lazy runs"})
    assert "adapters_by_mimetype" in found["lazy runs"][2]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TiledProcess]:
    """One whose root is itself a catalogue of runs, and that anybody may read."""
    config = configuration()
    config["catalog"]["specs"] = [{"name": "CatalogOfBlueskyRuns", "version": "3.0"}]
    config["authentication"]["allow_anonymous_access"] = True
    with tiled_process(tmp_path_factory.mktemp("open") / "server", config) as server:
        yield server


def test_a_root_that_is_itself_a_catalogue_of_runs(opened: TiledProcess) -> None:
    status, found = doctor(opened.url)
    assert status == 1
    assert "root" in problems(found)
    assert "specs" in found["root"][2]


def test_a_server_that_anybody_may_read_gives_a_warning(opened: TiledProcess) -> None:
    _, found = doctor(opened.url)
    assert found["anonymous"][0] == "warning"
