"""The command `symdenoise`: what it prints, writes and refuses."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import matplotlib.image
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import bluesky_symdenoise
from bluesky_symdenoise import __version__
from bluesky_symdenoise.catalog.find.align import aligned
from bluesky_symdenoise.catalog.find.query import denoised_for
from bluesky_symdenoise.catalog.server.serve import embedded_catalog
from bluesky_symdenoise.cli import app, main
from bluesky_symdenoise.cli.benches import BENCHES
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.files import open_frames

REPORTED = {
    "failures",
    "raw_uid",
    "denoised_uid",
    "catalog",
    "frames",
    "shape",
    "data_key",
    "symmetry",
    "beam_center",
    "seconds_per_frame",
    "scan_seconds",
    "callback_us_per_event",
    "raw_bytes",
    "denoised_bytes",
    "bytes_ratio",
    "held_out_nll_raw",
    "held_out_nll_denoised",
    "flux_change",
    "rms_error_raw",
    "rms_error_denoised",
    "truth_within_1_sigma",
    "peak_memory_mib",
    "picture",
}


def stack(path: Path, n: int = 2, shape: tuple[int, int] = (64, 96)) -> Path:
    """An .npy file of frames (n, y, x) of Poisson counts."""
    np.save(path, np.random.default_rng(5).poisson(2, (n, *shape)).astype(np.uint16))
    return path


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def invoked(*arguments: str) -> Any:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result


def benches() -> dict[str, Any]:
    return typer.main.get_command(app).commands["bench"].commands  # type: ignore[attr-defined,no-any-return]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on stderr with which the command ends with status 2."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert caught.value.code == 2
    captured = capsys.readouterr()
    (line,) = captured.err.strip().splitlines()
    assert line.startswith("symdenoise: ")
    assert captured.out == ""
    return line


class TestFrontDoor:
    """What needs nothing but the command."""

    def test_version(self) -> None:
        assert invoked("--version").stdout.strip() == f"symdenoise {__version__}"

    @pytest.mark.parametrize(
        "command", [[], ["demo"], ["denoise"], ["serve"], ["train"], ["finetune"], ["models"], ["bench"]]
    )
    def test_help_shows_every_command(self, command: list[str]) -> None:
        assert "Usage" in invoked(*command, "--help").stdout

    @pytest.mark.process
    def test_help_and_import_are_fast(self) -> None:
        """Neither loads torch or Tiled; the network does, so that the test would notice."""
        heavy = "import sys; print([m for m in ('torch', 'tiled', 'bluesky', 'h5py') if m in sys.modules])"
        helped = (
            "import contextlib, io\n"
            "from bluesky_symdenoise.cli import main\n"
            "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
            "    main(['demo', '--help'])\n"
        )
        assert python(f"import bluesky_symdenoise\n{heavy}") == "[]"
        assert python(f"{helped}{heavy}") == "[]"
        assert "torch" in python(f"import bluesky_symdenoise.denoiser.network\n{heavy}")

    def test_no_such_name(self) -> None:
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            bluesky_symdenoise.nothing  # noqa: B018
        assert set(bluesky_symdenoise.__all__) <= set(dir(bluesky_symdenoise))
        assert all(getattr(bluesky_symdenoise, name) is not None for name in bluesky_symdenoise.__all__)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Folder and result of the demo of two simulated frames."""
    output = tmp_path_factory.mktemp("demo") / "kept"
    return output, invoked("demo", "--json", "--frames", "2", "--output", str(output))


