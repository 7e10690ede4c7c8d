"""Import paths and class names of the previous release."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from bluesky_symdenoise._moved import MOVED, RENAMED


@pytest.mark.parametrize("old", sorted(MOVED))
def test_old_name_gives_the_same_and_warns(old: str) -> None:
    now = importlib.import_module(f"bluesky_symdenoise.{MOVED[old]}")
    sys.modules.pop(f"bluesky_symdenoise.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"import it from bluesky_symdenoise.{MOVED[old]}"):
        module = importlib.import_module(f"bluesky_symdenoise.{old}")
    for name in vars(now):
        if not name.startswith("__"):
            assert getattr(module, name) is getattr(now, name)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("old", "name"), sorted(RENAMED))
def test_old_name_gives_the_renamed_class(old: str, name: str) -> None:
    now = importlib.import_module(f"bluesky_symdenoise.{MOVED[old]}")
    module = importlib.import_module(f"bluesky_symdenoise.{old}")
    assert getattr(module, name) is getattr(now, RENAMED[old, name])


@pytest.mark.process
def test_warning_names_the_line_of_the_user() -> None:
    code = "\n".join(
        [
            "import sys",
            "from bluesky_symdenoise.acquisition.again import recompute",
            "from bluesky_symdenoise.acquisition import replay",
        ]
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.count("<string>:2: DeprecationWarning") == 1
    assert done.stderr.count("<string>:3: DeprecationWarning") == 1


def test_unknown_names_are_not_found() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("bluesky_symdenoise.acquisition.nothing")
