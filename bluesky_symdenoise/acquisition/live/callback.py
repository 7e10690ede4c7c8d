"""Callback for a RunEngine: it hands references to a worker process and returns."""

from __future__ import annotations

import atexit
import logging
import time
import weakref
from multiprocessing import parent_process
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, get_args

from bluesky_symdenoise.acquisition.deliver.probe import check_server
from bluesky_symdenoise.acquisition.live.feeder import Feeder
from bluesky_symdenoise.acquisition.live.process import StartedDenoiser
from bluesky_symdenoise.acquisition.live.status import Status
from bluesky_symdenoise.acquisition.live.worker import WorkerSetup
from bluesky_symdenoise.acquisition.request.options import Options
from bluesky_symdenoise.acquisition.request.place import Place
from bluesky_symdenoise.acquisition.request.request import Transport, Work, check_choice
from bluesky_symdenoise.denoiser.registry import available
from bluesky_symdenoise.denoiser.settings import DenoiserSettings
from bluesky_symdenoise.errors import SymDenoiseError

if TYPE_CHECKING:
    from tiled.client.container import Container


log = logging.getLogger("bluesky_symdenoise")

Document = dict[str, Any]
Slow = Literal["defer", "drop", "block"]

#: With ``slow="drop"``, how many seconds a frame may wait.
DROP_AFTER_S = 5.0
#: With ``slow="block"``, how many documents may wait.
BLOCK_ABOVE = 30
_PIXELS = frozenset({"event", "event_page", "stream_datum"})


