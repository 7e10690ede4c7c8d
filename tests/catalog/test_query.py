"""Derived runs are found from raw runs and back, and both read as one Dataset."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiled.client.utils
from tiled.client.container import Container
from tiled.structures.core import Spec

from bluesky_symdenoise import SymDenoiseError, aligned, denoised_for, raw_for
from bluesky_symdenoise.catalog.client import SymDenoisedRun
from bluesky_symdenoise.catalog.server.serve import embedded_catalog

pytestmark = pytest.mark.server

FRAMES = np.random.default_rng(0).poisson(3, (3, 4, 5)).astype("<u2")
TIMES = [1.7e9, 1.7e9 + 1, 1.7e9 + 2]
WriteRun = Callable[..., str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("a folder with spaces") / "catalog"


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[Container]:
    """One server for this module: runs are told apart by uid. Knows the class of denoised runs."""
    with embedded_catalog(folder) as root:
        clients = copy.copy(root.structure_clients)
        clients.set("SymDenoised", lambda: SymDenoisedRun)
        yield root.new_variation(structure_clients=clients)


@pytest.fixture
def raw(client: Container, folder: Path, write_run: WriteRun) -> str:
    return write_run(client["raw"], folder / "frames", {"det": FRAMES}, scalars={"motor": [1.0, 2.0, 3.0]}, times=TIMES)


@pytest.fixture
def derive(client: Container, folder: Path, write_run: WriteRun) -> WriteRun:
    """Function that writes the denoised run of a raw uid: frames lowered by one half, sigma one quarter."""

    def write(raw_uid: str, *, rows: int = 3, start: Mapping[str, Any] | None = None, **options: Any) -> str:
        images = FRAMES[:rows].astype("<f4") - np.float32(0.5)
        usual = {
            "scalars": {"det_counts_in": [7.0] * rows, "det_symmetry": ["2mm"] * rows},
            "times": TIMES[:rows],
            "start": {"raw_uid": raw_uid, "tiled_specs": ["SymDenoised"]} | dict(start or {}),
        }
        stacks = {"det": images, "det_sigma": np.full_like(images, 0.25)}
        return write_run(client["denoised"], folder / "frames", stacks, **(usual | options))

    return write


# --- denoised_for


def test_the_denoised_run_is_found_from_the_uid_the_run_and_the_container(client, raw, derive):
    uid = derive(raw)
    for found in (
        denoised_for(client, raw),
        denoised_for(client, client["raw"][raw]),
        denoised_for(client["denoised"], raw),
        denoised_for(client, raw[:12]),
    ):
        assert found.start["uid"] == uid


def test_a_run_that_was_not_denoised_has_none_although_others_have(client, raw, derive, write_run, folder):
    other = write_run(client["raw"], folder / "frames", {"det": FRAMES})
    derive(other)
    assert denoised_for(client, raw) is None
    assert denoised_for(client, raw[:12]) is None
    assert denoised_for(client, "0" * 36) is None
    assert denoised_for(client, "00000000-0000") is None


def test_the_newest_denoised_run_is_returned_whatever_order_they_were_written_in(client, raw, derive):
    derive(raw, start={"time": 1.7e9 + 50.5})
    newest = derive(raw, start={"time": 1.7e9 + 100})
    derive(raw, start={"time": 1.7e9 + 51})
    assert denoised_for(client, raw).start["uid"] == newest


def test_runs_that_others_derive_from_the_same_raw_run_are_not_taken(client, raw, derive):
    derive(raw, start={"tiled_specs": ["SomebodyElses"]})
    assert denoised_for(client, raw) is None


def test_a_partial_uid_that_fits_two_runs_is_refused(client, derive, write_run, folder):
    uids = [f"abcdef00-0000-4000-8000-00000000000{i}" for i in range(2)]
    for uid in uids:
        write_run(client["raw"], folder / "frames", {"det": FRAMES}, start={"uid": uid})
    derived = derive(uids[1])
    with pytest.raises(SymDenoiseError, match="several raw runs begin with it"):
        denoised_for(client, uids[0][:9])
    assert denoised_for(client, uids[1]).start["uid"] == derived


@pytest.mark.parametrize("uid", ["1234", "%%%%%%%%", "________"])
def test_a_partial_uid_that_is_too_short_is_refused(client, raw, uid):
    with pytest.raises(SymDenoiseError, match="eight characters or more"):
        denoised_for(client, uid)


def test_a_partial_uid_needs_the_root(client, raw):
    with pytest.raises(SymDenoiseError, match="root client"):
        denoised_for(client["denoised"], raw[:12])


# --- raw_for


def test_the_raw_run_is_found_from_its_denoised_run(client, raw, derive):
    found = raw_for(client["denoised"][derive(raw)])
    assert found.start["uid"] == raw
    assert found.path_parts == ["raw", raw]


def test_the_raw_run_may_lie_in_another_container(client, derive, write_run, folder):
    if "elsewhere" not in client:
        client.create_container("elsewhere", specs=[Spec("CatalogOfBlueskyRuns", "3.0")])
    uid = write_run(client["elsewhere"], folder / "frames", {"det": FRAMES})
    derived = client["denoised"][derive(uid)]
    assert raw_for(derived, catalog=client["elsewhere"]).start["uid"] == uid
    with pytest.raises(SymDenoiseError, match="is not in raw"):
        raw_for(derived)


def test_a_raw_run_that_is_gone_is_reported(client, derive):
    derived = client["denoised"][derive("0" * 36)]
    with pytest.raises(SymDenoiseError, match="as `catalog`"):
        raw_for(derived, catalog=client["raw"])


def test_a_raw_run_has_no_raw_run(client, raw):
    with pytest.raises(SymDenoiseError, match="no raw_uid"):
        raw_for(client["raw"][raw])


# --- aligned


def test_raw_minus_denoised_is_pixel_by_pixel(client, raw, derive):
    uid = derive(raw)
    both = aligned(client["raw"][raw], client["denoised"][uid])
    difference = both.det - both.det_denoised
    assert difference.shape == (3, 1, 4, 5)
    np.testing.assert_allclose(difference, 0.5)
    assert (both.det_denoised / both.det_sigma).shape == (3, 1, 4, 5)
    assert both.det.dtype == np.uint16
    np.testing.assert_array_equal(both.det[:, 0], FRAMES)
    assert set(both.data_vars) == {
        "det", "motor", "det_denoised", "det_sigma", "det_counts_in", "det_symmetry",
    }  # fmt: skip
    assert both.attrs == {"raw_uid": raw, "denoised_uid": uid}
    np.testing.assert_array_equal(both.time, TIMES)


def test_frames_that_were_not_denoised_are_nan_rows(client, raw, derive):
    both = aligned(client["raw"][raw], client["denoised"][derive(raw, rows=2)])
    np.testing.assert_allclose((both.det - both.det_denoised)[:2], 0.5)
    assert np.isnan(both.det_denoised[2]).all()
    assert np.isnan(both.det_counts_in[2])
    np.testing.assert_array_equal(both.det[:, 0], FRAMES)
    np.testing.assert_array_equal(both.motor, [1, 2, 3])


def test_rows_meet_by_time_and_not_by_position(client, raw, derive):
    both = aligned(client["raw"][raw], client["denoised"][derive(raw, rows=2, times=TIMES[1:])])
    assert np.isnan(both.det_denoised[0]).all()
    np.testing.assert_allclose(both.det_denoised[1, 0], FRAMES[0] - 0.5)


def test_a_fly_scan_without_times_meets_by_position(client, derive, write_run, folder):
    uid = write_run(client["raw"], folder / "frames", {"det": FRAMES}, events=False)
    run = client["raw"][uid]
    both = aligned(run, client["denoised"][derive(uid, rows=2, events=False, scalars={})])
    assert "time" not in both.coords
    np.testing.assert_allclose((both.det - both.det_denoised)[:2], 0.5)
    assert np.isnan(both.det_denoised[2]).all()


def test_images_stay_lazy_with_a_dask_client(client, raw, derive):
    uid = derive(raw)
    lazy = client.new_variation(structure_clients="dask")
    both = aligned(lazy["raw"][raw], lazy["denoised"][uid])
    for name in ("det", "det_denoised", "det_sigma"):
        assert both[name].chunks is not None
    np.testing.assert_allclose((both.det - both.det_denoised).compute(), 0.5)
    assert aligned(client["raw"][raw], client["denoised"][uid]).det.chunks is None


def test_two_detectors_are_not_mixed_up(client, write_run, folder):
    """``det_2`` begins like ``det``; both have images of their own size."""
    small = FRAMES[:, :2, :3].copy()
    images = {"det": FRAMES, "det_2": small}
    uid = write_run(client["raw"], folder / "frames", images, times=TIMES)
    images = {"det": FRAMES, "det_2": small, "det_sigma": FRAMES, "det_2_sigma": small}
    derived = write_run(client["denoised"], folder / "frames", images, times=TIMES, start={"raw_uid": uid})
    both = aligned(client["raw"][uid], client["denoised"][derived])
    for name in ("det", "det_2"):
        assert (both[name] - both[f"{name}_denoised"]).shape == both[name].shape
        assert (both[name] - both[f"{name}_sigma"]).shape == both[name].shape


def test_images_of_another_size_keep_dimensions_of_their_own(client, raw, derive, write_run, folder):
    derived = write_run(
        client["denoised"], folder / "frames", {"det": FRAMES[:, :2]}, times=TIMES, start={"raw_uid": raw}
    )
    both = aligned(client["raw"][raw], client["denoised"][derived])
    assert both.det_denoised.shape == (3, 1, 2, 5)
    assert both.det.shape == (3, 1, 4, 5)


def test_the_denoised_run_of_another_raw_run_is_refused(client, raw, derive, write_run, folder):
    other = write_run(client["raw"], folder / "frames", {"det": FRAMES})
    with pytest.raises(SymDenoiseError, match="is not made from raw run"):
        aligned(client["raw"][raw], client["denoised"][derive(other)])


def test_a_stream_that_is_not_there_is_named(client, raw, derive):
    with pytest.raises(SymDenoiseError, match=r"'baseline'.*choose among primary"):
        aligned(client["raw"][raw], client["denoised"][derive(raw)], stream="baseline")


def test_events_that_share_their_time_are_not_matched(client, derive, write_run, folder):
    same = [TIMES[0]] * 3
    uid = write_run(client["raw"], folder / "frames", {"det": FRAMES}, times=same)
    run = client["raw"][uid]
    both = aligned(run, client["denoised"][derive(uid, times=same)])
    np.testing.assert_allclose(both.det - both.det_denoised, 0.5)
    with pytest.raises(SymDenoiseError, match="share their time"):
        aligned(run, client["denoised"][derive(uid, rows=2, times=same[:2])])


# --- the client of a denoised run


def test_a_denoised_run_knows_its_raw_run_and_how_it_was_made(client, raw, derive):
    made = {"model": {"sha256": "00"}}
    uid = derive(raw, start={"provenance": made}, stop={"provenance": {"frames": 3}})
    run = client["denoised"][uid]
    assert isinstance(run, SymDenoisedRun)
    assert run.raw.start["uid"] == raw
    assert run.provenance == {**made, "outcome": {"frames": 3}}
    run.provenance["model"]["sha256"] = "changed"
    assert run.provenance["model"] == made["model"]
    assert raw[:8] in repr(run)
    assert repr(run).startswith("<SymDenoisedRun")
    assert [name for name, _ in run.documents()][:2] == ["start", "descriptor"]


def test_provenance_without_an_outcome_has_none(client, raw, derive):
    assert client["denoised"][derive(raw, start={"provenance": {"a": 1}})].provenance == {"a": 1}


def test_a_raw_run_is_a_plain_bluesky_run(client, raw):
    assert not isinstance(client["raw"][raw], SymDenoisedRun)


def test_quality_has_a_line_for_each_frame_and_tells_failed_ones(client, raw, derive):
    nan = float("nan")
    scalars = {
        "det_counts_in": [10.0, 0.0, nan],
        "det_counts_out": [11.0, 0.0, nan],
        "det_symmetry": ["2mm", "1", ""],
        "det_center_y": [1.5, nan, nan],
        "det_center_x": [2.0, nan, nan],
    }
    failures = [{"reason": "primary/det: <lost>", "frames": 1}]
    ended = {"frames": 3, "failures": failures, "symmetry": {"2mm": ["primary/det"]}}
    run = client["denoised"][derive(raw, scalars=scalars, stop={"provenance": ended})]
    table = run.quality
    assert list(table["frame"]) == [0, 1, 2]
    assert set(table["stream"]) == {"primary"}
    assert set(table["data_key"]) == {"det"}
    assert list(table["failed"]) == [False, False, True]
    assert list(table["symmetry"]) == ["2mm", "1", ""]
    np.testing.assert_allclose(table["flux_change"], [0.1, nan, nan])
    np.testing.assert_allclose(table["time"], TIMES)
    assert table["ms"].isna().all()  # this run does not say, as one that is computed when read
    assert table.attrs["failures"] == failures
    figure = run.compare(0)
    assert [axis.get_title().split()[0] for axis in figure.axes if axis.get_title()] == [
        "raw", "denoised", "sigma", "residual", "mates'",
    ]  # fmt: skip
    with pytest.raises(SymDenoiseError, match="frame 2 of primary/det: it was not denoised"):
        run.compare(-1)
    with pytest.raises(SymDenoiseError, match="has 3 frames; give 0 to 2"):
        run.compare(3)
    with pytest.raises(SymDenoiseError, match="choose among primary/det"):
        run.compare(0, key="det_sigma")


def test_the_summary_for_notebooks_escapes_what_others_wrote(client, raw, derive):
    made = {"model": {"name": "<script>", "sha256": "ab" * 32}, "recipe": {"symmetry": "auto"}, "recipe_sha256": "cd"}
    ended = {"frames": 3, "failures": [{"reason": "<img src=x>", "frames": 1}], "symmetry": {"2mm": ["primary/det"]}}
    uid = derive(raw, start={"provenance": made}, stop={"provenance": ended})
    shown = client["denoised"][uid]._repr_html_()
    assert "<script>" not in shown
    assert "<img" not in shown
    assert "&lt;script&gt;" in shown
    for part in (uid, raw, "asked for auto, used 2mm", "2 frames denoised, 1 failed", f"/ui/browse/raw/{raw}"):
        assert part in shown
    assert "/api/v1/" not in shown
    assert "not known" in client["denoised"][derive(raw)]._repr_html_()


def test_a_frame_whose_file_is_gone_is_one_line(client, raw, derive, folder, monkeypatch):
    monkeypatch.setattr(tiled.client.utils, "TILED_RETRY_ATTEMPTS", 1)
    numbers = {f"det_{name}": [0.0] * 3 for name in ("counts_in", "center_y", "center_x")}
    run = client["denoised"][derive(raw, scalars=numbers | {"det_symmetry": ["1"] * 3})]
    assert len(run.compare(0).axes) >= 4
    (folder / "frames" / f"{raw}.h5").unlink()
    with pytest.raises(SymDenoiseError, match=rf"frame 0 of raw/{raw}/.*det: the server cannot read it") as refused:
        run.compare(0)
    assert "\n" not in str(refused.value)
