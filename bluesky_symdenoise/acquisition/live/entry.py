"""The worker process, from its start: it loads its denoiser, then takes documents through a private pipe.

Run by `bluesky_symdenoise.acquisition.live.process.WorkerProcess` only.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
from importlib import import_module
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any

from bluesky_symdenoise import _garbage
from bluesky_symdenoise.acquisition.live.worker import Reports, Worker, WorkerSetup
from bluesky_symdenoise.acquisition.runs.replaced import Replaced
from bluesky_symdenoise.errors import SymDenoiseError

if TYPE_CHECKING:
    from bluesky_symdenoise.denoiser.settings import DenoiserSettings


def main() -> None:
    """Run the worker: ``fd nice`` is on the command line, everything else comes through the pipe."""
    nice = int(sys.argv[2])
    os.nice(nice)
    # Ctrl-C and a closed terminal are meant for the RunEngine; the documents that it sent are still processed.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    pipe = Connection(int(sys.argv[1]))
    reports = Reports(pipe)
    inbox: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
    replaced = Replaced()
    threading.Thread(target=_listen, args=(pipe, inbox, replaced), daemon=True).start()
    _garbage.end_quickly()
    _work(reports, inbox, replaced, nice=nice)


def _work(reports: Reports, inbox: queue.SimpleQueue[tuple[Any, ...]], replaced: Replaced, *, nice: int) -> None:
    """Load the denoiser, then do what the setup says; return early if the RunEngine's process ends before it comes."""
    log = logging.getLogger("bluesky_symdenoise")
    log.addHandler(_Forward(reports))
    log.propagate = False
    with _garbage.imports():
        denoiser = _received(inbox)
        if denoiser is None:
            return
        try:
            _warmed_up(denoiser)
        except SymDenoiseError as error:
            reports.say("refused", error.value, error.rule, error.remedy)
            return
        _import_for_documents()
        setup = _received(inbox)
    if setup is None:
        return
    _logged_in(setup)
    os.nice(setup.nice - nice)
    worker = Worker(reports, setup, replaced)
    reports.say("ready")
    worker.run(inbox)


def _warmed_up(denoiser: DenoiserSettings) -> None:
    """Load the network and run it once, so that the first frame of a scan is as fast as the second."""
    import numpy as np

    denoiser.load()(np.ones((64, 64), np.uint8), symmetry="1")


def _import_for_documents() -> None:
    """Import, while the setup may still be on its way, what it is made of and what the first documents need."""
    for name in (
        "bluesky_symdenoise.acquisition.deliver.sender",
        "bluesky_symdenoise.acquisition.live.engine",
        "bluesky_symdenoise.catalog.store.access",
        "bluesky_tiled_plugins.writing.consolidators",
        "scipy.optimize",
    ):
        import_module(name)


def _logged_in(setup: WorkerSetup) -> None:
    """Give a client that logged in with a name its tokens, which pickling leaves out."""
    auth = setup.work.container.context.http_client.auth
    if auth is not None:
        auth.tokens.update(setup.tokens)


class _Forward(logging.Handler):
    """Send log records to the RunEngine's process, which knows what the user wants to see."""

    def __init__(self, reports: Reports) -> None:
        super().__init__()
        self._reports = reports

    def emit(self, record: logging.LogRecord) -> None:
        self._reports.say("log", record.levelno, record.getMessage())


def _received(inbox: queue.SimpleQueue[tuple[Any, ...]]) -> Any:
    """Return the next of the two values that a worker gets at its start; None if the RunEngine's process has ended."""
    match inbox.get():
        case ("begin", packed):
            return ForkingPickler.loads(packed)
        case _:
            return None


def _listen(pipe: Connection, inbox: queue.SimpleQueue[tuple[Any, ...]], replaced: Replaced) -> None:
    try:
        for _ in range(2):
            # They are unpickled later, on the main thread: that imports much, and documents must not wait for it here.
            inbox.put(("begin", pipe.recv_bytes()))
        while True:
            message = pipe.recv()
            if message[0] == "document":
                message = (*message, (pipe.recv_bytes(), pipe.recv_bytes()))
            if message[0] == "replaced":
                # At once, not through the inbox: documents that wait there may name the replaced file.
                replaced.add(message[1])
            else:
                inbox.put(message)
    except (EOFError, OSError):
        inbox.put(("gone",))


if __name__ == "__main__":
    main()
