"""A thread beside its owner's that does one thing after another."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

log = logging.getLogger("bluesky_symdenoise")


class Aside:
    """Calls, in the order in which they are given, in a thread of their own.

    What one of them raises is raised once, by the next `put` or `wait`; those that had been given by then are not made.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="symdenoise-aside")
        self._given: deque[Future[None]] = deque()
        self._failed = False

    def put(self, call: Callable[[], object], *, most: int) -> None:
        """Have it called; wait until it is one of so many at most, the one at work among them."""
        while self._given and (len(self._given) >= most or self._given[0].done()):
            self._take()
        self._given.append(self._thread.submit(self._do, call))

    def wait(self) -> None:
        """Until all calls are made."""
        while self._given:
            self._take()

    @property
    def busy(self) -> bool:
        """Whether a call waits or is being made."""
        return any(not each.done() for each in self._given)

    def close(self) -> None:
        """Make the calls that wait, and end; what they raise is only logged."""
        self._thread.shutdown()
        for each in self._given:
            if (error := each.exception()) is not None:
                log.warning("%s: %s", type(error).__name__, error)
        self._given.clear()

    def _take(self) -> None:
        error = self._given[0].exception()
        self._given.popleft()
        if error is not None:
            # Those behind it do nothing; what is given from now on is done again.
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
