"""Report pages are drawn aside, shared by all who wait for them, and kept in memory as long as they are right."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import httpx
import numpy as np
import pytest
from fastapi import HTTPException
from prometheus_client import REGISTRY
from raw_runs import step_scan, write_run
from tiled.client.container import Container

from bluesky_symdenoise import ThreadedDenoiseCallback, denoised_for, embedded_catalog, replay
from bluesky_symdenoise.catalog.report import processes, shared
from bluesky_symdenoise.catalog.report.drawn import Drawing, ReadFrame
from bluesky_symdenoise.catalog.report.processes import DrawingError, DrawingProcesses
from bluesky_symdenoise.catalog.report.shared import MOST_PENDING, Page, SharedPages
from bluesky_symdenoise.physics.symmetry import Symmetry

KEY = "pagesKey1"
SHAPE = (64, 80)


def counted() -> dict[str, float]:
    """Pages of this process by outcome."""
    outcomes = ("hit", "made", "joined", "failed", "refused")
    return {
        name: REGISTRY.get_sample_value("symdenoise_report_pages_total", {"outcome": name}) or 0 for name in outcomes
    }


def since(before: dict[str, float]) -> dict[str, int]:
    """What was added, without zeros."""
    return {name: int(value - before[name]) for name, value in counted().items() if value != before[name]}


# --- sharing and keeping


class Maker:
    """Pages that are finished when they are let go."""

    def __init__(self, *, size: int = 10, lasting: bool = True) -> None:
        self.made, self.go, self.size, self.lasting = 0, asyncio.Event(), size, lasting
        self.error: Exception | None = None

    async def __call__(self) -> Page:
        await self.go.wait()
        self.made += 1
        if self.error is not None:
            raise self.error
        return Page(b"%d" % self.made * self.size, self.lasting)


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_all_who_wait_get_one_page_which_is_kept() -> None:
    async def asked() -> None:
        pages, make, before = SharedPages(100), Maker(), counted()
        waiting = [asyncio.create_task(pages.get("a", make)) for _ in range(5)]
        await settled()
        make.go.set()
        assert await asyncio.gather(*waiting) == [b"1" * 10] * 5
        assert await pages.get("a", make) == b"1" * 10
        assert since(before) == {"made": 1, "joined": 4, "hit": 1}
        assert await pages.get("b", make) == b"2" * 10, "another page is not this one"

    asyncio.run(asked())


def test_an_error_reaches_all_who_wait_and_is_not_kept() -> None:
    async def asked() -> None:
        pages, make = SharedPages(100), Maker()
        make.error = DrawingError("no")
        waiting = [asyncio.create_task(pages.get("a", make)) for _ in range(5)]
        await settled()
        make.go.set()
        said = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(each) for each in said] == [DrawingError] * 5
        assert make.made == 1
        make.error = None
        assert await pages.get("a", make) == b"2" * 10

    asyncio.run(asked())


def test_one_who_goes_away_takes_the_page_from_nobody() -> None:
    async def asked() -> None:
        pages, make = SharedPages(100), Maker()
        first, second = (asyncio.create_task(pages.get("a", make)) for _ in range(2))
        await settled()
        first.cancel()
        await settled()
        make.go.set()
        assert await second == b"1" * 10
        assert first.cancelled()

    asyncio.run(asked())


def test_what_is_kept_is_bounded_by_bytes_and_the_oldest_goes_first() -> None:
    async def asked() -> None:
        pages, make = SharedPages(25), Maker()
        make.go.set()
        for key in ("a", "b", "a", "c"):
            await pages.get(key, make)
        before = counted()
        for key in ("a", "c", "b"):
            await pages.get(key, make)
        assert since(before) == {"hit": 2, "made": 1}, "b was used least"
        held = REGISTRY.get_sample_value("symdenoise_report_cache_bytes")
        make.size = 26
        for _ in range(2):
            await pages.get("large", make)
        assert since(before) == {"hit": 2, "made": 3}, "what is larger than the memory is not kept"
        assert REGISTRY.get_sample_value("symdenoise_report_cache_bytes") == held

    asyncio.run(asked())


def test_a_page_that_may_change_is_not_kept() -> None:
    async def asked() -> None:
        pages, make = SharedPages(100), Maker(lasting=False)
        make.go.set()
        assert [await pages.get("a", make) for _ in range(2)] == [b"1" * 10, b"2" * 10]

    asyncio.run(asked())


def test_more_pages_than_may_wait_are_refused_and_told_when_to_ask_again() -> None:
    async def asked() -> None:
        pages, make = SharedPages(10**6), Maker()
        waiting = [asyncio.create_task(pages.get(number, make)) for number in range(MOST_PENDING)]
        await settled()
        with pytest.raises(HTTPException) as refused:
            await pages.get("one more", make)
        assert refused.value.status_code == 503
        assert 2 <= int(refused.value.headers["Retry-After"]) <= 60
        # Control: one that is already being made is waited for by any number.
        waiting.append(asyncio.create_task(pages.get(0, make)))
        make.go.set()
        assert len(await asyncio.gather(*waiting)) == MOST_PENDING + 1
        assert await pages.get("one more", make)

    asyncio.run(asked())


def test_the_size_of_the_memory_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(shared.CACHE_VARIABLE, "2 GB")
    with pytest.raises(ValueError, match="it must be a number of bytes"):
        shared.pages_of(Maker)


# --- the processes


def drawing(shape: tuple[int, int] = SHAPE) -> Drawing:
    counts = np.random.default_rng(3).poisson(3, shape).astype(np.uint16)
    rate = np.full(shape, 3, np.float32)
    return Drawing(0, None, ReadFrame(counts, rate, rate, None, None, Symmetry("2", (31.5, 39.5))), None, {})


@pytest.fixture
def one() -> Iterator[DrawingProcesses]:
    made = DrawingProcesses(1)
    yield made
    made.stop()
    assert made.pids == []


@pytest.mark.process
def test_a_process_that_was_killed_is_started_again(one: DrawingProcesses) -> None:
    first = one.draw(drawing())
    (pid,) = one.pids
    os.kill(pid, signal.SIGKILL)
    again = one.draw(drawing())
    assert one.pids != [pid]
    assert first.picture == again.picture
    assert first.picture.startswith(b"\x89PNG")


@pytest.mark.process
def test_a_process_without_work_ends_and_is_started_when_there_is_some(
    one: DrawingProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "IDLE_S", 0.1)
    one.draw(drawing())
    (pid,) = one.pids
    until(lambda: Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z")
    assert one.draw(drawing()).picture


@pytest.mark.process
def test_an_error_in_a_frame_is_told_and_leaves_the_process_for_the_next(one: DrawingProcesses) -> None:
    with pytest.raises(DrawingError, match="Traceback"):
        one.draw(drawing((0, 5)))
    before = one.pids
    assert one.draw(drawing()).picture
    assert one.pids == before


_STARTS = """
import sys, time
from bluesky_symdenoise.catalog.report.processes import DrawingProcesses
made = DrawingProcesses(2)
made.start(2)
print(*made.pids, flush=True)
time.sleep(600)
"""


@pytest.mark.process
def test_they_end_with_the_server_however_it_ends() -> None:
    server = subprocess.Popen([sys.executable, "-c", _STARTS], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    with server.stdout:
        pids = [int(pid) for pid in server.stdout.readline().split()]
        server.kill()
        server.wait()
    assert len(pids) == 2
    for pid in pids:
        until(lambda pid=pid: not alive(pid))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(reached: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# --- on a server


@pytest.fixture(scope="module")
def client(home: Path) -> Iterator[Container]:
    with embedded_catalog(home, api_key=KEY) as client:
        yield client


def counts(frames: int = 3) -> np.ndarray:
    return np.random.default_rng(5).poisson(3, (frames, *SHAPE)).astype(np.uint16)


@pytest.fixture(scope="module")
def run(client: Container, home: Path, denoiser: Any) -> Any:
    uid = write_run(client["raw"], home / "frames", {"det": counts()})
    return replay(
        client["raw"][uid], into=client["denoised"], denoiser=denoiser, symmetry="2", beam_center=(31.5, 39.5)
    )


def page(client: Container, uid: str, parameters: str = "") -> httpx.Response:
    url = f"{client.context.api_uri}container/full/denoised/{uid}"
    headers = {"Authorization": f"Apikey {KEY}"}
    return httpx.get(url, params={"format": f"text/html{parameters}"}, headers=headers, timeout=120)


def at_once(number: int, ask: Callable[[], httpx.Response]) -> list[httpx.Response]:
    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(lambda _: ask(), range(number)))


@pytest.mark.server
@pytest.mark.process
def test_several_who_ask_at_once_get_one_page(client: Container, run: Any) -> None:
    before = counted()
    answers = at_once(8, lambda: page(client, run.start["uid"]))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    found = since(before)
    assert found["made"] == 1
    assert found.get("joined", 0) + found.get("hit", 0) == 7
    # Controls: the same frames in other words are the same page, and other frames are another.
    before = counted()
    for frames in ("0+1", "0-1", "1+0", "1"):
        assert page(client, run.start["uid"], f";frames={frames}").status_code == 200
    assert since(before) == {"made": 2, "hit": 2}


@pytest.mark.server
@pytest.mark.process
def test_a_page_follows_the_metadata_that_it_shows(client: Container, run: Any) -> None:
    uid = run.start["uid"]
    assert "mended by hand" not in page(client, uid).text
    run.update_metadata({"start": {**run.start, "sample": "mended by hand"}})
    assert "mended by hand" in page(client, uid).text


@pytest.mark.server
@pytest.mark.process
def test_an_error_in_drawing_reaches_all_who_wait_and_is_not_kept(
    client: Container, run: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    processes._processes().stop()
    with monkeypatch.context() as patch:
        patch.setattr(processes, "_START", "raise SystemExit('broken')")
        answers = at_once(4, lambda: page(client, run.start["uid"], ";frames=2"))
    assert [answer.status_code for answer in answers] == [422] * 4
    assert "could not be drawn" in answers[0].json()["detail"]
    assert "ended twice" in caplog.text
    assert page(client, run.start["uid"], ";frames=2").status_code == 200


@pytest.mark.server
@pytest.mark.process
def test_the_page_of_a_growing_run_is_not_stale(client: Container, home: Path, denoiser: Any) -> None:
    from bluesky_tiled_plugins import TiledWriter

    documents = list(step_scan(home / "frames", counts(4)))
    (uid,) = (doc["uid"] for name, doc in documents if name == "start")
    with h5py.File(home / "frames" / f"{uid}.h5", "w") as file:
        # Tiled reads what is announced of a file that holds more only if frames have the dimensions that are stated.
        file["counts"] = counts(4)[:, None]
    events = [place for place, (name, _) in enumerate(documents) if name == "event"]
    raw = TiledWriter(client["raw"], batch_size=1)
    callback = ThreadedDenoiseCallback(client["denoised"], denoiser=denoiser, symmetry="1", directory=home / "denoised")

    def rows() -> int:
        made = denoised_for(client, uid)
        if made is None or "primary" not in made.base or "internal" not in made.base["primary"].base:
            return 0
        return len(made.base["primary"].base["internal"].read())

    with callback:
        sent = 0
        for row in (2, 3):
            for name, doc in documents[sent : events[row - 1] + 1]:
                raw(name, doc)
                callback(name, doc)
            sent = events[row - 1] + 1
            until(lambda row=row: rows() == row)
            before = counted()
            derived = denoised_for(client, uid).start["uid"]
            for _ in range(2):
                text = page(client, derived).text
                assert f"<p>{row} frames, " in text
                assert "no stop document" in text
                assert [f"<h3>Frame {number}</h3>" in text for number in range(4)] == [n < row for n in range(4)]
            assert since(before) == {"made": 2}
        for name, doc in documents[sent:]:
            raw(name, doc)
            callback(name, doc)
    text = page(client, derived).text
    assert "<p>4 frames, " in text
    assert "All frames were denoised." in text
    before = counted()
    assert page(client, derived).text == text
    assert since(before) == {"hit": 1}, "a finished run does not grow"
