"""A worker that is killed in the middle of a run borrows afterwards what it would have borrowed without."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from borrowing import drifting, inline
from raw_runs import step_scan
from tiled.client.container import Container

from bluesky_symdenoise import denoised_for, replay
from bluesky_symdenoise.acquisition.live.callback import DenoiseCallback
from bluesky_symdenoise.catalog.server.serve import embedded_catalog
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.denoiser.settings import DenoiserSettings

pytestmark = [pytest.mark.server, pytest.mark.process]

ROWS = 8
SETTINGS: dict[str, Any] = {"symmetry": "1", "borrow": "past", "borrow_reach": 3}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("borrow_killed")


@pytest.fixture(scope="module")
def client(home: Path) -> Iterator[Container]:
    with embedded_catalog(home) as client:
        yield client


def table(run: Any) -> dict[str, np.ndarray]:
    stream = run["primary"]
    return {name: np.asarray(stream[name].read()) for name in stream if name != "det_ms"}


def test_a_killed_worker_goes_on_with_the_rows_before(home: Path, client: Container, tmp_path: Path) -> None:
    """One run with its images in a file, one with images inside its events; as a replay of the whole, bit for bit."""
    frames = drifting(ROWS)
    runs = list(step_scan(home / "frames", frames)), inline(frames)
    callback = DenoiseCallback(client["denoised"], denoiser=DenoiserSettings(threads=1), **SETTINGS)
    for documents, half in zip(runs, (11, 6), strict=True):
        for name, doc in documents[:half]:
            callback(name, doc)
    deadline = time.monotonic() + 240
    while callback.status().frames < 5:
        assert time.monotonic() < deadline, callback.status()
        time.sleep(0.05)
    os.kill(callback.worker_pid, signal.SIGKILL)
    for documents, half in zip(runs, (11, 6), strict=True):
        for name, doc in documents[half:]:
            callback(name, doc)
    status = callback.close(timeout=240)
    assert (status.frames, status.failed, status.restarts) == (2 * ROWS, 0, 1), status
    tables = []
    for documents in runs:
        live = table(denoised_for(client, documents[0][1]["uid"]))
        denoiser = Denoiser.pretrained(threads=1)
        again = table(replay(documents, into=client["denoised"], denoiser=denoiser, force=True, **SETTINGS))
        assert live.keys() == again.keys()
        for name in live:
            np.testing.assert_array_equal(live[name], again[name], err_msg=name)
        tables.append(again)
    np.testing.assert_array_equal(np.squeeze(tables[0]["det"]), np.squeeze(tables[1]["det"]))
    assert list(tables[0]["det_borrowed_from"][:4]) == ["", "0", "0-1", "0-2"]
    assert tables[0]["det_borrowed"][3:].min() > 0
