"""Time to read a lazy run: one frame, the same frame again, and many clients at a time."""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import typer
from bluesky_tiled_plugins import TiledWriter
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from bluesky_symdenoise.acquisition.lazy.register import register
from bluesky_symdenoise.bench.load.scans import resident, run_documents
from bluesky_symdenoise.bench.load.server import served
from bluesky_symdenoise.bench.options import DenoiserThreads, JsonPath
from bluesky_symdenoise.bench.record import header, write
from bluesky_symdenoise.catalog.adapter import CACHE_VARIABLE
from bluesky_symdenoise.catalog.server.serve import embedded_catalog
from bluesky_symdenoise.denoiser.identity import model_file
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.physics.symmetry import Symmetry

Figure = dict[str, Any]

_METRIC = 'symdenoise_lazy_frames_total{outcome="%s"}'


def main(
    json_path: JsonPath = None,
    size: Annotated[int, typer.Option(min=8, help="Pixels along each side, for one reader.")] = 1024,
    repeats: Annotated[int, typer.Option(min=1, help="Frames that one reader reads.")] = 9,
    clients: Annotated[int, typer.Option(min=1, help="Readers at a time.")] = 16,
    frames: Annotated[int, typer.Option(min=2, help="Frames that each of them reads, in random order.")] = 200,
    client_size: Annotated[int, typer.Option(min=8, help="Pixels along each side of these.")] = 256,
    threads: DenoiserThreads = 1,
) -> list[Figure]:
    """Measure what a lazy run costs its readers: one frame, the same again, and many clients at a time.

    The clients read with a cache that holds all frames, and with one that holds a tenth of them.
    """
    about = header(model_file())
    denoiser = Denoiser.pretrained(device="cpu", threads=threads)
    results = [
        *_one_reader(denoiser, size=size, repeats=repeats),
        *(
            _many_readers(denoiser, clients=clients, frames=frames, size=client_size, share=share)
            for share in (2.0, 0.1)
        ),
    ]
    table = Table(title=f"Lazy reading, denoiser on {threads} thread(s)", title_justify="left")
    for column in ("figure", "measured", "target", "met"):
        table.add_column(column)
    for result in results:
        table.add_row(result["figure"], result["measured"], result["target"], "yes" if result["met"] else "no")
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    write(json_path, about, {"results": results})
    return results


def _one_reader(denoiser: Denoiser, *, size: int, repeats: int) -> list[Figure]:
    """Return median times to read one frame first and again, and to read the raw frame and denoise it."""
    counts = np.random.default_rng(0).poisson(1.0, (repeats + 1, size, size)).astype(np.uint16)
    with tempfile.TemporaryDirectory() as folder:
        raw_uid, derived_uid = _made(Path(folder), counts, denoiser)
        with _served(Path(folder), cache=2**30) as (http, _):
            raw, lazy = f"array/full/raw/{raw_uid}/primary/det", f"array/full/denoised/{derived_uid}/primary/det"
            times: dict[str, list[float]] = {"raw": [], "first": [], "again": [], "inference": []}
            # The first frame loads the model.
            for row in range(repeats + 1):
                params = {"slice": f"{row}:{row + 1}"}
                seconds = {
                    "raw": _seconds(lambda params=params: _get(http, raw, params)),  # type: ignore[misc]
                    "first": _seconds(lambda params=params: _get(http, lazy, params)),  # type: ignore[misc]
                    "again": _seconds(lambda params=params: _get(http, lazy, params)),  # type: ignore[misc]
                    "inference": _seconds(lambda row=row: denoiser(counts[row], symmetry=Symmetry())),  # type: ignore[misc]
                }
                if row:
                    for name, value in seconds.items():
                        times[name].append(value)
    medians = {name: float(np.median(values)) * 1000 for name, values in times.items()}
    allowed = medians["raw"] + 1.15 * medians["inference"] + 50
    return [
        {
            "figure": f"lazy read of one {size} x {size} frame",
            "measured": "{first:.0f} ms (raw {raw:.0f} ms, inference {inference:.0f} ms)".format(**medians),
            "target": f"raw + 1.15 inference + 50 ms = {allowed:.0f} ms",
            "met": medians["first"] <= allowed,
            **{f"{name}_ms": value for name, value in medians.items()},
        },
        {
            "figure": "the same frame again",
            "measured": f"{medians['again']:.1f} ms ({medians['again'] / medians['raw']:.2f} x raw)",
            "target": "2 x raw",
            "met": medians["again"] <= 2 * medians["raw"],
            "again_ms": medians["again"],
        },
    ]


