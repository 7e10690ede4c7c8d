"""Health and progress of a service over HTTP: ``/healthz`` and Prometheus's ``/metrics``."""

from __future__ import annotations

import threading
import time as clock
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from bluesky_symdenoise.errors import SymDenoiseError

#: Seconds after the last pass of the service's loop from which it counts as unhealthy. A frame may take a while.
SILENCE_S = 300.0

_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Health:
    """Metrics of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._frames = Counter("symdenoise_frames", "Frames written", ["outcome"], registry=self.registry)
        self._errors = Counter("symdenoise_errors", "Documents and runs that failed", registry=self.registry)
        self._runs = Counter("symdenoise_runs", "Derived runs completed", ["how"], registry=self.registry)
        self._lag = Gauge("symdenoise_lag_seconds", "From the last event to its frame denoised", registry=self.registry)
        self._queue = Gauge("symdenoise_queue", "Documents and updates that wait", registry=self.registry)
        self._open = Gauge("symdenoise_open_runs", "Runs being followed", registry=self.registry)
        self._seconds = Histogram(
            "symdenoise_frame_seconds", "From a frame to the next", buckets=_BUCKETS, registry=self.registry
        )
        self._alive = clock.monotonic()
        self._trouble: str | None = None
        # Create both labels now: an alarm on the rate of a series that does not exist yet would never fire.
        for outcome in ("denoised", "failed"):
            self._frames.labels(outcome)

    def frame(self, reason: str | None, *, seconds: float) -> None:
        """Count a frame that was written, as NaN if there is a reason."""
        self._alive = clock.monotonic()
        self._frames.labels("denoised" if reason is None else "failed").inc()
        self._seconds.observe(seconds)

    def lag(self, seconds: float) -> None:
        """Set the age of the newest event when its frame is denoised."""
        self._lag.set(seconds)

    def run(self, how: str) -> None:
        """Count a completed derived run, ``live`` or in a ``sweep``."""
        self._runs.labels(how).inc()

    def beat(self, *, queue: int, open_runs: int) -> None:
        """Note that the service's loop is alive."""
        self._alive = clock.monotonic()
        self._queue.set(queue)
        self._open.set(open_runs)

    def error(self) -> None:
        """Count an error."""
        self._errors.inc()

    def trouble(self, what: str | None) -> None:
        """Set what keeps the service from its work at the moment, such as a server that is away; None: nothing."""
        self._trouble = what

    def verdict(self) -> str | None:
        """Return what is wrong, or None."""
        silence = clock.monotonic() - self._alive
        return self._trouble or (f"no sign of life for {silence:.0f} s" if silence > SILENCE_S else None)


@contextmanager
def served(health: Health, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """Answer on a port (0: any free one) while the context lasts, and yield the port.

    Raises
    ------
    SymDenoiseError
        If the port is taken.
    """

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._send(200, CONTENT_TYPE_LATEST, generate_latest(health.registry))
            elif self.path == "/healthz":
                wrong = health.verdict()
                self._send(503 if wrong else 200, "text/plain; charset=utf-8", f"{wrong or 'ok'}\n".encode())
            else:
                self._send(404, "text/plain; charset=utf-8", b"there are /healthz and /metrics\n")

        def _send(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Log nothing: requests of a monitoring system are of no interest."""

    try:
        server = ThreadingHTTPServer((host, port), Answer)
    except OSError as error:
        raise SymDenoiseError(
            f"{host}:{port}", rule=f"cannot listen there ({error.strerror})", remedy="choose another --port, or 0"
        ) from error
    thread = threading.Thread(target=server.serve_forever, name="symdenoise-health", daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
