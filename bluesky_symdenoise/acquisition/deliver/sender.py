"""The thread that sends spools to Tiled while they are being written, and waits for a server that is away."""

from __future__ import annotations

import logging
import threading
import time
from typing import Protocol

from bluesky_symdenoise.acquisition.deliver.delivery import Delivered, Delivery, is_away
from bluesky_symdenoise.acquisition.deliver.outlet import refusal
from bluesky_symdenoise.acquisition.deliver.spool import Spool
from bluesky_symdenoise.acquisition.request.request import Work

log = logging.getLogger("bluesky_symdenoise")

#: Seconds until a server that did not answer is tried again.
PAUSE_S = 5.0
#: Seconds in which documents are collected for one request.
GATHER_S = 0.25
#: Seconds for which a server that does not answer is tried by a process that works alone and keeps no user waiting.
PATIENCE_S = 60.0


class DeliveryListener(Protocol):
    """Interface of an object that is informed of what became of runs."""

    def delivered(self, run: Delivered) -> None:
        """Take note that Tiled has all of a run."""
        ...

    def kept(self, lines: dict[str, str]) -> None:
        """Take note of the raw uid and the reason of each run that waits on disk now."""
        ...


class Sender:
    """Take spools and deliver them in a thread, which `close` ends.

    Parameters
    ----------
    work
        Says where derived runs go, and how their frames do.
    listener
        Informed of what became of each run.
    """

    def __init__(self, work: Work, *, listener: DeliveryListener) -> None:
        self._work, self._container, self._listener = work, work.container, listener
        self._deliveries: dict[str, Delivery] = {}
        self._refused: dict[str, str] = {}
        self._away: str | None = None
        self._lock = threading.Lock()
        self._wake, self._closing = threading.Event(), threading.Event()
        self._until = 0.0
        self._thread = threading.Thread(target=self._run, name="symdenoise-sender", daemon=True)
        self._thread.start()

    def add(self, spool: Spool) -> None:
        """Deliver a spool, which may still grow."""
        with self._lock:
            self._deliveries[spool.uid] = Delivery(spool, self._work)
        self._wake.set()

    def has(self, uid: str) -> bool:
        """Return whether a derived run is being delivered."""
        return uid in self._deliveries

    def wake(self) -> None:
        """Say that a spool has grown."""
        self._wake.set()

    def close(self, *, patience: float = 0.0) -> None:
        """Send what can be sent; wait for a server that is away for at most that many seconds."""
        self._until = time.monotonic() + patience
        self._closing.set()
        self._wake.set()
        self._thread.join()
        for delivery in self._deliveries.values():
            delivery.spool.release()

    def _run(self) -> None:
        while True:
            closing = self._closing.is_set()
            self._wake.clear()
            with self._lock:
                deliveries = list(self._deliveries.values())
            if all(self._advanced(delivery) for delivery in deliveries) and self._away is not None:
                log.info("Tiled at %s answers again", self._container.uri)
                self._away = None
            self._tell()
            if closing and (self._away is None or time.monotonic() >= self._until):
                return
            if closing:
                time.sleep(1)
            elif self._away is not None:
                self._closing.wait(PAUSE_S)
            else:
                self._wake.wait()
                self._closing.wait(GATHER_S)

    def _advanced(self, delivery: Delivery) -> bool:
        """Send what there is of a run; return False if the server is away."""
        from tiled.client.utils import ClientError

        uid = delivery.spool.uid
        if uid in self._refused:
            return True
        try:
            complete = delivery.advance()
        except Exception as error:
            line = (str(error) or type(error).__name__).splitlines()[0]
            if is_away(error):
                if self._away is None:
                    log.warning(
                        "Tiled at %s does not answer (%s): denoised runs wait in %s and are sent when it is back",
                        self._container.uri,
                        line,
                        delivery.spool.path.parent,
                    )
                self._away = line
                return False
            refused = isinstance(error, ClientError)
            self._refused[uid] = str(refusal(error, uid, self._container.uri)) if refused else line
            log.error(
                "derived run %s waits in %s: Tiled did not take it: %s",
                uid[:8],
                delivery.spool.path,
                self._refused[uid],
            )
            return True
        if complete:
            with self._lock:
                del self._deliveries[uid]
            self._listener.delivered(delivery.delivered())
        return True

    def _tell(self) -> None:
        with self._lock:
            deliveries = list(self._deliveries.items())
        kept = {}
        for uid, delivery in deliveries:
            reason = self._refused.get(uid, self._away)
            if reason is not None:
                kept[uid] = (
                    f"derived run {uid[:8]} waits in {delivery.spool.path}: Tiled does not take it ({reason}); "
                    "it is sent when the server is back, or by `symdenoise catch-up`"
                )
        self._listener.kept(kept)
