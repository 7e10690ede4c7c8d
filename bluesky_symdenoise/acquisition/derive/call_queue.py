"""A background thread that makes calls one after another."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

log = logging.getLogger("bluesky_symdenoise")


class CallQueue:
    """Make calls in a background thread, in the order in which they are given.

    An exception of a call is raised once, by the next `put` or `wait`; calls that were given by then are skipped.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="symdenoise-calls")
        self._given: deque[Future[None]] = deque()
        self._failed = False

    def put(self, call: Callable[[], object], *, most: int) -> None:
        """Queue a call; block until at most this many calls are unfinished, the running one included."""
        while self._given and (len(self._given) >= most or self._given[0].done()):
            self._take()
        self._given.append(self._thread.submit(self._do, call))

    def wait(self) -> None:
        """Wait until all calls are made."""
        while self._given:
            self._take()

    @property
    def busy(self) -> bool:
        """Whether a call is waiting or running."""
        return any(not each.done() for each in self._given)

    def close(self) -> None:
        """Make the calls that are waiting, then end the thread; exceptions are only logged."""
        self._thread.shutdown()
        for each in self._given:
            if (error := each.exception()) is not None:
                log.warning("%s: %s", type(error).__name__, error)
        self._given.clear()

    def _take(self) -> None:
        error = self._given[0].exception()
        self._given.popleft()
        if error is not None:
            # Skip the calls queued behind the failed one; calls queued from now on are made again.
            while self._given:
                self._given.popleft().exception()
            self._failed = False
            raise error

    def _do(self, call: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            call()
        except BaseException:
            self._failed = True
            raise
