"""The service beside a RunEngine and a Tiled server, each a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import process_scan
import process_server
import pytest
from process_scan import counts
from servers import free_port, private_redis, stopped_at_the_end, wait_until_open
from tiled.client import from_uri
from tiled.client.container import Container
from tiled.structures.core import Spec

from bluesky_symdenoise.catalog.find.query import denoised_for
from bluesky_symdenoise.catalog.server.serve import FRAMES_FOLDER, KEY_VARIABLE

pytestmark = [pytest.mark.server, pytest.mark.process]

KEY = "f" * 32
FRAMES = 6
#: Seconds that anything may take on a busy machine.
PATIENCE_S = 150


@dataclass(frozen=True)
class Place:
    """A served catalogue."""

    uri: str
    client: Container
    frames: Path

    def environment(self) -> dict[str, str]:
        return os.environ | {"TILED_API_KEY": KEY, KEY_VARIABLE: KEY, "PYTHONUNBUFFERED": "1"}

    def scan(self, *, frames: int = FRAMES, allowed: int = FRAMES) -> subprocess.Popen[Any]:
        """Begin a scan, which waits when so many frames are taken."""
        self.allow(allowed)
        command = [sys.executable, process_scan.__file__, self.uri, str(self.frames), str(frames), str(self._allowed)]
        return subprocess.Popen(command, env=self.environment(), stdout=subprocess.PIPE, text=True)

    def allow(self, frames: int) -> None:
        """Let the scan go on until so many frames are taken."""
        new = self._allowed.with_suffix(".new")
        new.write_text(str(frames))
        new.replace(self._allowed)

    @property
    def _allowed(self) -> Path:
        return self.frames.parent / "allowed"

    def watch(self, log: Path, *options: str) -> subprocess.Popen[Any]:
        program = [sys.executable, "-c", "from bluesky_symdenoise.cli import main; main()"]
        arguments = ["watch", self.uri, "--port", "0", "--threads", "1", "--device", "cpu", "--sweep", "2", *options]
        with log.open("wb") as out:
            return subprocess.Popen([*program, *arguments], env=self.environment(), stdout=out, stderr=2)


@contextmanager
def served(folder: Path, cache: str) -> Iterator[Place]:
    (folder / "frames").mkdir(parents=True)
    (folder / "arrays").mkdir()
    port = free_port()
    command = [sys.executable, process_server.__file__, str(folder), str(port), cache]
    process = subprocess.Popen(command, env=os.environ | {KEY_VARIABLE: KEY})
    with stopped_at_the_end(process):
        wait_until_open(port, process, seconds=PATIENCE_S)
        uri = f"http://127.0.0.1:{port}/api/v1"
        client = from_uri(uri, api_key=KEY, trust_env=False)
        for name in ("raw", "denoised"):
            client.create_container(
                name, specs=[Spec("CatalogOfBlueskyRuns", "3.0")], metadata={FRAMES_FOLDER: str(folder / "frames")}
            )
        yield Place(uri, client, folder / "frames")
        client.context.http_client.close()


def wait_for(what: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)
    return found


def address(log: Path) -> str:
    return str(wait_for(lambda: re.search(r"(http://127.0.0.1:\d+)/healthz", log.read_text()))[1])


def finished(place: Place, uid: str) -> Any:
    def look() -> Any:
        run = denoised_for(place.client, uid)
        return run if run is not None and run.metadata.get("stop") else None

    return wait_for(look)


def check(run: Any, frames: int = FRAMES) -> None:
    """Every frame of the scan once, in order."""
    np.testing.assert_array_equal(run["primary"]["seq_num"].read(), np.arange(1, frames + 1))
    np.testing.assert_array_equal(run["primary"]["det_counts_in"].read(), counts(frames).sum(axis=(1, 2)))
    assert np.isfinite(np.asarray(run["primary"]["det"].read())).all()
    ended = run.metadata["stop"]
    assert (ended["exit_status"], ended["provenance"]["complete"], ended["provenance"]["failures"]) == (
        "success",
        True,
        [],
    )


@pytest.mark.parametrize("cache", ["memory", "redis"])
def test_follows_a_scan_and_stops_cleanly(tmp_path: Path, cache: str) -> None:
    """Live updates through Tiled's own cache or Redis; figures for Prometheus; exit status 0 on SIGTERM."""
    with ExitStack() as stack:
        uri = stack.enter_context(private_redis(tmp_path)) if cache == "redis" else "memory"
        place = stack.enter_context(served(tmp_path / "catalogue", uri))
        log = tmp_path / "watch.log"
        service = stack.enter_context(stopped_at_the_end(place.watch(log)))
        where = address(log)
        scan = place.scan()
        uid = scan.communicate(timeout=PATIENCE_S)[0].strip()
        run = finished(place, uid)
        check(run)
        assert run.start["provenance"]["wasGeneratedBy"]["activity"] == "watch"
        assert httpx.get(f"{where}/healthz", trust_env=False).text == "ok\n"
        metrics = httpx.get(f"{where}/metrics", trust_env=False).text
        assert f'symdenoise_frames_total{{outcome="denoised"}} {FRAMES}.0' in metrics
        assert 'symdenoise_runs_total{how="live"} 1.0' in metrics
        service.send_signal(signal.SIGTERM)
        assert service.wait(PATIENCE_S) == 0
        assert log.read_text().endswith("stopped\n")


