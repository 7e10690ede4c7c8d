"""A folder of runs is served by one server at a time, to those who have its key."""

from __future__ import annotations

import errno
import fcntl
import io
import logging
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest

from bluesky_symdenoise import SymDenoiseError, embedded_catalog
from bluesky_symdenoise.catalog.server.serve import KEY_VARIABLE, config_path, embedded_config, serve

FRAMES = np.arange(24, dtype="<u2").reshape(2, 3, 4)


# --- the configuration


def test_the_configuration_of_this_version_is_used():
    """Installed or not, it is the one at the top of the source tree."""
    assert config_path().read_bytes() == (Path(__file__).parents[2] / "tiled_config.yml").read_bytes()


def test_in_a_source_tree_the_configuration_lies_beside_the_package(tmp_path, monkeypatch):
    module = tmp_path / "bluesky_symdenoise" / "catalog" / "server" / "serve.py"
    monkeypatch.setattr("bluesky_symdenoise.catalog.server.serve.__file__", str(module))
    assert config_path() == tmp_path / "tiled_config.yml"


def test_an_installed_package_has_its_own_configuration(tmp_path, monkeypatch):
    module = tmp_path / "bluesky_symdenoise" / "catalog" / "server" / "serve.py"
    monkeypatch.setattr("bluesky_symdenoise.catalog.server.serve.__file__", str(module))
    installed = tmp_path / "bluesky_symdenoise" / "tiled_config.yml"
    installed.parent.mkdir()
    installed.touch()
    assert config_path() == installed


def test_all_storage_lies_in_the_folder_and_nothing_is_made_yet(tmp_path):
    home, more = tmp_path / "home", tmp_path / "more"
    storage = embedded_config(home, api_key="abc", readable=[more]).trees[0].args
    assert storage["uri"] == f"sqlite:///{home}/catalog.db"
    assert storage["writable_storage"] == [f"{home}/arrays", f"sqlite:///{home}/tables.db"]
    assert storage["readable_storage"] == [f"{home}/frames", f"{home}/denoised", str(more)]
    # Two clients write to the tables at a time, and SQLite lets one.
    assert (storage["storage_pool_size"], storage["storage_max_overflow"]) == (1, 0)
    assert not home.exists()


