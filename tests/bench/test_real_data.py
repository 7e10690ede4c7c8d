"""Real detector frames that the weights were not trained on; needs SYMDENOISE_REAL_DATA."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from bluesky_symdenoise import Denoiser
from bluesky_symdenoise.bench.quality.peers import PEERS
from bluesky_symdenoise.bench.quality.quality import pretrained, run
from bluesky_symdenoise.cli import app
from bluesky_symdenoise.files import open_frames

FOLDER = os.environ.get("SYMDENOISE_REAL_DATA")
pytestmark = pytest.mark.skipif(FOLDER is None, reason="SYMDENOISE_REAL_DATA is not set")


@pytest.fixture(scope="module")
def results() -> list[dict[str, object]]:
    """The quality benchmark at one photon per pixel, on the test sets."""
    peers = {name: PEERS[name] for name in ("raw", "gaussian_1", "gaussian_2", "nlm")}
    found = run(Path(str(FOLDER)), pretrained(None), peers=peers, levels=(1.0,))
    return [row for row in found if not row["note"]]


def test_held_out_likelihood_beats_every_simple_filter(results: list[dict[str, object]]) -> None:
    """At one photon per pixel, the worst of ours is better than the best of raw, Gaussian and non-local means."""
    for case in {(str(row["set"]), str(row["kind"])) for row in results}:
        rows = [row for row in results if (row["set"], row["kind"]) == case]
        ours = [float(str(row["nll"])) for row in rows if str(row["method"]).startswith("symdenoise")]
        peers = [float(str(row["nll"])) for row in rows if not str(row["method"]).startswith("symdenoise")]
        assert len(peers) == 4
        assert max(ours) < min(peers), case


def test_total_counts_are_kept_within_one_percent(results: list[dict[str, object]]) -> None:
    """Against held-out counts, as total flux."""
    ours = [row for row in results if str(row["method"]).startswith("symdenoise")]
    assert ours
    assert max(abs(float(str(row["flux_error"]))) for row in ours) < 0.01


def test_symmetry_never_costs_likelihood(results: list[dict[str, object]]) -> None:
    """Where a set has a symmetry, using it is better than not using it at one photon per pixel."""
    for folded in [row for row in results if row["method"] == "symdenoise+symmetry"]:
        (alone,) = [
            row
            for row in results
            if row["method"] == "symdenoise" and (row["set"], row["kind"]) == (folded["set"], folded["kind"])
        ]
        assert float(str(folded["nll"])) <= float(str(alone["nll"])) + 1e-4, folded["set"]


def test_auto_finds_the_symmetry_of_muscle_and_its_centre() -> None:
    """2mm, within half a pixel of the labelled centre."""
    with open_frames(f"{FOLDER}/muscle_p40.h5") as stack:
        found = Denoiser.pretrained().resolve(stack[0], mask=stack.mask)
        assert found.point_group == "2mm"
        assert found.beam_center is not None
        np.testing.assert_allclose(found.beam_center, stack.beam_center, atol=0.5)


@pytest.mark.process
def test_the_main_job_runs_on_real_frames(tmp_path: Path) -> None:
    """`symdenoise demo --images` through detector, RunEngine, callback and catalogue."""
    command = ["demo", "--images", f"{FOLDER}/muscle_p40.h5", "--symmetry", "2mm", "--frames", "2", "--json"]
    done = CliRunner().invoke(app, [*command, "--output", str(tmp_path / "kept")])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["frames"] == 2
    assert report["shape"] == [1043, 981]
    assert report["symmetry"] == "2mm"
    assert report["held_out_nll_denoised"] < report["held_out_nll_raw"]
    assert report["bytes_ratio"] <= 5
