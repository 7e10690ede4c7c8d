"""Time to get report pages from a server: drawn, from memory, several at once, and what a reader of arrays notices."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations, islice
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import typer
from bluesky_tiled_plugins import TiledWriter
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from bluesky_symdenoise.acquisition.past.replay import replay
from bluesky_symdenoise.bench.load.scans import run_documents
from bluesky_symdenoise.bench.load.server import served
from bluesky_symdenoise.bench.options import JsonPath
from bluesky_symdenoise.bench.record import header, write
from bluesky_symdenoise.catalog.server.serve import embedded_catalog
from bluesky_symdenoise.denoiser.identity import model_file
from bluesky_symdenoise.denoiser.infer import Denoiser

Figure = dict[str, Any]

#: Seconds wanted for a page that is drawn, and for one from memory; times a read alone, for one beside drawing.
DRAWN_S, MEMORY_S, BESIDE = 3.0, 0.3, 2.0
#: Frames of the run. A page shows three of them, each choice of three another page.
FRAMES = 8
#: Reads of an array without a page beside them.
READS = 20


def main(
    json_path: JsonPath = None,
    size: Annotated[int, typer.Option(min=32, help="Pixels along each side.")] = 1024,
    repeats: Annotated[int, typer.Option(min=1, max=20, help="Pages that are asked for one after another.")] = 5,
    clients: Annotated[int, typer.Option(min=1, max=16, help="Users who ask at once.")] = 8,
) -> list[Figure]:
    """Measure how long report pages take: drawn, from memory, several users at once, and a read of an array beside.

    A page shows three frames. Memory of pages begins empty with the server, a process of its own.
    """
    about = header(model_file())
    choices = ["+".join(map(str, chosen)) for chosen in combinations(range(FRAMES), 3)]
    with tempfile.TemporaryDirectory() as folder:
        uid = _made(Path(folder), _rings(size))
        with (
            served(Path(folder)) as server,
            httpx.Client(
                base_url=server.url,
                headers={"Authorization": f"Apikey {server.key}"},
                timeout=600,
                trust_env=False,
                limits=httpx.Limits(max_connections=2 * clients),
            ) as http,
        ):
            # The first request of all opens files and tables.
            _read(http, uid)
            take = iter(choices)
            results = [
                *_one_user(http, uid, list(islice(take, repeats + 1)), size, server.pid),
                _at_once(http, uid, [next(take)] * clients, "the same page"),
                _at_once(http, uid, list(islice(take, clients)), "different pages"),
                _beside(http, uid, list(islice(take, repeats))),
            ]
    table = Table(title=f"Report pages, three frames of {size} x {size}", title_justify="left")
    for column in ("figure", "measured", "target", "met"):
        table.add_column(column)
    for result in results:
        table.add_row(result["figure"], result["measured"], result["target"], "yes" if result["met"] else "no")
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    write(json_path, about, {"results": results})
    return results


def _rings(size: int) -> NDArray[np.uint16]:
    y, x = np.ogrid[:size, :size]
    radius = np.hypot(y - (size - 1) / 2, x - (size - 1) / 2) / size
    rate = 0.3 + 6 * np.exp(-(((radius - 0.1) / 0.01) ** 2)) + 3 * np.exp(-(((radius - 0.3) / 0.015) ** 2))
    return np.random.default_rng(0).poisson(rate, (FRAMES, size, size)).astype(np.uint16)


def _made(home: Path, counts: NDArray[np.uint16]) -> str:
    """Return the uid of a denoised run of these frames in a catalogue."""
    center = (counts.shape[1] - 1) / 2
    with embedded_catalog(home) as client:
        documents = run_documents(home / "frames", counts, len(counts))
        writer = TiledWriter(client["raw"])
        for name, doc in documents:
            writer(name, doc)
        derived: Any = replay(
            client["raw"][str(documents[0][1]["uid"])],
            into=client["denoised"],
            denoiser=Denoiser.pretrained(device="cpu", threads=1),
            symmetry="2mm",
            beam_center=(center, center),
        )
        return str(derived.start["uid"])


def _one_user(http: httpx.Client, uid: str, choices: Sequence[str], size: int, pid: int) -> list[Figure]:
    """Return times of the first page of a server, of others, and of one that is in memory."""
    drawn, worked = [], []
    for frames in choices:
        before = _processor_s(pid)
        drawn.append(_seconds(lambda frames=frames: _page(http, uid, frames)))  # type: ignore[misc]
        worked.append(_processor_s(pid) - before)
    again = [_seconds(lambda: _page(http, uid, choices[-1])) for _ in range(10)]
    median, work, memory = (float(np.median(times)) for times in (drawn[1:], worked[1:], again))
    megabytes = len(_page(http, uid, choices[-1]).content) / 2**20
    return [
        {
            "figure": f"first page of a server, three frames of {size} x {size}",
            "measured": f"{drawn[0]:.1f} s, {worked[0]:.1f} s of processors ({megabytes:.1f} MB)",
            "target": f"{DRAWN_S:g} s",
            "met": drawn[0] <= DRAWN_S,
            "seconds": drawn[0],
            "processor_seconds": worked[0],
        },
        {
            "figure": f"pages of other frames, median of {len(choices) - 1}",
            "measured": f"{median:.1f} s ({min(drawn[1:]):.1f} to {max(drawn[1:]):.1f}), {work:.1f} s of processors",
            "target": f"{DRAWN_S:g} s",
            "met": median <= DRAWN_S,
            "seconds": drawn[1:],
            "processor_seconds": worked[1:],
        },
        {
            "figure": "a page that is in memory, median",
            "measured": f"{1e3 * memory:.0f} ms",
            "target": f"{1e3 * MEMORY_S:.0f} ms",
            "met": memory <= MEMORY_S,
            "seconds": again,
        },
    ]


def _processor_s(pid: int) -> float:
    """Return seconds of processors that a process has taken with its children, those that have ended included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    own = sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")
    children = [child for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]
    return own + sum(_processor_s(int(child)) for child in children)


