"""The bench of speed: frames that have the symmetry, versions side by side, and what a frame costs at least."""

from __future__ import annotations

import json
import shlex
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import bluesky_symdenoise
from bluesky_symdenoise.bench.computing.against import own_folder, unpacked, worker
from bluesky_symdenoise.bench.computing.device import cost, layers
from bluesky_symdenoise.bench.computing.speed import main
from bluesky_symdenoise.bench.measured.page import texts
from bluesky_symdenoise.bench.simulated.symmetric import broken, center_of, counts_of, symmetric_rate
from bluesky_symdenoise.cli import app
from bluesky_symdenoise.denoiser.weights import load_model
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.fold import gated_mates
from bluesky_symdenoise.physics.frame import frame_from_counts
from bluesky_symdenoise.physics.symmetry import Symmetry

SHAPE = (256, 256)
TILTED = "2mm~15:90:1200"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a checkout of another version: this one with another number."""
    package = tmp_path / "checkout" / "bluesky_symdenoise"
    shutil.copytree(Path(bluesky_symdenoise.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "__init__.py").write_text((package / "__init__.py").read_text() + '\n__version__ = "0.0.1"\n')
    return package.parent


def used(rate, symbol: str) -> float:
    """Return the exposure of mates that the test lets pass, over the whole frame."""
    symmetry = Symmetry(symbol, center_of(rate.shape))
    frame = frame_from_counts(
        counts_of(rate), mask=np.zeros(rate.shape, bool), exposure=symmetry.exposure(None, rate.shape)
    )
    return float(gated_mates(frame, symmetry).exposure.mean())


@pytest.mark.parametrize("symbol", ["2", "m", "2mm", "4", "4mm"])
def test_a_simulated_frame_has_its_symmetry(symbol):
    rate = symmetric_rate(SHAPE, symbol)
    image = np.stack([rate, *([rate[::-1, ::-1]] if symbol != "m" else [rate[:, ::-1]])])
    np.testing.assert_allclose(image[0], image[1], rtol=1e-9)
    if symbol.startswith("4"):
        np.testing.assert_allclose(rate, np.rot90(rate), rtol=1e-9)
    if "mm" in symbol:
        np.testing.assert_allclose(rate, rate[:, ::-1], rtol=1e-9)
    lower = symmetric_rate(SHAPE, "1")
    assert np.abs(lower - lower[::-1, ::-1]).max() > 1


# On the tilted detector, some pixels have the same neighbour as the nearest of two mates, or one off the detector.
@pytest.mark.parametrize(
    ("symbol", "mates", "most"), [("2", 1, 0.9), ("2mm", 3, 0.9), ("4", 3, 0.9), ("inf", 3, 0.9), (TILTED, 3, 0.6)]
)
def test_the_gates_of_a_simulated_frame_open_where_it_is_symmetric_and_close_where_it_is_not(symbol, mates, most):
    rate = symmetric_rate(SHAPE, symbol)
    share = used(rate, symbol) / mates
    assert share > most
    assert used(broken(rate), symbol) / mates < share - 0.1
    assert used(symmetric_rate(SHAPE, "1"), symbol) / mates < 0.3


@pytest.mark.process
def test_speed_prints_and_stores_what_each_symmetry_takes(tmp_path):
    path = tmp_path / "speed.json"
    symmetries = ["1", "auto", "broken", TILTED]
    options = ["--size", "128x192", "--dtype", "float32", "--part", "32", "--threads", "1", "--repeats", "1"]
    options += [word for each in symmetries for word in ("--symmetry", each)] + ["-o", str(path)]
    done = CliRunner().invoke(app, ["bench", "speed", *options])
    assert done.exit_code == 0, done.output
    written = json.loads(path.read_text())
    assert written["header"]["command"] == f"symdenoise bench speed {shlex.join(options)}"
    assert written["header"]["model"]["name"] == "fast"
    assert set(written["figures"]) == {"128 x 192, float32, 1 thread(s)", "memory", "limits", "peers"}
    one, auto, part, tilted = written["cases"]
    assert (one["symmetry"], part["symmetry"], tilted["symmetry"]) == ("1", "2mm, broken in a part", TILTED)
    assert auto["symmetry"].startswith("auto, decided before: ")
    assert all(each["mpixel_per_s"] > 0 and each["shape"] == [128, 192] for each in written["cases"])
    assert "times_symmetry_1" not in one
    assert all(each["times_symmetry_1"] > 0 for each in (auto, part, tilted))
    assert f"| `{TILTED}` |" in texts(written)["cases"]


@pytest.mark.process
def test_two_versions_denoise_the_same_frames_in_turn(tmp_path, source):
    path = tmp_path / "speed.json"
    options = ["--size", "128", "--dtype", "float32", "--threads", "1", "--repeats", "1", "--symmetry", "2"]
    done = CliRunner().invoke(app, ["bench", "speed", *options, "--against", str(source), "-o", str(path)])
    assert done.exit_code == 0, done.output
    written = json.loads(path.read_text())
    (case,) = written["cases"]
    assert case["same_bits"]
    assert case["time_of_other"] > 0
    assert set(written["figures"]) == {"128 x 128, float32, 1 thread(s)", "memory", "memory of the other version"}


@pytest.mark.process
def test_a_worker_runs_the_version_of_its_folder_and_a_wheel_is_unpacked(tmp_path, source):
    wheel = tmp_path / "bluesky_symdenoise-0.0.1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path in (source / "bluesky_symdenoise").rglob("*.*"):
            archive.write(path, path.relative_to(source))
    for folder, version in (
        (own_folder(), bluesky_symdenoise.__version__),
        (unpacked(source, tmp_path / "not_needed"), "0.0.1"),
        (unpacked(wheel, tmp_path / "unpacked"), "0.0.1"),
    ):
        with worker(folder) as process:
            assert process.ask("about", device="cpu")["version"] == version


@pytest.mark.process
def test_what_is_no_version_is_refused(tmp_path):
    with pytest.raises(SymDenoiseError, match="neither a wheel of this package nor a folder"):
        unpacked(tmp_path, tmp_path / "unpacked")
    with pytest.raises(SymDenoiseError, match="the process imported the one in"), worker(tmp_path):
        pass


@pytest.mark.process
def test_what_a_version_cannot_do_is_said(tmp_path):
    asked = {"model": None, "device": "cpu", "threads": 1, "dtype": "float32"}
    np.save(tmp_path / "frame.npy", np.ones((128, 128), np.uint16))
    with worker(own_folder()) as process:
        with pytest.raises(SymDenoiseError, match="symmetry '7'"):
            process.ask("run", **asked, frame=str(tmp_path / "frame.npy"), symmetry="7", beam_center=(1, 1))
        assert process.ask("run", **asked, frame=str(tmp_path / "frame.npy"), symmetry="1", beam_center=None)["seconds"]


@pytest.mark.parametrize("asked", [{"size": ["64"]}, {"size": ["128", "wide"]}, {"dtype": ["float16"]}])
def test_sizes_and_dtypes_that_cannot_be_measured_are_refused(asked):
    with pytest.raises(SymDenoiseError, match=repr(next(iter(asked.values()))[-1])):
        main(**asked)


@pytest.mark.parametrize("mates", [True, False])
def test_the_products_of_the_layers_are_those_of_the_weights(mates):
    """Summed from the shapes of the weights: 9 taps, but 4 on the channels from below, at each level's pixels."""
    net = load_model(None).net
    widths = net.architecture.channels
    total = 0.0
    for level, block in enumerate(net.down):
        for layer in (block[0], block[2]):
            total += layer.weight.numel() / 4 ** (level + 1)
    for block, level in zip(net.up, reversed(range(len(widths) - 1)), strict=True):
        deep = block[0].weight[:, : widths[level + 1]].numel()
        total += (block[0].weight.numel() - deep * 5 / 9 + block[2].weight.numel()) / 4 ** (level + 1)
    total += net.head.weight.numel() / 4
    if not mates:
        total -= net.down[0][0].weight.numel() / 2 / 4
    moved, products = cost(net.architecture, mates=mates, dtype="float32")
    assert products == pytest.approx(total)
    assert moved == 2 * cost(net.architecture, mates=mates, dtype="bfloat16")[0]
    assert len(layers(net.architecture, mates=mates)) == 5 * len(widths) - 3 + 1