class DenoiseCallback:
    """Denoise the images of each run while it is acquired, and write a derived run beside it.

    ``RE.subscribe(DenoiseCallback(client["denoised"]))``. On the RunEngine's thread a document is put into a queue
    and nothing else is done; nothing is raised there. A worker process reads the frames from their files, denoises
    them and writes to Tiled; it is started here, and again if it dies. The raw run is only read.

    The worker loads the denoiser, for some seconds, while documents are taken already; `wait_until_ready` waits for it,
    and so does the constructor where the worker might refuse: with a model of your own, a device other than ``auto`` or
    ``cpu``, or another dtype than ``float32``.

    Parameters
    ----------
    client
        Tiled client of the catalogue for derived runs; its key needs the scopes to create and register.
    denoiser
        Model, device and threads of the worker; by default the pretrained model on a GPU if there is one, else on all
        cores but one. May also be a `bluesky_symdenoise.acquisition.live.process.StartedDenoiser`, which loads before
        there is a client. For a denoiser object of your own, see `ThreadedDenoiseCallback`.
    directory
        Folder for the denoised frames, or a template or `Place`; the server must be able to read it unless `frames` is
        ``http``. By default the one that the container names in its metadata (``symdenoise_frames``).
    slow
        What happens when the denoiser is slower than the detector. ``defer``: frames wait where they are and are
        finished after the scan. ``drop``: those that waited longer than 5 s are NaN, and counted. ``block``: the scan
        waits until all but a few frames are written.
    frames
        ``files``: the server reads the files in `directory`. ``http``: it cannot, so frames are sent to it.
    nice
        Niceness of the worker; 0 makes it as urgent as the RunEngine.
    **options
        `mask`, `exposure`, `symmetry`, `beam_center`, `streams`, `data_keys`, `borrow`, `beamline`, `analysis`: see
        `bluesky_symdenoise.acquisition.request.options.Options`.

    Raises
    ------
    SymDenoiseError
        Raised by the constructor only, if the request could not work whatever the frames are.
    """

    def __init__(
        self,
        client: Container,
        *,
        denoiser: DenoiserSettings | StartedDenoiser | None = None,
        directory: str | Path | Place | None = None,
        slow: Slow = "defer",
        frames: Transport = "files",
        nice: int = 10,
        **options: Unpack[Options],
    ) -> None:
        check_choice("slow", slow, get_args(Slow))
        if denoiser is not None and not isinstance(denoiser, DenoiserSettings | StartedDenoiser):
            raise SymDenoiseError(
                f"denoiser of type {type(denoiser).__name__}",
                rule="the worker is a separate process and loads its own denoiser",
                remedy="give DenoiserSettings(model=..., device=..., threads=...), or use ThreadedDenoiseCallback",
            )
        if not 0 <= nice <= 19:
            raise SymDenoiseError(
                f"nice={nice}", rule="niceness is from 0 to 19", remedy="give for example 10, or 0 for normal priority"
            )
        self._slow, self._closing = slow, False
        settings = denoiser.settings if isinstance(denoiser, StartedDenoiser) else denoiser or DenoiserSettings()
        work = Work.planned(
            client, activity="callback", denoiser=settings, directory=directory, frames=frames, **options
        )
        started = denoiser if isinstance(denoiser, StartedDenoiser) else StartedDenoiser(settings)
        try:
            check_server(work)
            auth = client.context.http_client.auth
            self._feeder = Feeder(
                WorkerSetup(
                    work=work,
                    tokens={} if auth is None else dict(auth.tokens),
                    drop_after=DROP_AFTER_S if slow == "drop" else None,
                    settled=slow == "block",
                    nice=nice,
                ),
                started,
            )
        except BaseException:
            started.close()
            raise
        if not _loads_for_sure(settings):
            self.wait_until_ready()
        atexit.register(self._close_at_exit)
        # A process forked by multiprocessing, such as the worker of a queue server, ends without calling atexit
        # handlers.
        Finalize(None, _at_end_of_child, args=(weakref.ref(self),), exitpriority=10)

    def __call__(self, name: str, doc: Document) -> None:
        """Take a document; called by the RunEngine."""
        if self._closing or not self._feeder.alive:
            if name == "start":
                log.warning(
                    "run %s is not denoised: the callback is closed; make a new one, and finish the run with "
                    "`symdenoise catch-up`",
                    doc["uid"][:8],
                )
            return
        self._feeder.put(name, doc)
        if self._slow == "block" and name in _PIXELS:
            while self._feeder.waiting > BLOCK_ABOVE and not self._closing and self._feeder.alive:
                time.sleep(0.01)

    def __enter__(self) -> DenoiseCallback:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_until_ready(self) -> None:
        """Wait until the worker has loaded the denoiser.

        Raises
        ------
        SymDenoiseError
            If it cannot.
        """
        self._feeder.wait_until_ready()

    @property
    def worker_pid(self) -> int:
        """Process id of the worker."""
        return self._feeder.pid

    def status(self) -> Status:
        """Return how far the worker has come, now."""
        return self._feeder.status()

    def close(self, timeout: float | None = None) -> Status:
        """Take no more documents, and wait until all that came are processed.

        It does not wait for a Tiled server that is away: what the server lacks stays on disk; the status says where.

        Parameters
        ----------
        timeout
            Seconds to wait; None waits as long as it takes. What is unfinished then goes on in the background.

        Returns
        -------
        Status
            With ``waiting`` above 0 if the time did not suffice.
        """
        self._closing = True
        if self._feeder.close(timeout):
            atexit.unregister(self._close_at_exit)
        elif timeout is not None:
            log.warning("%s after %g s; that goes on", self._feeder.unfinished, timeout)
        return self.status()

    def _close_at_exit(self) -> None:
        if self._feeder.alive and self._feeder.waiting:
            log.warning("this process ends when its frames are denoised: %s", self._feeder.unfinished)
        self.close()

    def hand_over(self, timeout: float = 10.0) -> None:
        """Take no more documents, and leave those that came to the worker process, which ends after the last one.

        For a process that must end now. The same happens by itself if the process is killed, but this method also
        saves the documents that were not on disk yet.

        Parameters
        ----------
        timeout
            Seconds to wait until all documents are on disk.
        """
        self._closing = True
        # Nobody waits at exit any more: the caller waits here.
        atexit.unregister(self._close_at_exit)
        if not self._feeder.alive:
            return
        waiting = self._feeder.waiting
        written = self._feeder.flush(timeout)
        if waiting:
            log.warning(
                "this process ends: %d documents are left to process %d, which finishes their runs%s",
                waiting,
                self._feeder.pid,
                "" if written else "; some are not on disk yet: run `symdenoise catch-up` when the run is in Tiled",
            )


def _loads_for_sure(denoiser: DenoiserSettings) -> bool:
    """Return whether nothing in these settings, which have been checked here, can make a worker refuse them."""
    shipped = denoiser.model is None or denoiser.model in available()
    return shipped and denoiser.device in ("auto", "cpu") and denoiser.dtype == "float32"


def _at_end_of_child(reference: weakref.ref[DenoiseCallback]) -> None:
    callback = reference()
    if callback is not None and parent_process() is not None:
        callback.hand_over()
