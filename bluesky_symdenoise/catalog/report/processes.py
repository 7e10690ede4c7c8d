"""Processes that draw frames for a server's report pages, so that its other requests wait for none of it."""

from __future__ import annotations

import atexit
import os
import queue
import subprocess
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import RunVar

if TYPE_CHECKING:
    from bluesky_symdenoise.catalog.report.drawn import Drawing, FrameFigures

#: Drawing processes of a server at most; each takes about 200 MB, and more while it draws large frames.
PROCESSES = min(4, len(os.sched_getaffinity(0)))
#: Added to their niceness: other requests come first.
NICE = 5
#: Seconds after which a process without work ends, and after which one that draws a single frame is given up.
IDLE_S, STUCK_S = 600, 300
#: One thread each, and memory that is used again instead of being given back after each array: with the defaults of
#: glibc, page faults take a third of the time of a frame.
_ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**28),
    "MALLOC_TOP_PAD_": str(2**24),
}
#: Of the package that the server runs, whichever is installed beside it.
_START = (
    "import sys; sys.path.insert(0, sys.argv[2]); from bluesky_symdenoise.catalog.report.processes import main; main()"
)


class DrawingError(RuntimeError):
    """A frame that could not be drawn, with the traceback of the process that tried."""


@dataclass(frozen=True)
class _Failed:
    said: str


class _Process:
    """One process, which is started when it is needed, and again after it has ended."""

    def __init__(self) -> None:
        self._running: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    @property
    def pid(self) -> int | None:
        """Process id, if it was started."""
        return None if self._running is None else self._running.pid

    def draw(self, drawing: Drawing) -> FrameFigures:
        """Return what the process makes of a frame.

        Raises
        ------
        DrawingError
            If the frame raises an error, or the process ends in it twice or takes longer than `STUCK_S`.
        """
        # It may have ended for want of work, which shows only when it is talked to.
        for _ in range(2):
            answer = self._asked(drawing)
            if isinstance(answer, _Failed):
                raise DrawingError(answer.said)
            if answer is not None:
                return answer
        raise DrawingError("the process that drew it ended twice: was it out of memory?")

    def _asked(self, drawing: Drawing) -> FrameFigures | _Failed | None:
        try:
            pipe = self._started()
            pipe.send(drawing)
            if not pipe.poll(STUCK_S):
                self.stop()
                return _Failed(f"it was given up after {STUCK_S} s")
            answer: FrameFigures | _Failed = pipe.recv()
            return answer
        except (OSError, EOFError):
            self.stop()
            return None

    def start(self) -> None:
        """Start it if it is not running, so that it is ready when it is needed."""
        self._started()

    def _started(self) -> Connection:
        if self._pipe is not None:
            return self._pipe
        ours, theirs = Pipe()
        package = str(Path(__file__).resolve().parents[3])
        with theirs:
            self._running = subprocess.Popen(
                # -P: a module in the folder where the server was started is none of its own.
                [sys.executable, "-P", "-c", _START, str(theirs.fileno()), package, str(IDLE_S)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # Signals of the terminal are for the server, with which the pipe and then the process end.
                process_group=0,
                env=os.environ | _ENVIRONMENT,
            )
        self._pipe = ours
        return ours

    def stop(self) -> None:
        """End it now."""
        if self._running is not None and self._pipe is not None:
            self._pipe.close()
            self._running.kill()
            self._running.wait()
        self._running = self._pipe = None


class DrawingProcesses:
    """A number of processes, of which as many are started as are needed at a time."""

    def __init__(self, number: int) -> None:
        self._all = [_Process() for _ in range(number)]
        # The last one that was used is taken first, so that the others may end.
        self._free: queue.LifoQueue[_Process] = queue.LifoQueue()
        for process in self._all:
            self._free.put(process)

    def start(self, number: int) -> None:
        """Start this many of those that are free."""
        taken: list[_Process] = []
        with suppress(queue.Empty):
            while len(taken) < number:
                taken.append(self._free.get_nowait())
        for process in reversed(taken):
            # Where none can be started now, drawing says so.
            with suppress(OSError):
                process.start()
            self._free.put(process)

    def draw(self, drawing: Drawing) -> FrameFigures:
        """Wait for a free process, and return what it makes of a frame; see `DrawingError`."""
        process = self._free.get()
        try:
            return process.draw(drawing)
        finally:
            self._free.put(process)

    @property
    def pids(self) -> list[int]:
        """Process ids of those that were started."""
        return [pid for process in self._all if (pid := process.pid) is not None]

    def stop(self) -> None:
        """End all of them."""
        for process in self._all:
            process.stop()


@lru_cache(maxsize=1)
def _processes() -> DrawingProcesses:
    """Return the processes of this server; its end is theirs."""
    made = DrawingProcesses(PROCESSES)
    atexit.register(made.stop)
    return made


_WAITING: RunVar[anyio.CapacityLimiter] = RunVar("symdenoise_drawing")


async def drawn_aside(drawing: Drawing) -> FrameFigures:
    """Return figures and picture of a frame from a process of its own.

    For each process one of the server's threads waits, beside and not among those that Tiled may use.

    Raises
    ------
    DrawingError
        If it cannot be drawn.
    """
    try:
        limiter = _WAITING.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(PROCESSES)
        _WAITING.set(limiter)
    figures: FrameFigures = await anyio.to_thread.run_sync(_processes().draw, drawing, limiter=limiter)
    return figures


async def start_processes(number: int) -> None:
    """Start processes for this many frames that are about to be read."""
    await anyio.to_thread.run_sync(_processes().start, number)


def main() -> None:
    """Draw what comes through the pipe, until it is closed or nothing comes for a while."""
    pipe, idle = Connection(int(sys.argv[1])), float(sys.argv[3])
    os.nice(NICE)
    # Imported while the server still reads the frame.
    import matplotlib.backends.backend_agg  # noqa: F401
    import pyFAI.integrator.azimuthal  # noqa: F401

    from bluesky_symdenoise.catalog.report.drawn import drawn

    # The server has gone, or has given this process up.
    with suppress(EOFError, OSError):
        while pipe.poll(idle):
            drawing = pipe.recv()
            answer: FrameFigures | _Failed
            try:
                answer = drawn(drawing)
            except Exception:
                answer = _Failed(traceback.format_exc())
            pipe.send(answer)
