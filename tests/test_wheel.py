"""What `pip install` gives: the wheel alone, away from the source tree."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str, cwd: Path, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT), cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel: Path) -> Path:
    """Folder with the package installed."""
    target = wheel.parent / "site"
    pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    run(*pip, "--target", str(target), str(wheel), cwd=wheel.parent)
    return target


def test_wheel_holds_what_is_no_python(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
        listed = archive.read(entry_points).decode()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        described = archive.read(metadata).decode()
    source = {path.name for path in (ROOT / "bluesky_symdenoise" / "denoiser" / "models").iterdir()}
    assert any(name.endswith(".safetensors") for name in source)
    assert {f"bluesky_symdenoise/denoiser/models/{name}" for name in source} <= names
    assert {"bluesky_symdenoise/tiled_config.yml", "bluesky_symdenoise/py.typed"} <= names
    assert "bluesky_symdenoise/training/recipes/fast.toml" in names
    assert "symdenoise = bluesky_symdenoise.cli:main" in listed
    assert "SymDenoised = bluesky_symdenoise.catalog.client:SymDenoisedRun" in listed
    assert "License-Expression: BSD-3-Clause" in described
    assert not any(name.startswith(("tests/", "examples/")) for name in names)


def test_every_module_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    modules = (ROOT / "bluesky_symdenoise").rglob("*.py")
    assert {path.relative_to(ROOT).as_posix() for path in modules} <= names


def test_installed_package_works_by_itself(site: Path, tmp_path: Path) -> None:
    """Configuration, weights and Tiled client class come from the installed files, not from a checkout."""
    code = f"""
from importlib.metadata import entry_points
from pathlib import Path
import numpy as np
import bluesky_symdenoise
from bluesky_symdenoise import Denoiser
from bluesky_symdenoise.catalog.server.serve import config_path, embedded_config
site = Path({str(site)!r})
assert Path(bluesky_symdenoise.__file__).is_relative_to(site), bluesky_symdenoise.__file__
assert config_path().is_relative_to(site), config_path()
embedded_config("here", api_key="secret")
assert Denoiser.pretrained()(np.ones((32, 32)), symmetry="1")["intensity"].shape == (32, 32)
(point,) = (p for p in entry_points(group="tiled.special_client") if p.name == "SymDenoised")
assert point.load().__name__ == "SymDenoisedRun"
print("works")
"""
    assert run("-c", code, cwd=tmp_path, PYTHONPATH=str(site)).strip() == "works"


def test_tiled_gives_denoised_runs_their_own_class(site: Path, tmp_path: Path) -> None:
    code = """
from tiled.client.container import DEFAULT_STRUCTURE_CLIENT_DISPATCH, Container
Container.discover_clients_from_entrypoints()
print(DEFAULT_STRUCTURE_CLIENT_DISPATCH["numpy"]["SymDenoised"].__name__)
"""
    assert run("-c", code, cwd=tmp_path, PYTHONPATH=str(site)).strip() == "SymDenoisedRun"


def test_installed_command(site: Path, tmp_path: Path) -> None:
    command = site / "bin" / "symdenoise"
    assert run(str(command), "--version", cwd=tmp_path, PYTHONPATH=str(site)).startswith("symdenoise ")


def test_weights_are_imported_from_the_wheel_itself(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a later version, which ships others, has to; the file is called as that version will say."""
    from bluesky_symdenoise.denoiser import registry, released
    from bluesky_symdenoise.denoiser.wheel import import_wheel

    shipped = registry.entry("fast")
    assert f"`symdenoise models import {wheel.name}`" in released.where_weights_are(shipped.sha256, "fast")
    monkeypatch.setenv(registry.MODELS_VARIABLE, str(tmp_path))
    monkeypatch.setattr(registry, "available", list)
    (found,) = import_wheel(wheel)
    assert (found.name, found.sha256, found.shipped) == ("fast", shipped.sha256, False)
