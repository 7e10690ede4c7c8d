"""However a RunEngine's process ends, its frames are denoised: at once, at the next start, or on demand."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import process_callback
import pytest
from callback_runs import column, derived_of, outcome
from tiled.client.container import Container

from bluesky_symdenoise.acquisition.live.callback import DenoiseCallback
from bluesky_symdenoise.catalog.find.query import denoised_for
from bluesky_symdenoise.catalog.server.serve import embedded_catalog
from bluesky_symdenoise.cli import main
from bluesky_symdenoise.denoiser.settings import DenoiserSettings

pytestmark = [pytest.mark.server, pytest.mark.process]

#: Two documents each: more than the worker holds at a time, also of three quarters of them.
FRAMES = 24


@dataclass(frozen=True)
class Ended:
    """A process of `process_callback.py` that has ended; `worker` may live, and `fork` does if it is not 0."""

    uid: str
    worker: int
    fork: int
    stderr: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Container, Path]]:
    home = tmp_path_factory.mktemp("endings")
    with embedded_catalog(home, api_key="5ec2e7") as client:
        yield client, home


def run_process(uri: str, how: str, home: Path, folder: Path) -> Ended:
    """Run a process of `process_callback.py` to its end, while its worker is behind; what it says is in the folder."""
    command = [sys.executable, process_callback.__file__, uri, how, str(FRAMES), str(home / "frames" / "raw")]
    variables = os.environ | {"TILED_API_KEY": "5ec2e7"}
    last_words, said = folder / "stdout", folder / "stderr"
    # Into files: a pipe would be open, and waited for, as long as a fork lives.
    with last_words.open("w") as stdout, said.open("w") as stderr:
        subprocess.run(command, env=variables, stdout=stdout, stderr=stderr, timeout=240)
    uid, worker, waiting, fork = last_words.read_text().split()
    assert int(waiting) > 0
    return Ended(uid, int(worker), int(fork), said.read_text())


@pytest.fixture
def ended(served: tuple[Container, Path], tmp_path: Path) -> Iterator[Callable[..., Ended]]:
    client, home = served
    forks: list[int] = []

    def run(how: str) -> Ended:
        done = run_process(client.uri, how, home, tmp_path)
        forks.extend([done.fork] if done.fork else [])
        return done

    yield run
    for fork in forks:
        os.kill(fork, signal.SIGKILL)


@pytest.fixture
def catch_up(
    served: tuple[Container, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """`symdenoise catch-up` with options, which has to succeed; what it printed."""
    monkeypatch.setenv("TILED_API_KEY", "5ec2e7")

    def run(*options: str) -> str:
        with pytest.raises(SystemExit) as end:
            main(["catch-up", served[0].uri, "--threads", "1", *options])
        found = capsys.readouterr()
        assert not end.value.code, found
        return found.out + found.err

    return run


def lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text()


def wait_until_gone(pid: int, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while lives(pid):
        assert time.monotonic() < deadline, f"process {pid} lives"
        time.sleep(0.1)


def left_on_disk(home: Path) -> list[str]:
    return sorted(
        path.name for path in (home / "denoised").rglob("*") if path.suffix in (".documents", ".jsonl", ".journal")
    )


def expect_all(client: Container, uid: str) -> None:
    run = derived_of(client, _Uid(uid))
    assert run.metadata["stop"]["exit_status"] == "success"
    assert outcome(run)["complete"]
    np.testing.assert_array_equal(column(run, "det_counts_in"), process_callback.counts(FRAMES).sum(axis=(1, 2)))


class _Uid:
    def __init__(self, uid: str) -> None:
        self.uid = uid


@pytest.mark.parametrize(
    "how",
    [
        "return",
        "os._exit",
        "SIGTERM",
        "SIGKILL",
        "SIGKILL while it loads",
        "interrupt at exit",
        "with a fork that goes on",
        "fork return",
        "spawn return",
        "fork os._exit",
    ],
)
def test_worker_finishes_what_the_process_took(
    how: str, ended: Callable[..., Ended], served: tuple[Container, Path]
) -> None:
    client, home = served
    done = ended(how)
    wait_until_gone(done.worker)
    expect_all(client, done.uid)
    assert left_on_disk(home) == []
    if how in ("return", "fork return", "spawn return"):
        assert "this process ends" in done.stderr
    if how == "interrupt at exit":
        assert "KeyboardInterrupt" in done.stderr
    if how == "with a fork that goes on":
        assert lives(done.fork)


@pytest.mark.parametrize("finished_by", ["catch-up", "the next start"])
def test_both_processes_killed(
    finished_by: str, ended: Callable[..., Ended], served: tuple[Container, Path], catch_up: Callable[..., str]
) -> None:
    """As where a service manager ends all processes of a unit, or the computer restarts."""
    client, home = served
    done = ended("SIGKILL both")
    wait_until_gone(done.worker)
    assert any(name.endswith(".documents") for name in left_on_disk(home))
    if finished_by == "catch-up":
        assert "left by" in catch_up("--symmetry", "1")
    else:
        with callback_on(client) as callback:
            deadline = time.monotonic() + 240
            while done.uid not in dict(callback.status().runs):
                assert time.monotonic() < deadline, callback.status()
                time.sleep(0.1)
            assert callback.status().ok, callback.status()
    expect_all(client, done.uid)
    assert left_on_disk(home) == []


def test_documents_wait_for_a_server_that_comes_back_at_another_address(tmp_path: Path) -> None:
    """As an embedded catalogue does, whose port is a free one each time."""
    with embedded_catalog(tmp_path, api_key="5ec2e7") as client:
        uid = run_process(client.uri, "SIGKILL both", tmp_path, tmp_path).uid
        before = client.uri
    with embedded_catalog(tmp_path, api_key="5ec2e7") as client:
        assert client.uri != before
        with callback_on(client) as callback:
            deadline = time.monotonic() + 240
            while uid not in dict(callback.status().runs):
                assert time.monotonic() < deadline, callback.status()
                time.sleep(0.1)
        expect_all(client, uid)


def test_process_that_ended_before_its_documents_were_on_disk(
    ended: Callable[..., Ended], served: tuple[Container, Path], catch_up: Callable[..., str]
) -> None:
    """The raw run is in the catalogue, where `catch-up` finds it."""
    client, home = served
    done = ended("os._exit at once")
    wait_until_gone(done.worker)
    catch_up("--symmetry", "1")
    expect_all(client, done.uid)
    assert left_on_disk(home) == []


def test_run_whose_process_ends_in_the_middle_is_marked_as_failed(
    ended: Callable[..., Ended], served: tuple[Container, Path]
) -> None:
    client, _ = served
    done = ended("cut os._exit")
    wait_until_gone(done.worker)
    run = denoised_for(client, done.uid)
    stop = run.metadata["stop"]
    assert stop["exit_status"] == "fail"
    assert "ended before the run's stop document" in stop["reason"]
    assert not stop["provenance"]["complete"]
    rows = len(column(run, "seq_num"))
    assert 0 < rows < FRAMES
    np.testing.assert_array_equal(column(run, "det_counts_in"), process_callback.counts(FRAMES)[:rows].sum(axis=(1, 2)))


def test_documents_taken_with_other_settings_wait_and_are_named(
    ended: Callable[..., Ended], served: tuple[Container, Path], catch_up: Callable[..., str]
) -> None:
    client, home = served
    done = ended("SIGKILL both")
    wait_until_gone(done.worker)
    assert "with other settings" in catch_up("--symmetry", "2", "--dry-run")
    assert any(name.endswith(".documents") for name in left_on_disk(home))
    catch_up("--symmetry", "1")
    expect_all(client, done.uid)


def callback_on(client: Container) -> DenoiseCallback:
    return DenoiseCallback(client["denoised"], denoiser=DenoiserSettings(threads=1), symmetry="1", nice=0)
