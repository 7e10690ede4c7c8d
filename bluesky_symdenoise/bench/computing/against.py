"""Versions of the package in processes of their own, which time the same frames in turn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bluesky_symdenoise
from bluesky_symdenoise.errors import SymDenoiseError

#: Script that each process runs, also under another version.
WORKER = Path(__file__).with_name("worker.py")
PACKAGE = "bluesky_symdenoise"


def own_folder() -> Path:
    """Return the folder that this version is imported from."""
    return Path(bluesky_symdenoise.__file__).resolve().parents[1]


def unpacked(version: Path, into: Path) -> Path:
    """Return a folder from which a version can be imported: of a wheel what it holds, of a checkout itself.

    Raises
    ------
    SymDenoiseError
        If it is neither a wheel of this package nor a folder with its source.
    """
    if version.is_dir() and (version / PACKAGE / "__init__.py").is_file():
        return version.resolve()
    if version.is_file() and zipfile.is_zipfile(version):
        with zipfile.ZipFile(version) as wheel:
            if f"{PACKAGE}/__init__.py" in wheel.namelist():
                wheel.extractall(into)
                return into
    raise SymDenoiseError(
        f"version {str(version)!r}",
        rule="it is neither a wheel of this package nor a folder with its source",
        remedy="give dist/bluesky_symdenoise-*.whl, or the folder of a checkout",
    )


class Worker:
    """A process that times the version in a folder, and answers one request after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
        # Without -P, the folder of the script would come first, and its modules hide others of the same name.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            text=True,
        )

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Return the reply to one request.

        Raises
        ------
        SymDenoiseError
            If the version cannot do it, or the process died.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        reply: dict[str, Any] = json.loads(line) if line else {"error": "its process died"}
        if "error" in reply:
            raise SymDenoiseError(
                f"the version in {self.folder}", rule=reply["error"], remedy="see its output above, or leave this out"
            )
        return reply

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


@contextmanager
def worker(folder: Path) -> Iterator[Worker]:
    """Run a process for the version in a folder while the context lasts.

    Raises
    ------
    SymDenoiseError
        If it imports the package from elsewhere.
    """
    process = Worker(folder)
    try:
        found = process.ask("about", device="cpu")
        if Path(found["folder"]) != folder.resolve():
            raise SymDenoiseError(
                f"the version in {folder}",
                rule=f"the process imported the one in {found['folder']}",
                remedy="unset PYTHONPATH and PYTHONSAFEPATH, or run this elsewhere",
            )
        yield process
    finally:
        process.close()
