"""What the README and the examples promise, run as they stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_example_runs_from_any_folder(script: Path, tmp_path: Path) -> None:
    """A user can start it as it is."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TILED_")}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "frames denoised" in done.stdout


def test_constraints_forbid_cuda_builds_of_torch_on_linux() -> None:
    """Both set-up commands use the constraints, and these name the CPU build."""
    readme, constraints = (ROOT / "README.md").read_text(), (ROOT / "constraints.txt").read_text()
    commands = [line for line in readme.splitlines() if line.startswith("python3 -m venv")]
    assert len(commands) == 2
    assert all("-c constraints.txt" in command for command in commands)
    assert any(line.startswith("torch==") and "+cpu" in line and "linux" in line for line in constraints.splitlines())
