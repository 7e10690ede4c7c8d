"""Pages that several requests share: kept in memory up to a number of bytes, each made once for all who wait for it."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from fastapi import HTTPException
from prometheus_client import Counter, Gauge

from bluesky_symdenoise.errors import SymDenoiseError

log = logging.getLogger("bluesky_symdenoise")

#: Bytes of pages that a catalogue keeps in memory; by default about forty of three frames of 1024 x 1024.
CACHE_VARIABLE = "SYMDENOISE_PAGE_CACHE_BYTES"
CACHE_BYTES = 2**27
#: Different pages that may be made or wait at a time, and those of them that are being made.
MOST_PENDING, AT_ONCE = 16, 2
#: Seconds after which to ask again: at least, at most, and what a page takes as long as none was made.
LEAST_S, MOST_S, FIRST_S = 2, 60, 3.0

#: Pages by outcome: ``hit`` in memory, ``made``, ``joined`` one that was being made, ``failed``, ``refused``.
PAGES = Counter("symdenoise_report_pages", "Report pages of denoised runs that were asked for", ["outcome"])
HELD = Gauge("symdenoise_report_cache_bytes", "Bytes of report pages held in memory")


@dataclass(frozen=True)
class Page:
    """A page, and whether it stays right until its key changes: not where a frame could not be read this time."""

    content: bytes
    lasting: bool


class SharedPages:
    """Pages that were asked for last, up to a number of bytes, and those that are being made.

    It is used from one event loop.

    Parameters
    ----------
    limit
        Bytes. A larger page is returned but not kept.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._held, self._seconds = limit, 0, FIRST_S
        self._pages: OrderedDict[Hashable, bytes] = OrderedDict()
        self._pending: dict[Hashable, asyncio.Task[bytes]] = {}
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def get(self, key: Hashable, make: Callable[[], Awaitable[Page]]) -> bytes:
        """Return the page of a key: from memory, from one that is being made for others, or made now.

        The caller has checked that the requesting user may see all that the key stands for. An exception of `make` is
        raised in all callers that wait for it, and is not kept. A caller who goes away takes the page from nobody.

        Raises
        ------
        fastapi.HTTPException
            503 if `MOST_PENDING` other pages are being made or wait; ``Retry-After`` says when one will be done.
        """
        kept = self._pages.get(key)
        if kept is not None:
            self._pages.move_to_end(key)
            PAGES.labels("hit").inc()
            return kept
        task = self._pending.get(key)
        if task is None:
            self._refuse_too_many()
            task = self._pending[key] = asyncio.create_task(self._made(key, make))
            task.add_done_callback(_noted)
        else:
            PAGES.labels("joined").inc()
        return await asyncio.shield(task)

    async def _made(self, key: Hashable, make: Callable[[], Awaitable[Page]]) -> bytes:
        try:
            async with self._turns:
                begun = time.monotonic()
                page = await make()
                self._seconds = (self._seconds + time.monotonic() - begun) / 2
            if page.lasting:
                self._keep(key, page.content)
            PAGES.labels("made").inc()
            return page.content
        except BaseException:
            PAGES.labels("failed").inc()
            raise
        finally:
            del self._pending[key]

    def _refuse_too_many(self) -> None:
        if len(self._pending) < MOST_PENDING:
            return
        PAGES.labels("refused").inc()
        seconds = min(MOST_S, max(LEAST_S, math.ceil(self._seconds * len(self._pending) / AT_ONCE)))
        raise HTTPException(
            503,
            f"{len(self._pending)} other pages are being drawn or wait for it; ask again in {seconds} s",
            headers={"Retry-After": str(seconds)},
        )

    def _keep(self, key: Hashable, content: bytes) -> None:
        if len(content) > self._limit:
            return
        self._pages[key] = content
        change = len(content)
        while self._held + change > self._limit:
            change -= len(self._pages.popitem(last=False)[1])
        self._held += change
        HELD.inc(change)


def _noted(task: asyncio.Task[bytes]) -> None:
    """Take note of an error, so that asyncio does not report it as lost where all who waited have gone."""
    if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, HTTPException):
        log.error("a report page could not be made", exc_info=error)


_OF_CATALOGUES: WeakKeyDictionary[Any, SharedPages] = WeakKeyDictionary()


def pages_of(catalogue: Any) -> SharedPages:
    """Return the pages of a catalogue that this process serves, given Tiled's context of it."""
    pages = _OF_CATALOGUES.get(catalogue)
    if pages is None:
        pages = _OF_CATALOGUES[catalogue] = SharedPages(_limit())
    return pages


def _limit() -> int:
    given = os.environ.get(CACHE_VARIABLE, str(CACHE_BYTES))
    if not given.isdecimal():
        raise SymDenoiseError(f"{CACHE_VARIABLE}={given}", rule="it must be a number of bytes", remedy="set it to one")
    return int(given)
