"""Starting is quick because nothing is imported before it is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

import bluesky_symdenoise

pytestmark = pytest.mark.process

#: Packages that take long to import.
HEAVY = (
    "bluesky",
    "bluesky_tiled_plugins",
    "dask",
    "databroker",
    "matplotlib",
    "ophyd_async",
    "pandas",
    "pyFAI",
    "scipy.optimize",
    "scipy.stats",
    "sqlalchemy",
    "tiled.client",
    "tiled.server",
    "torch",
    "uvicorn",
    "xarray",
)
_TOLD = f"import sys; print(*(name for name in {HEAVY} if name in sys.modules))"


def imported(code: str) -> list[str]:
    """Return which of the heavy packages a new process has imported after some code."""
    done = subprocess.run([sys.executable, "-c", f"{code}\n{_TOLD}"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()


def test_public_names_are_imported_without_what_they_use_later() -> None:
    assert imported(f"from bluesky_symdenoise import {', '.join(bluesky_symdenoise.__all__)}") == []


def test_what_is_imported_is_seen() -> None:
    """The control of the test above."""
    assert "torch" in imported("import bluesky_symdenoise.denoiser.network")


def test_help_of_every_command_imports_none() -> None:
    helped = (
        "import contextlib, io\n"
        "from bluesky_symdenoise.cli import main\n"
        "from bluesky_symdenoise.cli.root import PANELS\n"
        "for arguments in [[]] + [[name] for names in PANELS.values() for name in names]:\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "        main([*arguments, '--help'])\n"
    )
    assert imported(helped) == []


def test_every_public_name_is_there() -> None:
    for name in bluesky_symdenoise.__all__:
        assert getattr(bluesky_symdenoise, name) is not None
    assert set(bluesky_symdenoise.__all__) <= set(dir(bluesky_symdenoise))
