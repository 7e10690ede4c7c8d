"""The worker process as the RunEngine's process sees it: a pipe that takes documents and reports their outcome.

It loads its denoiser first, and is told what to do with it later: most of its start needs nothing but the model's name.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from multiprocessing import Pipe
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bluesky_symdenoise.denoiser.settings import DenoiserSettings
from bluesky_symdenoise.errors import SymDenoiseError

if TYPE_CHECKING:
    from bluesky_symdenoise.acquisition.live.worker import WorkerSetup

#: Few and short retries for the worker's Tiled client: the sender handles a server that is away.
_RETRY = {"TILED_RETRY_ATTEMPTS": "3", "TILED_RETRY_TIMEOUT": "5"}
_START = "import sys; sys.path.append(sys.argv[3]); from bluesky_symdenoise.acquisition.live.entry import main; main()"


class WorkerProcess:
    """Start a worker; it runs nothing of the starting program again, and has no key on its command line.

    Parameters
    ----------
    denoiser
        Settings of the denoiser, which it begins to load.
    nice
        Added to its niceness while it starts.
    said
        Called from a thread with each message of the worker, and with ``("gone",)`` when it has ended.
    """

    def __init__(self, denoiser: DenoiserSettings, *, nice: int, said: Callable[[tuple[Any, ...]], None]) -> None:
        ours, theirs = Pipe()
        package = str(Path(__file__).resolve().parents[3])
        self._pipe, self._said = ours, said
        with theirs:
            self._process = subprocess.Popen(
                # -P: a module in the folder where the RunEngine was started is none of the worker's.
                [sys.executable, "-P", "-c", _START, str(theirs.fileno()), str(nice), package],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # Signals of the terminal are for the RunEngine. Not a session of its own: Linux shares processors out
                # by session first (autogroup), and niceness counts within one.
                process_group=0,
                env=os.environ | _RETRY,
            )
        self._outbox: queue.SimpleQueue[tuple[bytes, ...] | None] = queue.SimpleQueue()
        _STARTED.add(self)
        self.send(denoiser)
        threading.Thread(target=self._talk, name="symdenoise-talk", daemon=True).start()
        threading.Thread(target=self._listen, name="symdenoise-listen", daemon=True).start()

    def begin(self, setup: WorkerSetup) -> None:
        """Say what is to be done with the denoiser; once, and before any document."""
        self.send(setup)

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._process.pid

    def send(self, message: Any, pieces: Sequence[bytes] = ()) -> None:
        """Send a message, followed by the pieces of a document, without waiting for a worker that hangs.

        Nothing is sent to a worker that has ended, which ``("gone",)`` reports.
        """
        self._outbox.put((bytes(ForkingPickler.dumps(message)), *pieces))

    def forget_in_fork(self) -> None:
        """Close the pipe in a forked process, because the worker would otherwise think the parent still alive."""
        self._pipe.close()

    def wait(self) -> int:
        """Wait until the worker has ended; return its exit status, negative for a signal."""
        status = self._process.wait()
        self._outbox.put(None)
        self._pipe.close()
        return status

    def stop(self) -> None:
        """End the worker now."""
        self._process.kill()
        self.wait()

    def _talk(self) -> None:
        while (pieces := self._outbox.get()) is not None:
            try:
                for piece in pieces:
                    self._pipe.send_bytes(piece)
            except OSError:
                return

    def _listen(self) -> None:
        while True:
            try:
                self._said(self._pipe.recv())
            except (EOFError, OSError):
                self._said(("gone",))
                return


class StartedDenoiser:
    """A denoiser that loads in a process of its own before there is a callback that uses it.

    Give it to one `bluesky_symdenoise.DenoiseCallback` as ``denoiser``. As a context, it ends the process unless a
    callback has taken it.

    Parameters
    ----------
    settings
        Model, device and threads.
    """

    def __init__(self, settings: DenoiserSettings) -> None:
        self.settings = settings
        self._said: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        # Normal priority while it loads, which takes seconds of one core: the sooner it is over, the better.
        self._process: WorkerProcess | None = WorkerProcess(settings, nice=0, said=self._said.put)

    def taken(self) -> tuple[WorkerProcess, queue.SimpleQueue[tuple[Any, ...]]]:
        """Return the process and the queue of its messages, for the caller alone.

        Raises
        ------
        SymDenoiseError
            If it was taken or closed before.
        """
        process, self._process = self._process, None
        if process is None:
            raise SymDenoiseError(
                "a denoiser that was started", rule="it belongs to one callback", remedy="start one for each callback"
            )
        return process, self._said

    def close(self) -> None:
        """End the process unless a callback has taken it."""
        process, self._process = self._process, None
        if process is not None:
            process.stop()

    def __enter__(self) -> StartedDenoiser:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


#: Processes whose pipes a fork of this process must close.
_STARTED: weakref.WeakSet[WorkerProcess] = weakref.WeakSet()


def _forget_in_fork() -> None:
    for process in list(_STARTED):
        process.forget_in_fork()


os.register_at_fork(after_in_child=_forget_in_fork)
