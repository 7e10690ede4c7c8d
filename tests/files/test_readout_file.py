"""A readout is written as TOML with its maps beside it, and read back the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.readout_file import load_readout, readout_toml, save_readout
from bluesky_symdenoise.physics.integrating import Readout
from bluesky_symdenoise.physics.integrating.found import FoundReadout

MAP = np.random.default_rng(1).normal(100, 3, (6, 7))


@pytest.mark.parametrize(
    "readout",
    [
        Readout(2.0),
        Readout(1 / 3, 3.5, 100.0, 1048575.0, 10, 0.6, 0.5),
        Readout(2.0, 4.0, np.where(MAP > 105, np.nan, MAP), 4095.0, offset_error=0.01 * MAP),
        Readout(np.abs(MAP), np.abs(MAP), offset=MAP),
    ],
)
def test_a_readout_is_read_as_it_was_written(tmp_path: Path, readout: Readout):
    save_readout(readout, tmp_path / "ccd.toml")
    assert load_readout(tmp_path / "ccd.toml") == readout
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for file in tmp_path.glob("ccd.*"):
        file.rename(moved / file.name)
    assert load_readout(moved / "ccd.toml") == readout


def test_errors_and_notes_are_comments(tmp_path: Path):
    found = FoundReadout(
        Readout(2.0, 4.0), 0.03, 0.2, "repeats", 20, chi_squared=1.02, lag=0.01, lag_error=0.002, notes=("rows: noise",)
    )
    said = readout_toml(found)
    for part in ("gain = 2.0  # +/- 0.03", "# found from repeats, frames: 20", "1.020", "# rows: noise", "0.0100"):
        assert part in said
    save_readout(found, tmp_path / "a.toml")
    assert load_readout(tmp_path / "a.toml") == found.readout


def test_nothing_is_replaced_unless_told(tmp_path: Path):
    save_readout(Readout(2.0), tmp_path / "a.toml")
    np.save(tmp_path / "b.offset.npy", MAP)
    for name, readout in (("a", Readout(3.0)), ("b", Readout(3.0, offset=MAP))):
        with pytest.raises(SymDenoiseError, match="the file exists"):
            save_readout(readout, tmp_path / f"{name}.toml")
    assert not (tmp_path / "b.toml").exists()
    save_readout(Readout(3.0), tmp_path / "a.toml", overwrite=True)
    assert load_readout(tmp_path / "a.toml").gain == 3
    with pytest.raises(SymDenoiseError, match=r"NAME\.toml"):
        save_readout(Readout(2.0), tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[readout]\ngain = 2\nreadnoise = 3", "readnoise: a readout has no such value"),
        ("[readout]\ngain = 2\n[other]\na = 1", "other: it holds one table"),
        ("gain = 2", "gain: it holds one table"),
        ("", "no readout: it holds one table"),
        ("readout = 2", "no readout: it holds one table"),
        ("[readout]\nread_noise = 2", "without a gain"),
        ("[readout]\ngain = true", "gain = True: it is a number, or the name"),
        ("[readout]\ngain = 2\nframes = 1.5", "frames = 1.5: it is a whole number"),
        ("[readout]\ngain = 2\nframes = 0", "frames=0"),
        ("[readout]\ngain = 2\nsaturation = 'high'", "saturation = 'high': it is a number"),
        ("[readout]\ngain = 2\noffset = 'missing.npy'", "no file matches"),
        ("[readout]\ngain = 2\noffset = 'three.npy'", "with 3 images"),
        ("[readout]\ngain = nan", "must be finite"),
        ("[readout]\ngain = 1" + 400 * "0", "gain = a number of about 400 digits: it is beyond double precision"),
        ("[readout]\ngain = 2\nsaturation = 1" + 400 * "0", "saturation = a number"),
        ("[readout]\ngain = 1" + 5000 * "0", "cannot be read"),
        ("[readout]\ngain = 2\nframes = 1e20", "frames = 1e+20: it is a whole number"),
        ("[readout]\ngain = 2\nframes = 100000000000000000000000", "frames=a number of about"),
        ("[readout]\ngain = 2\nframes = 1" + 400 * "0", "frames=a number of about 400 digits: a frame is the mean"),
        ("[readout]\ngain = 2\nframes = true", "frames = True: it is a whole number"),
        ("[readout]\ngain = 2\nframes = '3'", "frames = '3': it is a whole number"),
        ("[readout]\ngain = 'bool.npy'", "gain from bool.npy of bool values"),
        ("[readout", "cannot be read"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(tmp_path: Path, text: str, said: str):
    np.save(tmp_path / "three.npy", np.ones((3, 4, 5)))
    np.save(tmp_path / "bool.npy", np.ones((4, 5), bool))
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(SymDenoiseError) as caught:
        load_readout(tmp_path / "r.toml")
    assert said in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(SymDenoiseError, match="cannot be read"):
        load_readout(tmp_path / "none.toml")
