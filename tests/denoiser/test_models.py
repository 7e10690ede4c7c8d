"""The models of a computer: what is in the registry is whole and checked, and runs find it by its sha256."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from typer.testing import CliRunner

from bluesky_symdenoise.acquisition.lazy.convert import evict, materialize
from bluesky_symdenoise.acquisition.past.recompute import recompute
from bluesky_symdenoise.acquisition.past.replay import replay
from bluesky_symdenoise.cli import app, main
from bluesky_symdenoise.denoiser import registry
from bluesky_symdenoise.denoiser.identity import sha256_of
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.denoiser.network import Architecture, PriorNet
from bluesky_symdenoise.denoiser.weights import encode, import_model, load_model, save_weights
from bluesky_symdenoise.errors import SymDenoiseError


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's models, none yet."""
    folder = tmp_path / "models"
    monkeypatch.setenv(registry.MODELS_VARIABLE, str(folder))
    return folder


def tiny(folder: Path, name: str = "tiny", seed: int = 0) -> Path:
    """A small untrained model on disk."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    net = PriorNet(Architecture((8, 8)))
    torch.nn.init.normal_(net.head.weight, std=0.1)
    return save_weights(net, folder, name=name, version="7", training={})


def invoked(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


class TestRegistry:
    """Names and files."""

    def test_a_model_travels_from_one_computer_to_another(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sha256 = sha256_of(tiny(tmp_path).read_bytes())
        assert "tiny" not in invoked("models", "list")
        assert sha256[:12] in invoked("models", "import", str(tmp_path / "tiny.safetensors"))
        assert sha256[:12] in invoked("models", "list")
        listed = {each["name"]: each for each in json.loads(invoked("models", "list", "--json"))}
        assert listed["tiny"]["sha256"] == sha256
        assert listed["fast"]["shipped"]
        assert not listed["tiny"]["shipped"]
        assert sha256 in invoked("models", "show", "tiny")
        assert "# Model card: fast" in invoked("models", "show", "fast")
        exported = invoked("models", "export", "tiny", "--output", str(tmp_path / "out")).strip()
        monkeypatch.setenv(registry.MODELS_VARIABLE, str(tmp_path / "elsewhere"))
        invoked("models", "import", exported, "--name", "other")
        model = Denoiser.pretrained("other", device="cpu", threads=1).model
        assert model.identity() == {"name": "other", "version": "7", "sha256": sha256}
        assert sha256[:12] in invoked("models", "remove", "other")
        assert "other" not in invoked("models", "list")
        assert list((tmp_path / "elsewhere").iterdir()) == []

    @pytest.mark.process
    def test_it_lies_in_the_users_data_directory(self, tmp_path: Path) -> None:
        code = "from bluesky_symdenoise.denoiser.registry import models_folder; print(models_folder())"
        environment = {**os.environ, "XDG_DATA_HOME": str(tmp_path), "HOME": str(tmp_path)}
        environment[registry.MODELS_VARIABLE] = ""
        said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert Path(said.stdout.strip()).is_relative_to(tmp_path)

    @pytest.mark.process
    def test_listing_needs_no_torch(self) -> None:
        code = (
            "import contextlib, sys\n"
            "from bluesky_symdenoise.cli import main\n"
            "with contextlib.suppress(SystemExit):\n"
            "    main(['models', 'list'])\n"
            "print('torch' in sys.modules)"
        )
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert said.stdout.splitlines()[1].split()[0] == "fast"
        assert said.stdout.split()[-1] == "False"

    @pytest.mark.parametrize(
        "name", ["", "a b", "../up", "a/b", ".hidden", "-x", "7th", "x" * 65, "deadbeef", "a.safetensors", "mü", "a\n"]
    )
    def test_an_invalid_name_is_refused(self, tmp_path: Path, models: Path, name: str) -> None:
        with pytest.raises(SymDenoiseError, match="must be a letter"):
            registry.add(name, tiny(tmp_path).read_bytes(), {"version": "1"}, "")
        assert not models.exists()

    def test_the_packages_models_are_neither_shadowed_nor_removed(self, tmp_path: Path, models: Path) -> None:
        shipped = load_model("fast").sha256
        with pytest.raises(SymDenoiseError, match="the package has a model of this name"):
            import_model(tiny(tmp_path), name="fast")
        # Put there by hand.
        tiny(models / "fast", "fast")
        assert load_model("fast").sha256 == shipped
        with pytest.raises(SymDenoiseError, match="belongs to the package"):
            registry.remove("fast")
        assert (models / "fast" / "fast.safetensors").is_file()

    def test_a_name_is_not_given_twice(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = import_model(tiny(tmp_path / "a"))
        with pytest.raises(SymDenoiseError, match=r"has a model of this name.*symdenoise models remove tiny"):
            import_model(tiny(tmp_path / "b", seed=1))
        # Nor by a process that looked before the first one wrote.
        monkeypatch.setattr(registry, "checked_new_name", lambda name: name)
        with pytest.raises(SymDenoiseError, match="cannot be written"):
            import_model(tiny(tmp_path / "b", seed=1))
        assert load_model("tiny").sha256 == first.sha256
        assert registry.registered() == ["tiny"]

    def test_an_interrupted_import_leaves_nothing(
        self, tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        written: list[int] = []

        def interrupted(descriptor: int) -> None:
            written.append(descriptor)
            if len(written) == 2:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", interrupted)
            with pytest.raises(KeyboardInterrupt):
                import_model(tiny(tmp_path))
        assert list(models.iterdir()) == []
        import_model(tiny(tmp_path))
        assert registry.registered() == ["tiny"]

    def test_a_folder_that_cannot_be_written_is_one_line(
        self, tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        models.write_text("a file")
        assert "SYMDENOISE_MODELS" in refused(capsys, "models", "import", str(tiny(tmp_path)))

    def test_exports_overwrite_nothing(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "fast.json").write_text("mine")
        assert "choose another folder" in refused(capsys, "models", "export", "fast", "-o", str(tmp_path))
        assert (tmp_path / "fast.json").read_text() == "mine"

    def test_an_unknown_model_is_one_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        for command in ("show", "remove", "export"):
            assert "symdenoise models import" in refused(capsys, "models", command, "nothing")

    def test_a_damaged_record_hides_no_other_model(self, tmp_path: Path, models: Path) -> None:
        import_model(tiny(tmp_path))
        import_model(tiny(tmp_path), name="broken")
        (models / "broken" / "broken.json").write_text("{")
        result = CliRunner().invoke(app, ["models", "list"])
        assert "tiny" in result.stdout
        assert "broken.json: it cannot be read" in result.stderr
        assert load_model("tiny").name == "tiny"


def claiming(channels: str) -> bytes:
    """A valid safetensors file whose header claims an architecture."""
    return save(PriorNet(Architecture((8, 8))).state_dict(), metadata={"architecture": f'{{"channels": {channels}}}'})


def not_finite() -> bytes:
    net = PriorNet(Architecture((8, 8)))
    with torch.no_grad():
        net.head.weight[0] = torch.nan
    return encode(net)


class TestImport:
    """Imported files are checked, and never executed."""

    def test_only_safetensors(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """A pickle could run anything."""
        path = tmp_path / "model.pt"
        torch.save({}, path)
        assert "from .safetensors files only" in refused(capsys, "models", "import", str(path))
        path.rename(tmp_path / "model.safetensors")
        path.with_suffix(".json").write_text(
            json.dumps(
                {"name": "m", "version": "1", "sha256": sha256_of((tmp_path / "model.safetensors").read_bytes())}
            )
        )
        assert "not a model of this package" in refused(capsys, "models", "import", str(tmp_path / "model.safetensors"))

    @pytest.mark.parametrize(
        "content",
        [
            claiming("[8, 16]"),
            claiming("[200000, 200000, 200000]"),
            claiming(str([1] * 10**5)),
            claiming('["8", "8"]'),
            claiming("[-8, 8]"),
            claiming("[]"),
            claiming("null"),
            save({"a": torch.zeros(2)}, metadata={"architecture": '{"channels": [8, 8]}'}),
            save(PriorNet(Architecture((8, 8))).half().state_dict(), metadata={"architecture": '{"channels": [8, 8]}'}),
            not_finite(),
            b"\xff" * 100,
            b"",
        ],
        ids=["other", "size", "depth", "text", "negative", "none", "null", "tensors", "half", "nan", "ff", "empty"],
    )
    def test_files_with_other_networks_are_refused(self, tmp_path: Path, content: bytes) -> None:
        """Although the record has its sha256."""
        path = tiny(tmp_path)
        path.write_bytes(content)
        record = json.loads(path.with_suffix(".json").read_text()) | {"sha256": sha256_of(content)}
        path.with_suffix(".json").write_text(json.dumps(record))
        with pytest.raises(SymDenoiseError, match="not a model of this package"):
            import_model(path)
        assert registry.registered() == []

    def test_a_damaged_or_unrecorded_file_is_refused(self, tmp_path: Path) -> None:
        path = tiny(tmp_path)
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        with pytest.raises(SymDenoiseError, match="damaged or was replaced"):
            import_model(path)
        path.with_suffix(".json").unlink()
        with pytest.raises(SymDenoiseError, match="cannot be read"):
            import_model(path)

    def test_the_name_in_a_record_is_checked_too(self, tmp_path: Path, models: Path) -> None:
        path = tiny(tmp_path)
        record = json.loads(path.with_suffix(".json").read_text()) | {"name": "../../evil"}
        path.with_suffix(".json").write_text(json.dumps(record))
        with pytest.raises(SymDenoiseError, match="must be a letter"):
            import_model(path)
        assert not models.exists()


@pytest.mark.server
def test_runs_find_their_model_by_its_sha256(tmp_path: Path, catalog: Any, frames_folder: Path, write_run: Any) -> None:
    """Stored, lazy and recomputed frames, whatever the model is called now; and the remedy where it is missing."""
    counts = np.random.default_rng(0).poisson(2.0, (3, 40, 48)).astype(np.uint16)
    uid = write_run(catalog["raw"], frames_folder, {"det": counts})
    path = tiny(tmp_path)
    import_model(path, name="mine")
    denoiser = Denoiser.pretrained("mine", device="cpu", threads=1)
    run = replay(catalog["raw"][uid], into=catalog["denoised"], denoiser=denoiser, symmetry="1")
    assert run.start["provenance"]["model"]["sha256"] == sha256_of(path.read_bytes())
    stored = np.asarray(run["primary"]["det"])

    registry.remove("mine")
    for use in (lambda: recompute(run, 1), lambda: evict(run)):
        with pytest.raises(SymDenoiseError, match="symdenoise models import") as caught:
            use()
        assert len(str(caught.value).splitlines()) == 1
    np.testing.assert_array_equal(np.asarray(run["primary"]["det"]), stored)

    # Another model of that name is not taken for it.
    import_model(tiny(tmp_path / "b", seed=1), name="mine")
    with pytest.raises(SymDenoiseError, match="symdenoise models import"):
        recompute(run, 1)

    import_model(path, name="renamed")
    again = recompute(run, 1)
    np.testing.assert_array_equal(again["intensity"].values, stored[1])
    evict(run)
    np.testing.assert_array_equal(np.asarray(catalog["denoised"][run.start["uid"]]["primary"]["det"]), stored)
    materialize(catalog["denoised"][run.start["uid"]])
    np.testing.assert_array_equal(np.asarray(catalog["denoised"][run.start["uid"]]["primary"]["det"]), stored)


@pytest.mark.server
def test_the_server_says_which_model_it_lacks(
    tmp_path: Path, catalog: Any, frames_folder: Path, write_run: Any, models: Path
) -> None:
    from bluesky_symdenoise.acquisition.lazy.register import register
    from bluesky_symdenoise.catalog.lazy import models as served

    counts = np.random.default_rng(0).poisson(2.0, (2, 40, 48)).astype(np.uint16)
    uid = write_run(catalog["raw"], frames_folder, {"det": counts})
    import_model(tiny(tmp_path), name="mine")
    denoiser = Denoiser.pretrained("mine", device="cpu", threads=1)
    shutil.move(models / "mine", tmp_path / "kept")
    served._denoiser.cache_clear()
    served._model.cache_clear()
    with pytest.raises(SymDenoiseError, match="symdenoise models import"):
        register(catalog["raw"][uid], into=catalog["denoised"], denoiser=denoiser, symmetry="1")
    # Nothing has to be started again when it is there.
    shutil.move(tmp_path / "kept", models / "mine")
    lazy = register(catalog["raw"][uid], into=catalog["denoised"], denoiser=denoiser, symmetry="1")
    assert np.isfinite(np.asarray(lazy["primary"]["det"])).all()
