"""The example for bluesky-queueserver: a real RE Manager with its startup profile."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from callback_runs import column, derived_of, outcome
from servers import free_port, stopped_at_the_end, wait_until_open
from tiled.client.container import Container

from bluesky_symdenoise.catalog.server.serve import embedded_catalog

comms = pytest.importorskip("bluesky_queueserver.manager.comms")

pytestmark = [pytest.mark.server, pytest.mark.process]

EXAMPLE = Path(__file__).parents[2] / "examples" / "queueserver"
Ask = Callable[..., dict[str, Any]]


class Manager:
    """A RE Manager that is asked over 0MQ."""

    def __init__(self, talk: Any) -> None:
        self._talk = talk

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self._talk.send_message(
            method=method, params=parameters or None, raise_exceptions=False
        )
        return {"error": answer["msg"], **answer} if "manager_state" not in answer and method == "status" else answer

    def until(self, reached: Callable[[dict[str, Any]], bool], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not ("error" not in (status := self.ask("status")) and reached(status)):
            assert time.monotonic() < deadline, status
            time.sleep(0.2)

    def open(self) -> None:
        assert self.ask("environment_open")["success"]
        self.until(lambda status: status["worker_environment_exists"] and status["manager_state"] == "idle")

    def take(self, num: int) -> None:
        item = {"item_type": "plan", "name": "take", "kwargs": {"num": num}}
        assert self.ask("queue_item_add", item=item, user="me", user_group="primary")["success"]
        assert self.ask("queue_start")["success"]
        self.until(lambda status: status["manager_state"] == "idle" and not status["items_in_queue"])

    def end(self, how: str) -> None:
        assert self.ask(how)["success"]
        self.until(lambda status: not status["worker_environment_exists"] and status["manager_state"] == "idle")


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[tuple[Manager, Container, Path]]:
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    redis, control, info = free_port(), free_port(), free_port()
    with ExitStack() as stack:
        client = stack.enter_context(embedded_catalog(tmp_path / "catalog", api_key="5ec2e7"))
        store = ["redis-server", "--bind", "127.0.0.1", "--port", str(redis), "--save", "", "--dir", str(tmp_path)]
        process = subprocess.Popen(store, stdout=subprocess.DEVNULL)
        stack.enter_context(stopped_at_the_end(process))
        wait_until_open(redis, process)
        command = [sys.executable, str(Path(sys.executable).with_name("start-re-manager"))]
        command += ["--startup-dir", str(EXAMPLE), "--keep-re", "--redis-addr", f"127.0.0.1:{redis}"]
        command += ["--zmq-control-addr", f"tcp://127.0.0.1:{control}", "--zmq-info-addr", f"tcp://127.0.0.1:{info}"]
        command += ["--update-existing-plans-devices", "NEVER", "--user-group-permissions-reload", "ON_STARTUP"]
        command += ["--existing-plans-devices", str(tmp_path / "plans.yaml")]
        environment = os.environ | {
            "TILED_URI": str(client.uri),
            "TILED_API_KEY": "5ec2e7",
            "DETECTOR_FOLDER": str(tmp_path / "catalog" / "frames" / "detector"),
            "DETECTOR_SIZE": "1024",
        }
        log = stack.enter_context((tmp_path / "manager.log").open("w"))
        started = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT)
        stack.enter_context(stopped_at_the_end(started))
        talk = comms.ZMQCommSendThreads(zmq_server_address=f"tcp://127.0.0.1:{control}", raise_exceptions=False)
        # Closing it leaves its context open.
        stack.callback(talk._ctx.term)
        stack.callback(talk.close)
        made = Manager(talk)
        made.until(lambda status: status["manager_state"] == "idle")
        yield made, client, tmp_path


@pytest.mark.parametrize("how", ["environment_close", "environment_destroy"])
def test_frames_taken_before_the_environment_ends_are_all_denoised(
    how: str, manager: tuple[Manager, Container, Path]
) -> None:
    """The denoiser is behind then, and neither is waited for nor cut off."""
    asked, client, home = manager
    asked.open()
    asked.take(2)
    asked.take(8)
    asked.end(how)
    deadline = time.monotonic() + 240
    spool = home / "catalog" / "denoised"
    while [path for path in spool.rglob("*") if path.suffix in (".documents", ".jsonl", ".journal")]:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    for raw in client["raw"].values():
        run = derived_of(client, _Uid(raw.start["uid"]))
        meant = np.asarray(raw["primary"]["det"].read(), np.float64).sum(axis=(1, 2, 3))
        np.testing.assert_array_equal(column(run, "det_counts_in"), meant)
        assert outcome(run)["complete"]
    assert len(client["denoised"]) == 2


class _Uid:
    def __init__(self, uid: str) -> None:
        self.uid = uid
