"""Callback that registers a lazy derived run when a raw run has ended."""

from __future__ import annotations

import logging
import queue
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from tiled.utils import path_from_uri

from bluesky_symdenoise.acquisition.request.options import ImageOptions, refuse_unknown
from bluesky_symdenoise.catalog.store.containers import run_in
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.source import Stamp, stamp

if TYPE_CHECKING:
    from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRun
    from tiled.client.container import Container

    from bluesky_symdenoise.denoiser.infer import Denoiser


log = logging.getLogger("bluesky_symdenoise")

#: Seconds for which a run's files must be unchanged: detectors close them after the run's stop document.
SETTLED_S = 1.0


class RegisterCallback:
    """Register a lazy derived run of each raw run when it has ended; see `bluesky_symdenoise.register`.

    ``RE.subscribe(RegisterCallback(client["raw"], client["denoised"]))``. On the RunEngine's thread only the uid is
    noted, and nothing is raised. One worker thread waits until the run is complete in Tiled and its files no longer
    change, then registers it.

    Parameters
    ----------
    raw
        Catalogue that the raw runs are written to.
    into
        Catalogue for derived runs.
    patience
        Seconds that a run may take to be complete in `raw` after its stop document.

    The others are those of `bluesky_symdenoise.register`.
    """

    def __init__(
        self,
        raw: Container,
        into: Container,
        *,
        denoiser: Denoiser | None = None,
        directory: str | Path | None = None,
        patience: float = 60.0,
        **options: Unpack[ImageOptions],
    ) -> None:
        from bluesky_symdenoise.acquisition.lazy.register import register

        refuse_unknown(options, ImageOptions)
        self._raw, self._patience = raw, patience

        def registered(run: BlueskyRun) -> BlueskyRun:
            return register(run, into, denoiser=denoiser, directory=directory, **options)

        self._register = registered
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._runs: list[tuple[str, str]] = []
        self._worker = threading.Thread(target=self._run, name="symdenoise-register", daemon=True)
        self._worker.start()

    def __call__(self, name: str, doc: dict[str, Any]) -> None:
        """Take a document; called by the RunEngine."""
        if name == "stop":
            self._queue.put(doc["run_start"])

    def __enter__(self) -> RegisterCallback:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def outcomes(self) -> list[tuple[str, str]]:
        """Return, for each run so far, the raw uid with the derived run's uid or, in one line, what went wrong."""
        with self._lock:
            return list(self._runs)

    def close(self, timeout: float | None = None) -> list[tuple[str, str]]:
        """Take no more runs, wait until those that came are registered, and return their `outcomes`."""
        self._queue.put(None)
        self._worker.join(timeout)
        return self.outcomes()

    def _run(self) -> None:
        while (uid := self._queue.get()) is not None:
            try:
                outcome = str(self._register(self._settled(uid)).start["uid"])
            except Exception as error:
                outcome = (str(error) or type(error).__name__).splitlines()[0]
                log.error("run %s is not registered: %s", uid[:8], outcome)
            with self._lock:
                self._runs.append((uid, outcome))

    def _settled(self, uid: str) -> BlueskyRun:
        """Return the raw run once it is complete and its files no longer change."""
        deadline = time.monotonic() + self._patience
        before: list[Stamp] | None = None
        while time.monotonic() < deadline:
            run = run_in(self._raw, uid)
            if run is not None and run.metadata.get("stop"):
                now = [stamp(path) for path in _files(run)]
                if now == before:
                    return run
                before = now
            time.sleep(SETTLED_S)
        raise SymDenoiseError(
            f"run {uid}",
            rule=f"it was not complete in the catalogue {self._patience:g} s after it ended",
            remedy="register it later, symdenoise register",
        )


def _files(run: BlueskyRun) -> list[Path]:
    found = []
    for stream in run:
        for source in (source for array in run[stream].base.values() for source in array.data_sources() or ()):
            found += [path_from_uri(a.data_uri) for a in source.assets if a.data_uri.startswith("file://")]
    return [path for path in found if path.exists()]
