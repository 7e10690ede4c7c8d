"""Calls queued for a background thread are made in order, once each, and every exception is raised or logged."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

import pytest

from bluesky_symdenoise.acquisition.derive.call_queue import CallQueue


def test_calls_are_made_in_order_in_another_thread() -> None:
    done: list[tuple[int, str]] = []
    calls = CallQueue()
    for number in range(20):
        calls.put(lambda number=number: done.append((number, threading.current_thread().name)), most=2)
    calls.wait()
    assert [number for number, _ in done] == list(range(20))
    assert threading.current_thread().name not in {name for _, name in done}
    calls.close()


def test_put_blocks_when_too_many_calls_are_unfinished() -> None:
    gate, put = threading.Event(), list[int]()
    calls = CallQueue()

    def give() -> None:
        for number in range(5):
            calls.put(gate.wait, most=2)
            put.append(number)

    giver = threading.Thread(target=give)
    giver.start()
    deadline = time.monotonic() + 60
    while len(put) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    giver.join(0.2)
    assert put == [0, 1]
    assert calls.busy
    gate.set()
    giver.join()
    calls.wait()
    assert not calls.busy
    calls.close()


class _Gone(BaseException):
    """A BaseException that, like `KeyboardInterrupt`, is not an Exception."""


@pytest.mark.parametrize("kind", [OSError, _Gone])
@pytest.mark.parametrize("ask", [lambda calls: calls.put(int, most=1), lambda calls: calls.wait()], ids=["put", "wait"])
def test_exception_is_raised_once_and_calls_queued_behind_are_skipped(
    kind: type[BaseException], ask: Callable[[CallQueue], None]
) -> None:
    """The queue can be used again afterwards, so that a run that failed can be closed."""
    gate, done = threading.Event(), list[str]()
    calls = CallQueue()

    def fail() -> None:
        gate.wait()
        raise kind("the disk is full")

    calls.put(partial(done.append, "before"), most=3)
    calls.put(fail, most=3)
    calls.put(partial(done.append, "behind"), most=3)
    gate.set()
    with pytest.raises(kind, match="the disk is full"):
        ask(calls)
    assert done == ["before"]
    calls.put(partial(done.append, "after"), most=3)
    calls.wait()
    assert done == ["before", "after"]
    calls.close()


def test_close_makes_waiting_calls_and_only_logs_exceptions(caplog: pytest.LogCaptureFixture) -> None:
    done: list[int] = []
    calls = CallQueue()
    calls.put(partial(done.append, 1), most=3)
    calls.put(partial(done.append, 2), most=3)
    calls.put(lambda: done.index(3), most=3)
    calls.close()
    assert done == [1, 2]
    assert "ValueError" in caplog.text


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("symdenoise-calls")}


def test_unused_queue_has_no_thread() -> None:
    """The first call starts it, and closing ends it: a run that writes no frames costs none."""
    before = threads()
    calls = CallQueue()
    calls.wait()
    assert threads() == before
    calls.put(int, most=1)
    calls.wait()
    (started,) = threads() - before
    calls.close()
    assert not started.is_alive()
