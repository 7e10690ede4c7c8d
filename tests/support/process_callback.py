"""A RunEngine's process with a callback that is far behind, and ends in one of many ways: URI HOW FRAMES FOLDER.

The key is in TILED_API_KEY. Its last words are the uid of the raw run, the pid of the worker, how many documents wait
for that, and the pid of a fork that goes on, or 0.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
from bluesky_tiled_plugins import TiledWriter
from raw_runs import step_scan
from tiled.client import from_uri

from bluesky_symdenoise.acquisition.live.callback import DenoiseCallback
from bluesky_symdenoise.denoiser.settings import DenoiserSettings


def counts(n: int) -> np.ndarray:
    """Frames of this scan, (n, y, x): no two alike."""
    return np.random.default_rng(3).poisson(2.0, (n, 192, 192)).astype(np.uint16)


def work(uri: str, how: str, frames: int, folder: Path) -> None:
    """Take a whole run, more of it than the worker is given at a time, and end; `cut` ends it in the middle."""
    client = from_uri(uri, api_key=os.environ["TILED_API_KEY"], trust_env=False)
    writer = TiledWriter(client["raw"])
    callback = DenoiseCallback(client["denoised"], denoiser=DenoiserSettings(threads=1), symmetry="1", nice=0)
    documents = list(step_scan(folder, counts(frames)))
    if how.startswith("cut"):
        documents = documents[: len(documents) * 3 // 4]
    for name, doc in documents:
        writer(name, doc)
    for name, doc in documents:
        callback(name, doc)
    end(how.removeprefix("cut "), callback, documents[0][1]["uid"])


def end(how: str, callback: DenoiseCallback, uid: str) -> None:
    """End this process: at once, while the worker loads its denoiser, or while it is at one of the first frames."""
    fork = None
    if how == "with a fork that goes on":
        fork = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,), daemon=False)
        fork.start()
    if how.endswith(" while it loads"):
        how = how.removesuffix(" while it loads")
        assert callback._feeder.flush(60)
        assert not callback.status().frames
    else:
        while how not in ("return", "os._exit at once", "interrupt at exit") and callback.status().frames < 2:
            time.sleep(0.02)
    print(uid, callback.worker_pid, callback.status().waiting, fork.pid if fork else 0, flush=True)
    match how:
        case "return":
            return
        case "os._exit at once" | "os._exit" | "with a fork that goes on":
            os._exit(0)
        case "interrupt at exit":
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            return
        case "SIGTERM" | "SIGKILL" as name:
            os.kill(os.getpid(), getattr(signal, name))
        case "SIGKILL both":
            os.kill(callback.worker_pid, signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Work in this process, or in one that multiprocessing makes, as queue servers do."""
    uri, how, frames, folder = sys.argv[1:]
    arguments = uri, how.removeprefix("fork ").removeprefix("spawn "), int(frames), Path(folder)
    if how.startswith(("fork ", "spawn ")):
        process = multiprocessing.get_context(how.split()[0]).Process(target=work, args=arguments)
        process.start()
        process.join()
    else:
        work(*arguments)


if __name__ == "__main__":
    main()
