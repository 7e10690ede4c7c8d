"""Nothing from a file or the network is unpickled; weights are read from safetensors only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import bluesky_symdenoise

PACKAGE = Path(bluesky_symdenoise.__file__).parent
#: Modules that run what they read.
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


#: Both ends of the pipe between a RunEngine's process and the worker that it started: nobody else can write to it. And
#: what goes to a task of a Dask cluster, which runs whatever code its clients send it.
PRIVATE_PIPE = {"acquisition/cluster/partition.py"}


def offences(source: str, *, checkpoints: bool) -> list[str]:
    """Lines that import an unpickler or call one; `checkpoints`: torch.load with weights_only=True is allowed."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {(node.module or "").split(".")[0]}
        else:
            names = set()
        if names & UNPICKLERS:
            found.append(f"line {node.lineno}: imports {', '.join(names & UNPICKLERS)}")
        if isinstance(node, ast.Call):
            called, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            if given.get("allow_pickle", "False") != "False" or "read_pickle" in called:
                found.append(f"line {node.lineno}: {called} unpickles")
            if called == "torch.load" and not (checkpoints and given.get("weights_only") == "True"):
                found.append(f"line {node.lineno}: torch.load")
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_unpickles(path: Path) -> None:
    """Only training may read its own checkpoints, and only their tensors; only the private pipe carries pickles."""
    found = offences(path.read_text(), checkpoints="training" in path.parts)
    if path.relative_to(PACKAGE).as_posix() in PRIVATE_PIPE:
        assert [line.partition(": ")[2] for line in found] == ["imports pickle"]
    else:
        assert not found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=asked)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "pd.read_pickle(path)",
    ],
)
def test_each_way_of_unpickling_would_be_noticed(source: str) -> None:
    assert offences(source, checkpoints=True)
    assert not offences("np.load(path); torch.load(path, weights_only=True)", checkpoints=True)
    assert offences("torch.load(path, weights_only=True)", checkpoints=False)
