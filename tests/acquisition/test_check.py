"""A symmetry checked on all frames of a run shows differences that one sparse frame cannot show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from raw_runs import step_scan, written
from tiled.client.container import Container
from typer.testing import CliRunner

from bluesky_symdenoise import check_symmetry
from bluesky_symdenoise.acquisition.lazy.register import register
from bluesky_symdenoise.acquisition.live.threaded import ThreadedDenoiseCallback
from bluesky_symdenoise.acquisition.past.recompute import recompute
from bluesky_symdenoise.acquisition.past.replay import replay
from bluesky_symdenoise.acquisition.request.request import Request
from bluesky_symdenoise.acquisition.request.toml import read_arguments
from bluesky_symdenoise.catalog.find.query import denoised_for
from bluesky_symdenoise.cli import app, main
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.check import load_symmetry
from bluesky_symdenoise.physics.symmetry import Symmetry

pytestmark = pytest.mark.server

SHAPE, CENTER = (128, 144), (60.5, 71.0)
#: A tenth brighter on one side: a quarter of the upper left.
ARC = np.s_[10:40, 20:60]


def rate(*, arc: float, level: float) -> np.ndarray:
    """A smooth pattern of symmetry 2mm, one region of it brighter by a fraction."""
    y, x = np.indices(SHAPE)
    out = 1 + np.exp(-(((y - CENTER[0]) / 30) ** 2) - ((x - CENTER[1]) / 40) ** 2)
    out[ARC] *= 1 + arc
    return level * out / out.mean()


def drawn(frames: int, *, arc: float = 0.0, level: float = 0.5, seed: int = 0) -> np.ndarray:
    """Poisson frames (n, y, x)."""
    return np.random.default_rng(seed).poisson(rate(arc=arc, level=level), (frames, *SHAPE)).astype(np.uint16)


def checked(frames: np.ndarray, group: str = "2") -> Any:
    return check_symmetry(frames, symmetry=group, beam_center=CENTER)


@pytest.fixture(scope="module")
def raw(client: Container, home: Path) -> Any:
    """A raw run with an arc on one side."""
    return written(client, step_scan(home / "frames", drawn(4, arc=0.5, level=2.0)))


class TestPooling:
    """The frames of a run together."""

    def test_show_a_weak_arc_that_one_of_them_does_not(self) -> None:
        frames = drawn(80, arc=0.15)
        assert not checked(frames[:1]).tests[0].rejected.any()
        found = checked(frames)
        assert found.tests[0].p_value < 1e-4
        use = found.symmetry.may_fold(0, SHAPE)
        assert use[ARC].mean() < 0.4
        assert found.frames == 80
        assert found.counts_per_pixel == pytest.approx(0.5, rel=0.05)

    def test_leave_a_symmetric_pattern_its_mates(self) -> None:
        found = checked(drawn(80))
        assert found.usable[0] > 0.95

    def test_too_few_counts_allow_no_mates(self) -> None:
        few, many = (checked(drawn(n, level=0.02)).usable[0] for n in (1, 60))
        assert few < 0.1
        assert many > 0.8

    def test_show_a_spot_and_a_gap_of_a_few_pixels(self) -> None:
        y, x = np.indices(SHAPE)
        spot = np.exp(-((y - 30) ** 2 + (x - 40) ** 2) / 18)
        level = rate(arc=0, level=1.0)
        frames = np.random.default_rng(4).poisson(level + 0.6 * spot, (64, *SHAPE))
        frames[:, 90:94, 100:104] = 0
        found = checked(frames)
        use = found.symmetry.may_fold(0, SHAPE)
        mates_place = round(2 * CENTER[0]) - 30, round(2 * CENTER[1]) - 40
        assert not use[28:33, 38:43].any()
        assert not use[mates_place[0] - 2 : mates_place[0] + 3, mates_place[1] - 2 : mates_place[1] + 3].any()
        assert not use[90:94, 100:104].any()
        assert found.usable[0] > 0.8
        assert 0 < found.spotted[0] < 0.2

    def test_are_the_sum_of_all_runs(self) -> None:
        halves = drawn(20)
        assert checked(halves[:10]).frames == 10
        with pytest.raises(SymDenoiseError, match="without a count"):
            check_symmetry(np.zeros((3, 8, 8), np.uint16))

    def test_each_operation_has_a_map_of_its_own(self) -> None:
        y, x = np.indices(SHAPE)
        right = rate(arc=0, level=4.0) * (1 + 0.5 * ((x > 90) & (abs(y - CENTER[0]) < 25)))
        found = check_symmetry(
            np.random.default_rng(1).poisson(right, (10, *SHAPE)), symmetry="2mm", beam_center=CENTER
        )
        # Top and bottom are alike; left and right are not.
        half_turn, left_right, top_bottom = found.usable
        assert top_bottom > 0.95
        assert max(half_turn, left_right) < 0.9
        assert "top onto bottom" in str(found)

    def test_auto_falls_back_to_none(self) -> None:
        y, x = np.indices(SHAPE)
        found = check_symmetry(np.random.default_rng(2).poisson(1 + x / 30 + y / 60, (4, *SHAPE)))
        assert found.symmetry.point_group == "1"
        assert found.tests == ()


class TestDenoising:
    """With a checked symmetry."""

    def test_keeps_the_arc(self, denoiser: Denoiser) -> None:
        frames = drawn(60, arc=0.3, level=0.3)
        mates = tuple(
            slice(round(2 * c) - s.stop + 1, round(2 * c) - s.start + 1) for c, s in zip(CENTER, ARC, strict=True)
        )
        excess = {}
        for name, symmetry in (
            ("none", Symmetry()),
            ("named", Symmetry("2", CENTER)),
            ("checked", checked(frames).symmetry),
        ):
            mean = denoiser(frames[:8], symmetry=symmetry)["intensity"].values.mean(axis=0)
            excess[name] = mean[ARC].mean() - mean[mates].mean()
        assert excess["checked"] > excess["named"]
        assert abs(excess["checked"] - excess["none"]) < abs(excess["named"] - excess["none"])

    def test_takes_the_check_itself_and_no_other_centre(self, denoiser: Denoiser) -> None:
        frames = drawn(4)
        found = checked(frames)
        whole, symmetry = (denoiser(frames[0], symmetry=each) for each in (found, found.symmetry))
        np.testing.assert_array_equal(whole["intensity"], symmetry["intensity"])
        again = check_symmetry(frames, symmetry=found.symmetry)
        np.testing.assert_array_equal(again.symmetry.fold, found.symmetry.fold)
        with pytest.raises(SymDenoiseError, match="its own centre"):
            denoiser(frames[0], symmetry=found, beam_center=(3, 4))

    def test_check_of_another_detector_is_refused(self, denoiser: Denoiser) -> None:
        with pytest.raises(SymDenoiseError, match="frames of this detector"):
            denoiser(np.ones((140, 150), np.uint16), symmetry=checked(drawn(4)).symmetry)


class TestRuns:
    """With a checked symmetry, through the catalogue."""

    def test_live_and_replayed_are_the_same_and_computed_again_bit_for_bit(
        self, client: Container, home: Path, denoiser: Denoiser, raw: Any
    ) -> None:
        found = check_symmetry(raw, symmetry="2", beam_center=CENTER)
        assert 0 < found.usable[0] < 1
        run = replay(raw, into=client["denoised"], denoiser=denoiser, symmetry=found.symmetry)
        plain = replay(raw, into=client["denoised"], denoiser=denoiser, symmetry="2", beam_center=CENTER)
        stored, without = (np.asarray(each["primary"]["det"][1]).squeeze() for each in (run, plain))
        assert run.start["uid"] != plain.start["uid"]
        assert not np.array_equal(stored, without)
        again = recompute(run, 1, denoiser=denoiser)
        np.testing.assert_array_equal(again["intensity"].values.squeeze(), stored)
        assert run.start["provenance"]["recipe"]["fold_sha256"]
        in_memory = replay(raw, denoiser=denoiser, symmetry=found.symmetry)
        np.testing.assert_array_equal(in_memory["det_denoised"][1].values.squeeze(), stored)

        callback = ThreadedDenoiseCallback(client["denoised"], denoiser=denoiser, symmetry=found.symmetry)
        live = written(client, step_scan(home / "frames", drawn(4, arc=0.5, level=2.0)), callback)
        assert callback.close(timeout=60).ok
        shown = np.asarray(denoised_for(client, live)["primary"]["det"][1]).squeeze()
        np.testing.assert_array_equal(shown, stored)

    def test_a_run_given_twice_is_refused(self, raw: Any) -> None:
        with pytest.raises(SymDenoiseError, match="more than once"):
            check_symmetry([raw, raw], symmetry="2", beam_center=CENTER)

    def test_servers_do_not_do_it_when_they_are_read(self, client: Container, denoiser: Denoiser, raw: Any) -> None:
        with pytest.raises(SymDenoiseError, match="checked symmetry"):
            register(raw, client["denoised"], denoiser=denoiser, symmetry=checked(drawn(4)).symmetry)

    def test_another_centre_beside_it_is_refused(self) -> None:
        with pytest.raises(SymDenoiseError, match="its own centre"):
            Request.asked(activity="replay", symmetry=checked(drawn(4)).symmetry, beam_center=(3, 4))

    def test_frames_of_another_shape_are_refused_before_anything_is_written(
        self, client: Container, denoiser: Denoiser, raw: Any
    ) -> None:
        other = Symmetry("2", CENTER, np.ones((20, 20), np.uint8))
        with pytest.raises(SymDenoiseError, match="frames of this detector"):
            replay(raw, into=client["denoised"], denoiser=denoiser, symmetry=other)


def invoked(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


class TestFiles:
    """The command, and the file that it writes."""

    def test_is_written_and_given_where_frames_are_denoised(self, tmp_path: Path) -> None:
        np.save(tmp_path / "frames.npy", drawn(6, arc=0.5, level=2.0))
        kept = tmp_path / "checked.npz"
        given = [str(tmp_path / "frames.npy"), "--symmetry", "2", "--beam-center", "60.5", "71"]
        said = json.loads(invoked("symmetry", *given, "-o", str(kept), "--json"))
        assert said["frames"] == 6
        assert said["operations"][0]["regions_that_differ"] > 0
        symmetry = load_symmetry(kept)
        assert symmetry == Symmetry("2", CENTER)
        settings = tmp_path / "callback.toml"
        settings.write_text('symmetry = "checked.npz"\n')
        from_settings = read_arguments(settings)["symmetry"]
        np.testing.assert_array_equal(from_settings.fold, symmetry.fold)
        assert Request.asked(activity="replay", symmetry=str(kept)).recipe.fold_sha256
        said = invoked("denoise", given[0], "-o", str(tmp_path / "out.h5"), "--symmetry", str(kept))
        assert "symmetry 2 about" in said

    @pytest.mark.parametrize("group", ["2mm", "inf"])
    def test_is_drawn_and_replaces_no_file_unasked(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], group: str
    ) -> None:
        np.save(tmp_path / "frames.npy", drawn(4, arc=0.5, level=2.0))
        picture, kept = tmp_path / "map.png", tmp_path / "checked.npz"
        given = ["symmetry", str(tmp_path / "frames.npy"), "--symmetry", group, "--beam-center", "60.5", "71"]
        invoked(*given, "--picture", str(picture), "-o", str(kept))
        with Image.open(picture) as drawn_map:
            assert drawn_map.height > (3 if group == "2mm" else 1) * drawn_map.width / 4
        before = kept.read_bytes()
        for each in (["--picture", str(picture)], ["-o", str(kept)]):
            with pytest.raises(SystemExit):
                main([*given, *each])
            assert "the file exists" in capsys.readouterr().err
        invoked(*given[:3], "2", *given[4:], "-o", str(kept), "--overwrite")
        assert kept.read_bytes() != before
        with pytest.raises(SystemExit):
            main([*given, "--picture", str(tmp_path / "map.pdf")])
        assert "a picture is NAME.png" in capsys.readouterr().err
        with pytest.raises(SystemExit):
            main([*given[:3], "1", "--picture", str(tmp_path / "none.png")])
        assert "no mates to draw a map of" in capsys.readouterr().err

    def test_without_a_suffix_or_a_file_one_line_says_so(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        np.save(tmp_path / "frames.npy", drawn(2))
        with pytest.raises(SystemExit):
            main(["symmetry", str(tmp_path / "frames.npy"), "-o", "checked.txt"])
        with pytest.raises(SystemExit):
            main(["symmetry", str(tmp_path / "frames.npy"), "-o", str(tmp_path / "nowhere" / "checked.npz")])
        assert capsys.readouterr().err.count("NAME.npz in a folder that exists") == 2
        for content in (b"nothing", b"", b"PK\x03\x04 cut"):
            (tmp_path / "no.npz").write_bytes(content)
            with pytest.raises(SystemExit):
                main(["denoise", str(tmp_path / "frames.npy"), "-o", "o.h5", "--symmetry", str(tmp_path / "no.npz")])
            assert "not a checked symmetry" in capsys.readouterr().err