@pytest.mark.server
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TILED_CATALOG_URI", "postgresql://facility/catalog"),
        ("tiled_catalog_uri", "postgresql://facility/catalog"),
        ("TILED_CATALOG_WRITABLE_STORAGE", '["/facility"]'),
        ("TILED_CATALOG_READABLE_STORAGE", '["/facility"]'),
        ("TILED_CATALOG_READABLE_STORAGE", "not JSON"),
        ("TILED_CATALOG", '{"uri": "postgresql://facility/catalog"}'),
        ("TILED_CATALOG_MOUNT_NODE", '"elsewhere"'),
        ("TILED_CATALOG_SPECS", '[{"name": "CatalogOfBlueskyRuns", "version": "3.0"}]'),
        ("TILED_CATALOG_TOP_LEVEL_ACCESS_TAGS", '["facility"]'),
        ("TILED_CATALOG_ADAPTERS_BY_MIMETYPE", '{"application/x-facility": "json:loads"}'),
        ("TILED_MEDIA_TYPES", '{"array": {"image/x-facility": "json:dumps"}}'),
        ("TILED_MEDIA_TYPES", '{"BlueskyRun": {"application/json-seq": "json:dumps"}}'),
        ("TILED_ROUTERS", '["json:loads"]'),
        ("access_control", '{"access_policy": "builtins:dict", "args": {"facility": 1}}'),
        (
            "TILED_TREES",
            '[{"path": "/", "tree": "catalog", "args": {"uri": "postgresql://facility/catalog"}}]',
        ),
        ("TILED_STREAMING_CACHE_URI", "redis://facility"),
        ("TILED_STREAMING_CACHE_SENTINELS", '["facility:1"]'),
        ("TILED_AUTHNALLOW_ANONYMOUS_ACCESS", "true"),
        ("TILED_AUTHENTICATION", '{"single_user_api_key": "known"}'),
    ],
)
# Of Tiled, which dumps a model that holds imported adapters.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning")
def test_an_environment_that_redirects_the_server_is_refused(tmp_path, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with (
        pytest.raises(SymDenoiseError, match=f"{name}: the environment redirects .*; unset {name}") as refusal,
        embedded_catalog(tmp_path / "catalog"),
    ):
        pass
    assert "facility" not in str(refusal.value)
    assert not (tmp_path / "catalog").exists()


def test_an_environment_that_says_the_same_is_fine(tmp_path, monkeypatch):
    monkeypatch.setenv("TILED_CATALOG_URI", f"sqlite:///{tmp_path}/catalog.db")
    monkeypatch.setenv("TILED_STREAMING_CACHE_URI", "memory")
    embedded_config(tmp_path, api_key="abc")


def test_a_file_of_environment_variables_is_not_read(tmp_path, monkeypatch):
    (tmp_path / ".env").write_text("TILED_CATALOG_URI=postgresql://facility/catalog\n")
    monkeypatch.chdir(tmp_path)
    config = embedded_config(tmp_path / "catalog", api_key="abc")
    assert config.trees[0].args["uri"] == f"sqlite:///{tmp_path}/catalog/catalog.db"


@pytest.mark.parametrize("key", ["", "se-cret", "schlüssel"])
def test_a_key_that_tiled_cannot_take_is_refused_and_not_repeated(tmp_path, key):
    with pytest.raises(SymDenoiseError, match="letters and digits") as refusal:
        embedded_config(tmp_path, api_key=key)
    assert not key or key not in str(refusal.value)


def test_a_folder_that_tiled_cannot_address_is_refused(tmp_path):
    with pytest.raises(SymDenoiseError, match="cannot address"):
        embedded_config(tmp_path / "run #1", api_key="abc")


@pytest.mark.process
def test_a_server_imports_no_torch_before_a_lazy_array_is_read(tmp_path):
    code = (
        "import sys\n"
        "from bluesky_symdenoise.catalog.server.serve import embedded_config\n"
        "adapters = embedded_config(sys.argv[1], api_key='abc').trees[0].args['adapters_by_mimetype']\n"
        "assert 'application/x-symdenoise' in adapters, adapters\n"
        "assert 'bluesky_symdenoise.catalog.adapter' in sys.modules\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


# --- the embedded server


@pytest.mark.server
def test_a_new_folder_has_two_empty_catalogues_of_runs_for_this_computer_only(tmp_path):
    with embedded_catalog(tmp_path) as catalog:
        assert set(catalog) == {"raw", "denoised"}
        assert not catalog.specs
        for name in catalog:
            assert [(spec.name, spec.version) for spec in catalog[name].specs] == [("CatalogOfBlueskyRuns", "3.0")]
            assert len(catalog[name]) == 0
        assert catalog.context.api_uri.host == "127.0.0.1"


@pytest.mark.server
def test_runs_are_there_when_the_folder_is_opened_again(tmp_path, write_run):
    with embedded_catalog(tmp_path) as client:
        uid = write_run(client["raw"], tmp_path / "frames", {"det": FRAMES}, scalars={"motor": [1.0, 2.0]})
    with embedded_catalog(tmp_path) as client:
        events = client["raw"][uid]["primary"].read()
        np.testing.assert_array_equal(events.det[:, 0], FRAMES)
        np.testing.assert_array_equal(events.motor, [1.0, 2.0])


@pytest.mark.server
def test_frames_elsewhere_are_read_only_where_that_was_allowed(tmp_path, write_run):
    for folder in ("detector", "other"):
        (tmp_path / folder).mkdir()
    with embedded_catalog(tmp_path / "catalog", readable=[tmp_path / "detector"]) as client:
        uid = write_run(client["raw"], tmp_path / "detector", {"det": FRAMES})
        np.testing.assert_array_equal(client["raw"][uid]["primary"].read().det[:, 0], FRAMES)
        hidden = write_run(client["raw"], tmp_path / "other", {"det": FRAMES})
        link = client["raw"][hidden].base["primary"].base["det"].item["links"]["full"]
        assert client.context.http_client.get(link).is_error


@pytest.mark.server
def test_only_the_key_opens_the_server(tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "fromEnvironment1")
    with embedded_catalog(tmp_path) as client:
        url = f"{client.context.api_uri}metadata/raw"
        assert httpx.get(url).status_code == 401
        assert httpx.get(url, headers={"Authorization": "Apikey wrong"}).status_code == 401
        assert httpx.get(url, headers={"Authorization": "Apikey fromEnvironment1"}).status_code == 200


@pytest.mark.server
def test_two_folders_in_one_process_have_a_key_each(tmp_path):
    def status(client, key):
        return httpx.get(f"{client.context.api_uri}metadata/", headers={"Authorization": f"Apikey {key}"}).status_code

    with (
        embedded_catalog(tmp_path / "a", api_key="keyA") as a,
        embedded_catalog(tmp_path / "b", api_key="keyB") as b,
    ):
        assert [status(a, "keyA"), status(a, "keyB")] == [200, 401]
        assert [status(b, "keyA"), status(b, "keyB")] == [401, 200]


@pytest.mark.server
def test_a_second_server_on_the_folder_is_refused_until_the_first_ends(tmp_path):
    with embedded_catalog(tmp_path) as client:
        with (
            pytest.raises(SymDenoiseError, match=f"process {os.getpid()} serves this folder already"),
            embedded_catalog(tmp_path),
        ):
            pass
        assert set(client) == {"raw", "denoised"}
    with embedded_catalog(tmp_path):
        pass


@pytest.mark.server
def test_a_port_that_is_taken_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with (
            pytest.raises(SymDenoiseError, match=f"port {port}: cannot listen there .*in use"),
            embedded_catalog(tmp_path, port=port),
        ):
            pass


@pytest.mark.server
@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_does_not_exist_is_refused(tmp_path, port):
    with pytest.raises(SymDenoiseError, match=f"port {port}"), embedded_catalog(tmp_path, port=port):
        pass


@pytest.mark.server
def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SymDenoiseError, match="cannot hold a catalogue"), embedded_catalog(tmp_path / "file"):
        pass


@pytest.mark.server
def test_an_error_of_the_user_stops_the_server_and_leaves_nothing_behind(tmp_path, caplog, capfd):
    caplog.set_level(logging.INFO)
    environment, threads = dict(os.environ), set(threading.enumerate())
    levels = {name: logging.getLogger(name).level for name in ("tiled", "tiled.server.app", "uvicorn.access")}
    uris = []

    def fail_while_it_runs() -> None:
        with embedded_catalog(tmp_path, api_key="s3cret") as client:
            uris.append(str(client.context.api_uri))
            assert httpx.get(uris[0]).status_code == 200
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_while_it_runs()
    with pytest.raises(httpx.ConnectError):
        httpx.get(uris[0])
    assert dict(os.environ) == environment
    assert {name: logging.getLogger(name).level for name in levels} == levels
    assert not [thread for thread in set(threading.enumerate()) - threads if not thread.daemon]
    shown = "".join(capfd.readouterr())
    assert not shown
    assert not [record for record in caplog.records if record.name.startswith(("tiled", "uvicorn"))]
    assert "s3cret" not in caplog.text


# --- the server of the command line


def _serve(folder: Path, number: signal.Signals, **environment: str) -> tuple[int, str, int]:
    """Serve a folder on a terminal, open it, send a signal: status of the answer, output, exit status."""
    terminal, theirs = pty.openpty()
    # Where lines are cut, a URL cannot be read back.
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 300, 0, 0))
    command = [
        sys.executable,
        "-c",
        "from bluesky_symdenoise.cli import main; main()",
        "serve",
        str(folder),
        "--port",
        "0",
    ]
    said, status = "", 0
    with subprocess.Popen(command, env=os.environ | environment, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        with os.fdopen(terminal, "rb", buffering=0) as output:
            while chunk := _read(output):
                said += chunk.decode().replace("\r\n", "\n")
                if not status and re.search(r"client = .*\n", said):
                    url = re.search(r'"(http\S+)"', said)[1]
                    key = environment.get(KEY_VARIABLE) or re.search(r'api_key="(\w+)"', said)[1]
                    httpx.get(f"{url}/metadata/raw", params={"api_key": key})
                    httpx.get(f"{url}/array/full/raw", params={"api_key": key, "slice": "1:2:0"})
                    status = httpx.get(f"{url}/metadata/raw", headers={"Authorization": f"Apikey {key}"}).status_code
                    assert key not in Path(f"/proc/{process.pid}/cmdline").read_text()
                    process.send_signal(number)
        return status, said, process.wait(30)


def _read(terminal: io.RawIOBase) -> bytes:
    try:
        return terminal.read(4096)
    except OSError as error:  # how Linux says that the other end of a terminal is closed
        if error.errno != errno.EIO:
            raise
        return b""


@pytest.fixture
def kept(tmp_path):
    with embedded_catalog(tmp_path):
        pass
    return tmp_path


@pytest.mark.process
@pytest.mark.server
def test_ctrl_c_ends_the_server_and_the_key_it_made_is_shown_once_in_each_form(kept):
    answer, said, status = _serve(kept, signal.SIGINT)
    assert (answer, status) == (200, 0), said
    assert re.fullmatch(
        rf"Serving {kept} until Ctrl-C.\n"
        r"Browser: http://127\.0\.0\.1:\d+/\?api_key=(\w{64})\n"
        r"Python:\n"
        r"    from tiled.client import from_uri\n"
        r'    client = from_uri\("http://127\.0\.0\.1:\d+/api/v1", api_key="\1"\)\n',
        said,
    )


@pytest.mark.process
@pytest.mark.server
def test_a_key_from_the_environment_is_used_and_never_shown(kept):
    answer, said, status = _serve(kept, signal.SIGTERM, **{KEY_VARIABLE: "fromEnvironment1"})
    assert (answer, status) == (200, 0), said
    assert "fromEnvironment1" not in said
    assert f'os.environ["{KEY_VARIABLE}"]' in said


def test_serving_a_folder_without_a_catalogue_names_the_command_that_makes_one(tmp_path):
    with pytest.raises(SymDenoiseError, match=f"symdenoise demo --output {tmp_path}"):
        serve(tmp_path, port=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.server
def test_without_a_terminal_no_key_is_made_for_a_log(kept):
    with pytest.raises(SymDenoiseError, match=f"set {KEY_VARIABLE}"):
        serve(kept, port=0)
