"""The benchmark of sums finds sums that disagree, and no others."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy import ndimage

from bluesky_symdenoise.bench.measured.page import texts
from bluesky_symdenoise.bench.record import header
from bluesky_symdenoise.bench.truth import sums


class Method:
    """What a denoiser gives: an image of the counts, with the sigma of their blurred mean."""

    def __init__(self, of):
        self.of = of

    def __call__(self, counts, *, mask, symmetry, beam_center):
        mean = self.of(np.asarray(counts, float))
        sigma = np.sqrt(ndimage.gaussian_filter(mean, 8) + 0.1)
        defect = np.zeros(mean.shape, np.uint8)
        return xr.Dataset(
            {"intensity": (("y", "x"), mean), "sigma": (("y", "x"), sigma), "defect": (("y", "x"), defect)}
        )


@pytest.fixture(scope="module")
def results():
    """Blurred frames, whose rings are too low, as free ones; counts with a little background as those that agree."""
    methods = {"free": Method(lambda y: ndimage.gaussian_filter(y, 12)), "agree": Method(lambda y: y + 1e-6)}
    return sums.summed([sums.scored(scene, methods) for scene in sums.simulated(2)])


def test_sums_of_the_counts_themselves_agree_and_those_of_a_blurred_frame_do_not(results):
    assert {row["name"] for row in results} == {"rings, 2mm", "rings, centre only", "no rings"}
    for row in results:
        assert row["frames"] == 2
        assert all(row[f"{part}_agree"] < 1e-3 for part in ("ring", "sector", "box"))
    ringed = [row for row in results if row["name"] == "rings, 2mm" and row["level"] == 10]
    assert ringed[0]["ring_free"] > 5


def test_the_gain_is_negative_where_noise_is_put_back(results):
    assert all(row["gain"] < 0 for row in results if row["name"] == "no rings")


def test_results_are_tables_for_terminal_and_page(results):
    fitted = [{"radius": 74.0, "level": 0.1, "sigma": 0.1, "frames": 2, "free": -0.17, "agree": -0.01}]
    assert sums.parts_table(results).row_count == len(results)
    assert sums.areas_table(fitted).row_count == 1
    taken = [{"side": 256, "free": 0.1, "agree": 0.105}]
    content = {"header": header() | {"command": "symdenoise bench sums"}}
    shown = texts({**content, "results": results, "areas": fitted, "seconds": taken})
    assert "-17.0 % (-1.70)" in shown["areas"]
    assert shown["seconds"] == "5 % of 256 x 256 pixels"
    assert "rings, 2mm" in shown["table"]