def _at_once(http: httpx.Client, uid: str, choices: Sequence[str], what: str) -> Figure:
    """Return what users get who ask at once, each for one of these choices of frames."""
    answers: list[tuple[int, float]] = []

    def ask(frames: str) -> None:
        begun = time.perf_counter()
        status = http.get(f"container/full/denoised/{uid}", params=_asked(frames)).status_code
        answers.append((status, time.perf_counter() - begun))

    with ThreadPoolExecutor(len(choices)) as pool:
        list(pool.map(ask, choices))
    statuses = Counter(status for status, _ in answers)
    seconds = sorted(taken for _, taken in answers)
    said = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
    return {
        "figure": f"{len(choices)} users at once, {what}",
        "measured": f"{said}; slowest {seconds[-1]:.1f} s, first {seconds[0]:.1f} s",
        "target": "all 200",
        "met": set(statuses) == {200},
        "statuses": {str(status): count for status, count in statuses.items()},
        "seconds": seconds,
    }


def _beside(http: httpx.Client, uid: str, choices: Sequence[str]) -> Figure:
    """Return how long reads of another frame take, alone and while pages are drawn without a break."""
    alone = [_seconds(lambda: _read(http, uid)) for _ in range(READS)]
    done = threading.Event()

    def draw() -> None:
        try:
            for frames in choices:
                _page(http, uid, frames)
        finally:
            done.set()

    beside = []
    with ThreadPoolExecutor(1) as pool:
        drawing = pool.submit(draw)
        while not done.is_set():
            beside.append(_seconds(lambda: _read(http, uid)))
        drawing.result()
    medians = [1e3 * float(np.median(times)) for times in (alone, beside)]
    return {
        "figure": "read of an array's frame while pages are drawn",
        "measured": f"median {medians[1]:.0f} ms, longest {1e3 * max(beside):.0f} ms "
        f"(alone {medians[0]:.0f} and {1e3 * max(alone):.0f} ms)",
        "target": f"median {BESIDE:g} x alone",
        "met": medians[1] <= BESIDE * medians[0],
        "alone_ms": medians[0],
        "beside_ms": medians[1],
        "alone_longest_ms": 1e3 * max(alone),
        "beside_longest_ms": 1e3 * max(beside),
        "reads": len(beside),
    }


def _asked(frames: str) -> dict[str, str]:
    return {"format": f"text/html;frames={frames}"}


def _page(http: httpx.Client, uid: str, frames: str) -> httpx.Response:
    return http.get(f"container/full/denoised/{uid}", params=_asked(frames)).raise_for_status()


def _read(http: httpx.Client, uid: str) -> bytes:
    params = {"format": "application/octet-stream", "slice": f"{FRAMES - 1}:{FRAMES}"}
    return http.get(f"array/full/denoised/{uid}/primary/det", params=params).raise_for_status().content


def _seconds(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