def _many_readers(denoiser: Denoiser, *, clients: int, frames: int, size: int, share: float) -> Figure:
    """Measure clients that each read every frame once, in random order, with this share of the frames in cache."""
    counts = np.random.default_rng(1).poisson(1.0, (frames, size, size)).astype(np.uint16)
    cache = int(share * frames * size * size * 8)
    with tempfile.TemporaryDirectory() as folder:
        _, uid = _made(Path(folder), counts, denoiser)
        with _served(Path(folder), cache=cache) as (http, pid):
            path = f"array/full/denoised/{uid}/primary/det"
            _get(http, path, {"slice": "0:1"})
            before, peak, done = resident(pid), [0.0], threading.Event()
            watcher = threading.Thread(target=_watch, args=(pid, peak, done))
            watcher.start()

            def read(seed: int) -> int:
                failed = 0
                for row in np.random.default_rng(seed).permutation(frames):
                    failed += not http.get(path, params={"slice": f"{row}:{row + 1}"}).is_success
                return failed

            begun = time.perf_counter()
            with ThreadPoolExecutor(clients) as pool:
                failed = sum(pool.map(read, range(clients)))
            seconds = time.perf_counter() - begun
            done.set()
            watcher.join()
            said = http.get("metrics").text.splitlines()
    outcomes = {name: _count(said, name) for name in ("computed", "hit", "joined", "failed")}
    grown, once = int((peak[0] - before) * 1e6), outcomes["computed"] == frames
    within = grown <= cache + 2**30
    how = ", ".join(f"{count} {name}" for name, count in outcomes.items() if name != "failed")
    return {
        "figure": f"{clients} clients, {frames} frames of {size} x {size}, cache for {share * frames:.0f}",
        "measured": f"{how}; {failed} errors; "
        f"memory +{grown / 2**20:.0f} MB over {cache / 2**20:.0f} MB of cache; {seconds:.0f} s",
        "target": ("each computed once, " if share > 1 else "") + "no error, memory at most cache + 1 GB",
        "met": within and not failed and (once or share < 1),
        **outcomes,
        "errors": failed,
        "memory_bytes": grown,
        "cache_bytes": cache,
        "seconds": seconds,
    }


def _made(home: Path, counts: NDArray[np.uint16], denoiser: Denoiser) -> tuple[str, str]:
    """Return uids of a raw run in a catalogue and of its lazy run."""
    with embedded_catalog(home) as client:
        documents = run_documents(home / "frames", counts, len(counts))
        writer = TiledWriter(client["raw"])
        for name, doc in documents:
            writer(name, doc)
        uid = str(documents[0][1]["uid"])
        derived = register(client["raw"][uid], client["denoised"], denoiser=denoiser, symmetry="1")
        return uid, str(derived.start["uid"])


@contextmanager
def _served(home: Path, *, cache: int) -> Iterator[tuple[httpx.Client, int]]:
    """Return a plain client of a server with this many bytes of cache, and the server's process id."""
    with served(home, environment={CACHE_VARIABLE: str(cache)}) as server:
        headers = {"Authorization": f"Apikey {server.key}", "Accept": "application/octet-stream, */*;q=0.1"}
        with httpx.Client(base_url=server.url, headers=headers, timeout=600, trust_env=False) as http:
            yield http, server.pid


def _get(http: httpx.Client, path: str, params: dict[str, str]) -> bytes:
    return http.get(path, params=params).raise_for_status().content


def _seconds(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _watch(pid: int, peak: list[float], done: threading.Event) -> None:
    while not done.wait(0.05):
        peak[0] = max(peak[0], resident(pid))


def _count(said: list[str], outcome: str) -> int:
    name = _METRIC % outcome
    return sum(int(float(line.rsplit(" ", 1)[1])) for line in said if line.startswith(name))
