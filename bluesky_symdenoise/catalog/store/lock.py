"""A file that one process at a time holds; the kernel releases it when that process ends, however it ends."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from pathlib import Path
from typing import IO, Any, BinaryIO

from bluesky_symdenoise.errors import SymDenoiseError


class HeldError(SymDenoiseError):
    """Another process, or another owner in this one, holds the file."""


def held(path: Path) -> HeldError:
    """Return the error for a locked file, naming the holder if it wrote its name into the file."""
    holder = _holder(path)
    if holder == (os.getpid(), socket.gethostname()):
        return HeldError(
            str(path),
            rule="another writer in this process holds this lock",
            remedy="use one of the two, such as one callback, or give them different settings",
        )
    who = "a living process" if holder is None else f"process {holder[0]} on {holder[1]}"
    return HeldError(
        str(path),
        rule=f"{who} holds this lock",
        remedy="wait until it has finished; it may be a RunEngine with a callback of the same settings",
    )


def _holder(path: Path) -> tuple[int, str] | None:
    """Return process and host of the last line that names them."""
    found = None
    try:
        for line in path.read_bytes().splitlines():
            if b'"pid"' in line and b'"host"' in line:
                said = json.loads(line)
                found = int(said["pid"]), str(said["host"])
    except (OSError, ValueError, KeyError, TypeError):
        return found
    return found


def locked(file: int | IO[Any]) -> bool:
    """Lock an open file, without waiting; return whether that succeeded.

    Raises
    ------
    OSError
        If the file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def hold(path: Path) -> BinaryIO:
    """Open a file for appending and lock it, making it if needed. Closing it releases the lock.

    Raises
    ------
    HeldError
        If another owner holds it.
    SymDenoiseError
        If the file system has no locks.
    """
    while True:
        file = path.open("a+b", buffering=0)
        try:
            free = locked(file)
        except OSError as error:
            file.close()
            raise SymDenoiseError(
                str(path),
                rule=f"the file system cannot lock files ({error.strerror})",
                remedy="choose a folder on a file system with locks: a local one, or NFS version 4",
            ) from error
        if not free:
            file.close()
            raise held(path)
        # The previous holder may have removed it between our opening and our locking.
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()


def is_held(path: Path) -> bool:
    """Return whether the file is locked; a missing file is not."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return False
    with file:
        return not locked(file)