def test_rows_that_borrow_from_later_ones_wait_for_the_end_of_the_run(tmp_path: Path) -> None:
    """A sweep follows the stop document at once, whatever the interval between sweeps."""
    with served(tmp_path / "catalogue", "memory") as place, ExitStack() as stack:
        log = tmp_path / "watch.log"
        options = ("--borrow", "both", "--borrow-reach", "2", "--sweep", "3600")
        stack.enter_context(stopped_at_the_end(place.watch(log, *options)))
        address(log)
        scan = place.scan(allowed=FRAMES // 2)
        wait_for(lambda: len(place.client["raw"]))
        time.sleep(2)
        assert len(place.client["denoised"]) == 0
        place.allow(FRAMES)
        uid = scan.communicate(timeout=PATIENCE_S)[0].strip()
        run = finished(place, uid)
        check(run)
        assert run.start["provenance"]["recipe"]["borrow"] == "both:2"
        assert str(np.asarray(run["primary"]["det_borrowed_from"].read())[0]) == "1-2"


def test_killed_or_stopped_it_goes_on_where_it_was(tmp_path: Path) -> None:
    """SIGKILL and SIGTERM in the middle of a scan; a second instance is refused; the third finishes the run."""
    frames = 12
    with served(tmp_path / "catalogue", "memory") as place, ExitStack() as stack:
        logs = [tmp_path / f"{i}.log" for i in range(4)]

        def some(service: subprocess.Popen[Any], log: Path, more_than: int) -> None:
            def written() -> bool:
                assert service.poll() is None, log.read_text()
                return len(list(place.frames.glob("*.journal"))) > 0 and entries() > more_than

            wait_for(written)

        def entries() -> int:
            return sum(path.read_text().count('"seq_num"') for path in place.frames.glob("*.journal"))

        first = stack.enter_context(stopped_at_the_end(place.watch(logs[0])))
        address(logs[0])
        second = place.watch(logs[1])
        assert second.wait(PATIENCE_S) == 2
        scan = place.scan(frames=frames, allowed=4)
        some(first, logs[0], 2)
        first.kill()
        first.wait()
        third = stack.enter_context(stopped_at_the_end(place.watch(logs[2])))
        place.allow(8)
        some(third, logs[2], entries() + 2)
        third.send_signal(signal.SIGTERM)
        assert third.wait(PATIENCE_S) == 0
        before = entries()
        place.allow(10)
        last = stack.enter_context(stopped_at_the_end(place.watch(logs[3])))
        address(logs[3])
        place.allow(frames)
        uid = scan.communicate(timeout=PATIENCE_S)[0].strip()
        run = finished(place, uid)
        assert before >= 4
        check(run, frames)
        assert len(place.client["denoised"]) == 1
        assert last.poll() is None
