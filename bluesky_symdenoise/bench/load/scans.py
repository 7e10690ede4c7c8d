"""Scans, and what is around them, for the benches of load."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from event_model import compose_run

from bluesky_symdenoise.acquisition.live.callback import DenoiseCallback
from bluesky_symdenoise.acquisition.live.status import Status
from bluesky_symdenoise.bench.load.server import ServerProcess
from bluesky_symdenoise.catalog.find.query import denoised_for

if TYPE_CHECKING:
    from numpy.typing import NDArray

Documents = list[tuple[str, dict[str, Any]]]


def frames_of(size: int, n: int = 4) -> NDArray[np.uint16]:
    """Return frames (n, size, size) of one count a pixel."""
    return np.random.default_rng(0).poisson(1.0, (n, size, size)).astype(np.uint16)


def run_documents(folder: Path, frames: NDArray[np.uint16], events: int) -> Documents:
    """Return documents of a run whose frames are in a file already."""
    run = compose_run()
    path = folder / f"{run.start_doc['uid']}.h5"
    shape = frames.shape[1:]
    with h5py.File(path, "w") as file:
        data = file.create_dataset("data", (events, *shape), frames.dtype, chunks=(1, *shape), compression="lzf")
        for row in range(events):
            data[row] = frames[row % len(frames)]
    data_key = {
        "source": "bench",
        "dtype": "array",
        "dtype_numpy": frames.dtype.str,
        "shape": [1, *shape],
        "external": "STREAM:",
    }
    descriptor = run.compose_descriptor(name="primary", data_keys={"det": data_key})
    resource = run.compose_stream_resource(
        mimetype="application/x-hdf5",
        uri=f"file://localhost{path}",
        data_key="det",
        parameters={"dataset": "data", "chunk_shape": (1, *shape)},
    )
    documents: Documents = [
        ("start", run.start_doc),
        ("descriptor", descriptor.descriptor_doc),
        ("stream_resource", resource.stream_resource_doc),
    ]
    for row in range(events):
        indices, numbers = {"start": row, "stop": row + 1}, {"start": row + 1, "stop": row + 2}
        documents.append(("stream_datum", resource.compose_stream_datum(indices, numbers, descriptor.descriptor_doc)))
        documents.append(("event", descriptor.compose_event(data={}, timestamps={}, seq_num=row + 1)))
    return [*documents, ("stop", run.compose_stop())]


def hand(callback: DenoiseCallback, documents: Documents) -> None:
    """Give all documents to a callback."""
    for name, doc in documents:
        callback(name, doc)


def until(callback: DenoiseCallback, reached: Callable[[Status], bool]) -> Status:
    """Return the status of a callback once it is as wanted."""
    while not reached(status := callback.status()):
        time.sleep(0.1)
    return status


def readable(server: ServerProcess, raw_uid: str, rows: int) -> bool:
    """Return whether so many denoised frames of a raw run can be read."""
    run = denoised_for(server.client, raw_uid)
    if run is None or "primary" not in run or "det" not in run["primary"]:
        return False
    node = run["primary"]["det"]
    return node.shape[0] >= rows and bool(np.isfinite(node[rows - 1]).any())


def resident(pid: int) -> float:
    """Return resident memory of a process in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextmanager
def busy() -> Iterator[None]:
    """Keep every core busy with a separate process."""
    burners = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(len(os.sched_getaffinity(0)))
    ]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def device() -> str:
    """Return the name of the device that the worker takes; a process of its own finds it, so that this has no torch."""
    code = "from bluesky_symdenoise import Denoiser; print(Denoiser.pretrained().environment()['device'])"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


_ALONE = """
import sys, time, numpy as np
from bluesky_symdenoise.denoiser.settings import DenoiserSettings
size, threads, n = map(int, sys.argv[1:])
denoiser = DenoiserSettings(threads=threads).load()
frame = np.random.default_rng(0).poisson(1.0, (size, size)).astype(np.uint16)
denoiser(frame, symmetry="1")
begun = time.perf_counter()
for _ in range(n):
    denoiser(frame, symmetry="1")
print((time.perf_counter() - begun) / n)
"""


def alone(size: int, threads: int) -> float:
    """Return seconds per frame of the denoiser in a loop, in a separate process as the worker is."""
    arguments = [sys.executable, "-c", _ALONE, str(size), str(threads), "8"]
    return float(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)