@pytest.mark.process
@pytest.mark.server
class TestDemo:
    """The main job with nothing to set up."""

    def test_prints_one_json_object_to_stdout(self, done: tuple[Path, Any]) -> None:
        output, result = done
        (line,) = result.stdout.splitlines()
        report = json.loads(line)
        assert set(report) == REPORTED
        assert (report["frames"], report["data_key"]) == (2, "det")
        assert Path(report["catalog"]) == output.resolve()
        assert report["held_out_nll_denoised"] < report["held_out_nll_raw"]
        assert report["rms_error_denoised"] < report["rms_error_raw"]
        assert abs(report["flux_change"]) < 0.01
        assert f"serve {output}" in result.stderr

    def test_draws_a_picture(self, done: tuple[Path, Any]) -> None:
        picture = Path(json.loads(done[1].stdout)["picture"])
        image = matplotlib.image.imread(picture)
        assert image.shape[0] > 200
        assert image.std() > 0.05

    def test_keeps_a_catalogue_that_opens_again(self, done: tuple[Path, Any]) -> None:
        output, result = done
        report = json.loads(result.stdout)
        with embedded_catalog(output) as client:
            raw = client["raw"][report["raw_uid"]]
            derived = denoised_for(client, raw)
            assert derived is not None
            assert derived.start["uid"] == report["denoised_uid"]
            both = aligned(raw, derived)
            assert both["det_denoised"].shape == (2, 1, *report["shape"])
            assert float(np.isfinite(both["det_denoised"]).mean()) > 0.9, "all but the gaps of the detector"

    def test_plays_a_users_frames(self, tmp_path: Path) -> None:
        path = stack(tmp_path / "mine.npy")
        result = invoked("demo", "--json", "--images", str(path), "--output", str(tmp_path / "kept"), "--symmetry", "1")
        report = json.loads(result.stdout.splitlines()[-1])
        assert (report["frames"], report["shape"], report["symmetry"]) == (2, [64, 96], "1")
        assert report["rms_error_raw"] is None
        (raw_file,) = (
            path for path in (tmp_path / "kept" / "frames").glob("*.h5") if not path.stem.endswith("-primary")
        )
        with h5py.File(raw_file) as file:
            np.testing.assert_array_equal(file["entry/data/data"][:], np.load(path))

    def test_refuses_no_frames(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        line = refused(capsys, "demo", "--frames", "0", "--output", str(tmp_path / "kept"))
        assert "at least one frame" in line
        assert not (tmp_path / "kept").exists()

    def test_refuses_frames_that_are_not_there(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        line = refused(capsys, "demo", "--images", str(tmp_path / "no*.h5"), "--output", str(tmp_path / "kept"))
        assert "no file matches" in line
        assert not (tmp_path / "kept").exists()


class TestDenoise:
    """Plain files in, one NeXus file out."""

    @staticmethod
    def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
        both = [open_frames(f"{path}::/entry/data/{name}") for name in ("intensity", "intensity_errors")]
        intensity, sigma = (np.stack([frames[i] for i in range(len(frames))]) for frames in both)
        return intensity, sigma

    def test_writes_what_the_denoiser_gives(self, tmp_path: Path) -> None:
        path, out = stack(tmp_path / "in.npy"), tmp_path / "out.h5"
        before = path.read_bytes()
        result = invoked("denoise", str(path), "-o", str(out), "--symmetry", "1", "--threads", "1")
        assert result.stdout.strip() == f"{out}: 2 frames, symmetry 1"
        assert path.read_bytes() == before
        intensity, sigma = self.read(out)
        expected = Denoiser.pretrained(threads=1)(np.load(path), symmetry="1")
        assert intensity.shape == (2, 64, 96)
        error = expected["sigma"].values
        assert (np.abs(intensity - expected["intensity"].values) <= error / 8).all()
        np.testing.assert_allclose(sigma, error, rtol=0.2)
        assert not (np.abs(intensity - expected["intensity"].values[::-1]) <= error / 8).all()

    def test_files_in_natural_order_are_a_series_of_which_frames_borrow(self, tmp_path: Path) -> None:
        """`denoise 'folder/*' --borrow both` is what the denoiser makes of the whole stack."""
        y, x = np.ogrid[:48, :64]
        rate = 1 + 4 * np.exp(-((np.hypot(y - 23.5, x - 31.5) - 14) ** 2) / 20)
        frames = np.random.default_rng(4).poisson(rate, (5, 48, 64)).astype(np.uint16)
        (tmp_path / "in").mkdir()
        for name, part in (("a2", frames[:1]), ("a10", frames[1:4]), ("a11", frames[4:])):
            np.save(tmp_path / "in" / f"{name}.npy", part)
        options = ["--symmetry", "1", "--threads", "1", "--borrow", "both", "--borrow-reach", "2"]
        invoked("denoise", str(tmp_path / "in" / "*"), "-o", str(tmp_path / "out.h5"), *options)
        np.save(tmp_path / "one.npy", frames)
        invoked("denoise", str(tmp_path / "one.npy"), "-o", str(tmp_path / "one.h5"), *options)
        made = Denoiser.pretrained(threads=1)(frames, symmetry="1", borrow="both", borrow_reach=2)
        for out in ("out.h5", "one.h5"):
            intensity, sigma = self.read(tmp_path / out)
            np.testing.assert_array_equal(intensity, made["intensity"])
            np.testing.assert_array_equal(sigma, made["sigma"])
            with h5py.File(tmp_path / out) as file:
                np.testing.assert_array_equal(file["entry/data/borrowed"], made["borrowed"])
                assert (file["entry/data/borrowed"][()] > 0).all()
        alone = Denoiser.pretrained(threads=1)(frames, symmetry="1")
        assert not np.array_equal(intensity, alone["intensity"])

    def test_a_series_of_two_shapes_is_refused(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        stack(tmp_path / "a1.npy")
        np.save(tmp_path / "a2.npy", np.ones((64, 64), np.uint8))
        said = refused(capsys, "denoise", str(tmp_path / "a*"), "-o", str(tmp_path / "out.h5"), "--borrow", "both")
        assert "all frames must have the same shape" in said
        assert "open the files of each shape separately" in said

    def test_borrowing_says_what_it_takes(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        path, out = str(stack(tmp_path / "in.npy")), str(tmp_path / "out.h5")
        assert "it must be past" in refused(capsys, "denoise", path, "-o", out, "--borrow", "future")
        assert "without borrow" in refused(capsys, "denoise", path, "-o", out, "--borrow-reach", "3")

    def test_frames_without_counts_at_the_beginning_decide_nothing(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(1)
        frames = np.zeros((12, 128, 136), np.int32)
        frames[10:] = 7 * rng.poisson(3.0, (2, 128, 136))
        np.save(tmp_path / "in.npy", frames)
        arguments = ["denoise", str(tmp_path / "in.npy"), "-o", str(tmp_path / "out.h5"), "--symmetry", "1"]
        refused = CliRunner().invoke(app, arguments)
        assert refused.exit_code != 0
        assert "multiples of 7" in refused.output + str(refused.exception)

    def test_takes_a_mask_and_a_centre(self, tmp_path: Path) -> None:
        path, out, mask = stack(tmp_path / "in.npy"), tmp_path / "out.h5", np.zeros((64, 96), np.uint8)
        mask[:, :5] = 1
        np.save(tmp_path / "mask.npy", mask)
        options = ["--mask", str(tmp_path / "mask.npy"), "--symmetry", "2", "--beam-center", "31.5", "40"]
        assert "symmetry 2 about (y, x) = (31.5, 40.0)" in invoked(
            "denoise", str(path), "-o", str(out), *options
        ).stdout.replace("\n", "")
        intensity, _ = self.read(out)
        assert np.isfinite(intensity[:, :, :5]).all(), "the mates of these pixels were measured"

    def test_an_inverted_mask_is_said_and_can_be_given(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Some acquisition programs write 1 for good pixels."""
        path, good = stack(tmp_path / "in.npy", 1), np.ones((64, 96), np.uint8)
        good[:, :5] = 0
        np.save(tmp_path / "good.npy", good)
        mask = ["--mask", str(tmp_path / "good.npy"), "--symmetry", "1"]
        invoked("denoise", str(path), "-o", str(tmp_path / "a.h5"), *mask)
        assert "good.npy masks 95% of the pixels" in caplog.text
        assert "--invert-mask" in caplog.text
        assert np.isnan(self.read(tmp_path / "a.h5")[0][0, :, 5:]).all()
        caplog.clear()
        invoked("denoise", str(path), "-o", str(tmp_path / "b.h5"), *mask, "--invert-mask")
        assert np.isfinite(self.read(tmp_path / "b.h5")[0][0, :, 5:]).all()
        assert "masks" not in caplog.text

    def test_the_files_own_mask_can_be_ignored(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        path = tmp_path / "in.h5"
        with h5py.File(path, "w") as file:
            file["counts"] = np.load(stack(tmp_path / "in.npy", 1))
            file["mask"] = np.ones((64, 96), bool)
            file["mask"][:, :5] = False
        arguments = [str(path), "--symmetry", "1", "-o", str(tmp_path / "out.h5")]
        invoked("denoise", *arguments)
        assert "--ignore-file-mask" in caplog.text
        assert np.isnan(self.read(tmp_path / "out.h5")[0]).mean() > 0.9
        invoked("denoise", *arguments, "--overwrite", "--ignore-file-mask")
        assert np.isfinite(self.read(tmp_path / "out.h5")[0]).all()

    def test_refuses_to_overwrite_unless_asked(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        path, out = stack(tmp_path / "in.npy", 1), tmp_path / "out.h5"
        out.write_text("precious")
        assert str(out) in refused(capsys, "denoise", str(path), "-o", str(out), "--symmetry", "1")
        assert out.read_text() == "precious"
        invoked("denoise", str(path), "-o", str(out), "--symmetry", "1", "--overwrite")
        assert self.read(out)[0].shape == (1, 64, 96)

    def test_never_replaces_its_input(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        path = stack(tmp_path / "in.npy", 1)
        before = path.read_bytes()
        refused(capsys, "denoise", str(path), "-o", str(path), "--symmetry", "1", "--overwrite")
        assert path.read_bytes() == before

    def test_refuses_what_cannot_work_and_leaves_no_file(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        path, out = str(stack(tmp_path / "in.npy", 1)), str(tmp_path / "out.h5")
        np.save(tmp_path / "small.npy", np.zeros((8, 8), np.uint8))
        cases = {
            "no file matches": [str(tmp_path / "missing.h5")],
            "6mm": [path, "--symmetry", "6mm"],
            "off the detector": [path, "--symmetry", "2", "--beam-center", "5000", "5000"],
            "model 'best'": [path, "--model", "best"],
            "mask of shape (8, 8)": [path, "--symmetry", "1", "--mask", str(tmp_path / "small.npy")],
            "device 'abacus'": [path, "--device", "abacus"],
        }
        for said, arguments in cases.items():
            assert said in refused(capsys, "denoise", *arguments, "-o", out)
            assert not Path(out).exists()

    def test_mask_of_another_shape_beside_the_files_own(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        path = tmp_path / "in.h5"
        with h5py.File(path, "w") as file:
            file["counts"] = np.load(stack(tmp_path / "in.npy", 1))
            file["mask"] = np.zeros((64, 96), bool)
        np.save(tmp_path / "small.npy", np.zeros((8, 8), np.uint8))
        arguments = [str(path), "--mask", str(tmp_path / "small.npy"), "-o", str(tmp_path / "out.h5")]
        assert "mask of shape (8, 8)" in refused(capsys, "denoise", *arguments)


def test_no_bench_writes_a_file_that_was_not_asked_for() -> None:
    defaults = {
        name: [option.default for option in command.loaded.params if option.name == "json_path"]
        for name, command in benches().items()
    }
    assert defaults.pop("report") == []
    assert all(found == [None] for found in defaults.values())


class TestBenches:
    """The commands that measure, which are imported when they are used."""

    def test_each_is_listed_with_the_first_line_of_its_docstring(self) -> None:
        for name, (module, said) in BENCHES.items():
            measure = import_module(f"bluesky_symdenoise.bench.{module}").main
            assert inspect.getdoc(measure).splitlines()[0] == said, name
        assert [*benches()] == [*BENCHES]

    def test_every_module_with_a_command_is_in_the_table(self) -> None:
        rooms = Path(bluesky_symdenoise.__file__).parent / "bench"
        found = {
            ".".join(path.relative_to(rooms).with_suffix("").parts)
            for path in rooms.rglob("*.py")
            if "\ndef main(" in path.read_text()
        }
        assert found == {module for module, _ in BENCHES.values()}

    @pytest.mark.process
    def test_help_lists_them_and_imports_none(self) -> None:
        listed = (
            "import contextlib, io, sys\n"
            "from bluesky_symdenoise.cli import main\n"
            "said = io.StringIO()\n"
            "for arguments in (['--help'], ['bench', '--help']):\n"
            "    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):\n"
            "        main(arguments)\n"
            "print(sorted(name for name in sys.modules if name in ('torch', 'numpy')\n"
            "      or name.startswith('bluesky_symdenoise.bench.') and name.count('.') > 2))\n"
            "print(said.getvalue())"
        )
        modules, said = python(listed).split("\n", 1)
        assert modules == "[]"
        assert all(f" {name} " in said for name in BENCHES)

    @pytest.mark.process
    def test_help_needs_no_extra(self) -> None:
        extras = "('distributed', 'asyncpg', 'bm3d', 'bm4d', 'bmnd', 'pystog', 'skimage')"
        code = (
            f"import sys; sys.modules.update(dict.fromkeys({extras}))\n"
            "import typer\n"
            "from bluesky_symdenoise.cli import app\n"
            "for command in typer.main.get_command(app).commands['bench'].commands.values():\n"
            "    assert command.loaded.params, command.name\n"
        )
        assert python(code) == ""

    def test_help_of_one_shows_its_options(self) -> None:
        assert "--client-size" in invoked("bench", "serve", "--help").stdout


class TestErrors:
    """As the shell sees them: status 2, one line on stderr, nothing on stdout."""

    @pytest.mark.process
    def test_no_traceback(self, tmp_path: Path) -> None:
        command = [sys.executable, "-c", "from bluesky_symdenoise.cli import main; main()"]
        done = subprocess.run([*command, "serve", str(tmp_path)], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert line == (
            f"symdenoise: {tmp_path}: holds no catalogue (catalog.db); "
            f"make one with `symdenoise demo --output {tmp_path}`"
        )

    def test_unknown_option(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            main(["demo", "--colour"])
        assert caught.value.code == 2
        assert "--colour" in capsys.readouterr().err

    def test_missing_recipe_for_training(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        recipe = tmp_path / "missing.toml"
        assert str(recipe) in refused(capsys, "train", str(recipe), "--output", str(tmp_path / "out"))


def test_help_lists_every_command_under_a_heading_the_demo_first() -> None:
    from bluesky_symdenoise.cli.root import PANELS, app

    done = CliRunner().invoke(app, ["--help"])
    assert "Commands" not in done.output
    places = [done.output.index(panel) for panel in PANELS]
    assert places == sorted(places)
    assert done.output.index("demo") < done.output.index("denoise  ")
