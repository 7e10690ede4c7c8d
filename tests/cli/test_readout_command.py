"""`symdenoise readout`: what it finds in files and runs, prints, writes and refuses."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from tiled.client.container import Container

from bluesky_symdenoise.bench.simulated.integrating import Detector
from bluesky_symdenoise.cli import main
from bluesky_symdenoise.files.readout_file import load_readout

SHAPE = (128, 160)
CCD = Detector(2.0, 5.0, 100.0, rounded=True)
#: A bright ring: the cosine of the distance from the middle.
RATE = 100 + 90 * np.cos(np.hypot(*np.ogrid[-64:64, -80:80]) / 12)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(3)
    for index, frame in enumerate(CCD.frames(rng, RATE, 8)):
        np.save(tmp_path / f"light_{index}.npy", frame.astype(np.uint16))
    np.save(tmp_path / "dark.npy", CCD.frames(rng, 0 * RATE, 6).astype(np.uint16))
    return tmp_path


def done(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    main_quietly(*options)
    return capsys.readouterr().out


def main_quietly(*options: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(["readout", *options])
    assert not end.value.code, end.value.code


def refused(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(["readout", *options])
    assert end.value.code == 2
    return capsys.readouterr().err


def test_the_readout_of_files_is_written_and_read_back(folder: Path, capsys: pytest.CaptureFixture[str]):
    """Gain and read noise of a CCD, its offset as a map beside the TOML, and a picture of the curves."""
    toml, plot = folder / "ccd.toml", folder / "ccd.png"
    text = done(
        capsys,
        f"{folder}/light_*.npy",
        *("--dark", f"{folder}/dark.npy", "-o", str(toml), "--plot", str(plot)),
    )
    readout = load_readout(toml)
    assert readout.gain == pytest.approx(2.0, rel=0.05)
    # Rounding adds 1/12 to the variance.
    assert readout.read_noise == pytest.approx(5.0, rel=0.05)
    assert np.shape(readout.offset) == SHAPE
    assert np.mean(readout.offset) == pytest.approx(100, abs=0.1)
    assert readout.blur == 0
    assert matplotlib.image.imread(plot).ndim == 3
    assert toml.read_text() in text
    assert "1 x 1" in text
    assert "8 x 8" in text
    assert 'offset = "ccd.offset.npy"' in text


def test_without_output_the_toml_can_be_pasted(folder: Path, capsys: pytest.CaptureFixture[str]):
    mask = np.zeros(SHAPE, np.uint8)
    mask[:, 40:50] = 1
    np.save(folder / "mask.npy", mask)
    names = [f"{folder}/light_{index}.npy" for index in range(8)]
    options = ("--mask", f"{folder}/mask.npy", "--frames", "1")
    assert "--dark" in refused(capsys, *names, *options)
    for index in range(8):
        file = folder / f"light_{index}.npy"
        np.save(file, np.load(file) - 100.0)
    text = done(capsys, *names, *options)
    pasted = folder / "pasted.toml"
    pasted.write_text(text[text.index("# found") :])
    assert load_readout(pasted).gain == pytest.approx(2.0, rel=0.05)
    assert "# the offset is taken as 0" in text


def test_pairs_of_mates_are_compared_if_their_place_is_known(folder: Path, capsys: pytest.CaptureFixture[str]):
    bare = Detector(2.0, 5.0).frames(np.random.default_rng(4), RATE, 1)
    np.save(folder / "one.npy", bare)
    text = done(capsys, f"{folder}/one.npy", "--symmetry", "2mm", "--beam-center", "64", "80")
    assert "from symmetry pairs" in text
    assert "without a centre" in refused(capsys, f"{folder}/one.npy", "--symmetry", "2mm")


def test_what_cannot_be_done_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]):
    light = f"{folder}/light_0.npy"
    assert "NAME.toml" in refused(capsys, light, "-o", f"{folder}/a.txt")
    (folder / "held.toml").write_text("")
    assert "the file exists" in refused(capsys, light, "-o", f"{folder}/held.toml")
    assert "NAME.png" in refused(capsys, light, "--plot", f"{folder}/a.svg")
    assert "add --from" in refused(capsys, light, "--stream", "primary")
    assert "'foo': it must be one of" in refused(capsys, light, "--symmetry", "foo")
    assert "must be on the detector" in refused(capsys, light, "--symmetry", "2", "--beam-center", "500", "80")
    np.save(folder / "bool.npy", np.eye(64, dtype=bool))
    assert "real numbers" in refused(capsys, f"{folder}/bool.npy")
    np.save(folder / "colour.npy", np.zeros((64, 64, 3), np.uint8))
    assert "colour" in refused(capsys, f"{folder}/colour.npy")
    np.save(folder / "flat.npy", np.full((2, 64, 64), 7.0))
    assert "give more frames" in refused(capsys, f"{folder}/flat.npy")


@pytest.mark.server
def test_runs_are_read_from_a_catalogue(
    catalog: Container,
    frames_folder: Path,
    write_run,  # type: ignore[no-untyped-def]
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("TILED_API_KEY", str(catalog.context.api_key))
    frames = Detector(3.0, 4.0).frames(np.random.default_rng(5), RATE, 6)
    uid = write_run(catalog["raw"], frames_folder, {"ccd": frames})
    text = done(capsys, "--from", catalog.uri, uid[:8])
    assert "frames: 6" in text
    gain = float(text.split("gain = ")[1].split()[0])
    assert gain == pytest.approx(3.0, rel=0.05)
