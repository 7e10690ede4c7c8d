"""Garbage collection in processes of our own, in which imports make millions of objects that all stay."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def imports() -> Iterator[None]:
    """Import without looking for garbage, and never look among what was imported afterwards."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def end_quickly() -> None:
    """Let this process end without a last search, which takes a second or two; the system takes its memory back."""
    atexit.register(gc.freeze)
