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
#: Names whose modules define classes of such a package, or are about one.
EXCEPT = {"Denoiser": "torch", "recompute": "xarray", "register": "bluesky_tiled_plugins"}
_TOLD = f"import sys; print(*(name for name in {HEAVY} if name in sys.modules))"


def imported(code: str) -> list[str]:
    """Return which of the heavy packages a new process has imported after some code."""
    done = subprocess.run([sys.executable, "-c", f"{code}\n{_TOLD}"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()


def test_public_names_are_imported_without_what_they_use_later() -> None:
    light = sorted(set(bluesky_symdenoise.__all__) - set(EXCEPT))
    assert imported(f"from bluesky_symdenoise import {', '.join(light)}") == []


@pytest.mark.parametrize(("name", "package"), sorted(EXCEPT.items()))
def test_exceptions_are_still_exceptions(name: str, package: str) -> None:
    """The test above must see a package that is imported."""
    assert package in imported(f"from bluesky_symdenoise import {name}")


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
