"""Quantities of rings as columns of the derived run: the same live and replayed, and a map that grows from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import matplotlib
import numpy as np
import pytest
from bluesky.callbacks.best_effort import BestEffortCallback
from bluesky.callbacks.mpl_plotting import LiveGrid
from bluesky_tiled_plugins import subscribe_to_streams
from raw_runs import step_scan, written
from tiled.client.container import Container

from bluesky_symdenoise import DenoiseCallback, Ring, ThreadedDenoiseCallback, denoised_for, evict, raw_for, replay
from bluesky_symdenoise.acquisition.request.request import Work
from bluesky_symdenoise.acquisition.request.toml import read_arguments
from bluesky_symdenoise.acquisition.service.catchup import finish, unfinished
from bluesky_symdenoise.cli.live import planned_work
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.denoiser.settings import DenoiserSettings
from bluesky_symdenoise.errors import SymDenoiseError

pytestmark = pytest.mark.server

SIZE = 64
CENTER = (31.5, 31.5)
#: Degrees, along a map of two rows and three columns; the last frame has no texture.
DIRECTIONS = (10.0, 35.0, 60.0, 85.0, 110.0, None)
RINGS = (Ring(8, 28), Ring(8, 28, "denoised", name="mean", replicates=2))
OPTIONS = {"symmetry": "2", "beam_center": CENTER}


def frames() -> np.ndarray:
    """Counts (n, y, x) of a ring of radius 18 whose texture turns from point to point."""
    y, x = np.mgrid[:SIZE, :SIZE] - np.array(CENTER)[:, None, None]
    peak = np.exp(-((np.hypot(y, x) - 18) ** 2) / 12)
    rng = np.random.default_rng(2)
    textures = [
        1.0 if angle is None else 1 + np.cos(2 * (np.arctan2(y, x) - np.deg2rad(angle))) for angle in DIRECTIONS
    ]
    return rng.poisson([0.5 + 3 * peak * texture for texture in textures]).astype(np.uint32)


def emitted(
    client: Container, home: Path, callback: Callable[[str, Any], Any] = lambda *_: None, *, events: bool = True
) -> Any:
    """The raw run of a map of `frames`, written to the catalogue and given to a callback."""
    metadata = {
        "plan_name": "grid_scan",
        "plan_type": "generator",
        "shape": [2, 3],
        "extents": [[0, 1], [0, 2]],
        "snaking": [False, False],
        "scan_id": 1,
    }
    return written(client, step_scan(home / "frames", frames(), metadata=metadata, events=events), callback)


@pytest.fixture(scope="module")
def live(client: Container, home: Path, denoiser: Denoiser) -> Any:
    """The derived run that a callback wrote."""
    callback = ThreadedDenoiseCallback(client["denoised"], denoiser=denoiser, analysis=RINGS, **OPTIONS)
    raw = emitted(client, home, callback)
    assert callback.close(timeout=120).ok
    return denoised_for(client, raw)


def column(run: Any, name: str) -> np.ndarray:
    return np.asarray(run["primary"][name].read())


NAMES = [f"det_{name}" for ring in RINGS for name in ring.columns]


def test_columns_tell_the_orientation_of_each_point(live: Any) -> None:
    assert len(set(NAMES)) == 20
    assert set(NAMES) <= set(live["primary"])
    for name in ("det_orientation", "det_mean_orientation"):
        value, sigma = column(live, name), column(live, f"{name}_sigma")
        away = (value[:5] - np.array(DIRECTIONS[:5]) + 90) % 180 - 90
        assert (np.abs(away) < 5 * sigma[:5]).all()
        assert (sigma[:5] < 5).all()
        # No texture: not determined, and never a plausible number.
        assert np.isnan([value[5], sigma[5]]).all()
    assert np.abs(column(live, "det_peak_position") - 18).max() < 0.5


def test_columns_with_a_sigma_are_no_images(live: Any) -> None:
    assert set(live.quality["data_key"]) == {"det"}
    assert not live.quality["failed"].any()
    assert live.compare(0) is not None


def test_replay_gives_the_same_columns(live: Any, client: Container, home: Path, denoiser: Denoiser) -> None:
    raw = emitted(client, home)
    replayed = replay(raw, into=client["denoised"], denoiser=denoiser, analysis=RINGS, **OPTIONS)
    for name in NAMES:
        np.testing.assert_array_equal(column(replayed, name), column(live, name))
    again = replay(raw, into=client["denoised"], denoiser=denoiser, analysis=RINGS, **OPTIONS)
    assert again.start["uid"] == replayed.start["uid"]
    plain = replay(raw, into=client["denoised"], denoiser=denoiser, **OPTIONS)
    assert plain.start["uid"] != replayed.start["uid"]
    assert not set(NAMES) & set(plain["primary"])
    np.testing.assert_array_equal(column(plain, "det"), column(replayed, "det"))


def test_replay_in_memory_gives_the_same_columns(live: Any, client: Container, home: Path, denoiser: Denoiser) -> None:
    raw = emitted(client, home)
    held = replay(raw, denoiser=denoiser, analysis=RINGS, **OPTIONS)
    for name in NAMES:
        np.testing.assert_array_equal(held[name].values, column(live, name))
    # Control: other frames, other values.
    part = replay(raw, denoiser=denoiser, analysis=RINGS[0], rows=[1, 3], **OPTIONS)
    np.testing.assert_array_equal(part["det_orientation"].values, column(live, "det_orientation")[[1, 3]])
    assert (part["det_orientation"].values != column(live, "det_orientation")[:2]).all()


def test_catching_up_gives_the_same_columns(live: Any, client: Container, home: Path, denoiser: Denoiser) -> None:
    raw = emitted(client, home)
    work = Work.planned(client["denoised"], activity="catch-up", denoiser=denoiser, analysis=RINGS, **OPTIONS)
    found = {item.uid: item for item in unfinished(client["raw"], work)}
    assert raw_for(live).start["uid"] not in found
    assert finish(found[raw.start["uid"]], work).ok
    for name in NAMES:
        np.testing.assert_array_equal(column(denoised_for(client, raw), name), column(live, name))


@pytest.mark.process
def test_worker_process_writes_the_same(live: Any, client: Container, home: Path) -> None:
    with DenoiseCallback(
        client["denoised"], denoiser=DenoiserSettings(threads=1), analysis=RINGS, **OPTIONS
    ) as callback:
        raw = emitted(client, home, callback)
    derived = denoised_for(client, raw)
    for name in NAMES:
        np.testing.assert_array_equal(column(derived, name), column(live, name))


def test_run_without_events_has_them_in_its_file(live: Any, client: Container, home: Path, denoiser: Denoiser) -> None:
    callback = ThreadedDenoiseCallback(client["denoised"], denoiser=denoiser, analysis=RINGS, **OPTIONS)
    raw = emitted(client, home, callback, events=False)
    assert callback.close(timeout=120).ok
    for name in NAMES:
        np.testing.assert_array_equal(column(denoised_for(client, raw), name), column(live, name))


# Tiled's client opens its connection as websockets did before.
@pytest.mark.filterwarnings(r"ignore:connect\(\) must be used as a context manager:DeprecationWarning")
def test_map_grows_while_the_scan_lasts(client: Container, home: Path, denoiser: Denoiser) -> None:
    """Tiled's live updates of the derived run fill a LiveGrid before the raw run has ended."""
    matplotlib.use("agg")
    updates: SimpleQueue[Any] = SimpleQueue()
    grid = LiveGrid((2, 3), "det_orientation")
    callback = ThreadedDenoiseCallback(client["denoised"], denoiser=denoiser, analysis=RINGS[0], **OPTIONS)
    uids: list[str] = []

    def until_drawn(name: str, doc: Any) -> None:
        if name == "start":
            uids.append(doc["uid"])
            grid("start", doc)
        if name == "stop":
            drawn = 0
            while drawn < len(DIRECTIONS):
                for row in updates.get(timeout=60).update.data().to_dict("records"):
                    grid("event", {"seq_num": row["seq_num"], "data": row})
                    drawn += 1
        callback(name, doc)

    with subscribe_to_streams(
        client["denoised"],
        updates.put,
        streams={"primary": ["det_orientation"]},
        metadata_filter=lambda start: start["raw_uid"] in uids,
    ):
        raw = emitted(client, home, until_drawn)
    assert callback.close(timeout=120).ok
    drawn = column(denoised_for(client, raw), "det_orientation").reshape(2, 3)
    np.testing.assert_array_equal(grid._Idata, drawn)
    assert np.isfinite(drawn).sum() == 5


def test_map_grows_from_the_events(
    live: Any, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """LiveGrid, and BestEffortCallback because of the hints, draw these columns like those of a raw scan."""
    matplotlib.use("agg")
    grid = LiveGrid((2, 3), "det_orientation", title="orientation")
    best = BestEffortCallback()
    best.disable_plots()
    for name, doc in live.documents():
        # A derived run has the raw run's number under another name, which the table wants.
        shown = doc | {"scan_id": doc["raw_scan_id"]} if name == "start" else doc
        grid(name, shown)
        best(name, shown)
    np.testing.assert_array_equal(grid._Idata, column(live, "det_orientation").reshape(2, 3))
    assert not caplog.records
    printed = capsys.readouterr().out
    assert "det_orientation" in printed
    assert f"{column(live, 'det_anisotropy')[0]:.3f}" in printed
    assert "_sigma" not in printed


def test_pixels_can_be_evicted_and_columns_stay(client: Container, home: Path, denoiser: Denoiser) -> None:
    raw = emitted(client, home)
    derived = replay(raw, into=client["denoised"], denoiser=denoiser, analysis=RINGS[0], **OPTIONS)
    before = column(derived, "det"), column(derived, "det_orientation")
    evict(derived, denoiser=denoiser)
    again = client["denoised"][derived.start["uid"]]
    np.testing.assert_array_equal(column(again, "det"), before[0])
    np.testing.assert_array_equal(column(again, "det_orientation"), before[1])


def test_failed_ring_analysis_does_not_affect_the_frame(client: Container, home: Path, denoiser: Denoiser) -> None:
    """Without a symmetry and a beam centre, images are denoised and the columns are NaN."""
    raw = emitted(client, home)
    derived = replay(raw, into=client["denoised"], denoiser=denoiser, symmetry="1", analysis=Ring(8, 28))
    assert np.isfinite(column(derived, "det")).all()
    assert np.isnan(column(derived, "det_orientation")).all()


def test_rings_of_one_name_are_refused(client: Container) -> None:
    with pytest.raises(SymDenoiseError, match="names must differ"):
        Work.planned(client["denoised"], activity="test", analysis=[Ring(1, 2), Ring(3, 4)])
    with pytest.raises(SymDenoiseError, match="it must hold rings"):
        Work.planned(client["denoised"], activity="test", analysis=["orientation"])


def test_services_read_rings_from_their_toml_file(client: Container, tmp_path: Path, denoiser: Denoiser) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("[[analysis]]\ninner = 8\nouter = 28\n[[analysis]]\ninner = 3\nouter = 9\nname = 'low'\n")
    work = planned_work(client["denoised"], path, {}, activity="watch", denoiser=denoiser)
    assert work.analysis == (Ring(8, 28), Ring(3, 9, name="low"))
    assert {"orientation", "low_peak_area_sigma"} <= set(work.columns)
    path.write_text("[[analysis]]\ninner = 8\nouter = 28\ncolour = 1\n")
    with pytest.raises(SymDenoiseError, match="there is no argument of that name"):
        read_arguments(path)


def still() -> np.ndarray:
    """Counts (n, y, x) of six exposures of one ring, of which the last has turned by a right angle."""
    y, x = np.mgrid[:SIZE, :SIZE] - np.array(CENTER)[:, None, None]
    around = np.arctan2(y, x) - np.deg2rad(np.array([20.0] * 5 + [110.0]))[:, None, None]
    ring = np.exp(-((np.hypot(y, x) - 18) ** 2) / 12) * (1 + np.cos(2 * around))
    return np.random.default_rng(3).poisson(0.3 + 1.5 * ring).astype(np.uint32)


def test_rows_that_borrow_share_the_counts_of_rings_that_are_alike(
    client: Container, home: Path, denoiser: Denoiser
) -> None:
    """Errors are smaller where the scene stands still; live and replayed columns are the same."""
    names = ("det_orientation", "det_orientation_sigma", "det_peak_position", "det_peak_position_sigma")
    past: dict[str, Any] = {"analysis": RINGS[0], "borrow": "past", **OPTIONS}
    callback = ThreadedDenoiseCallback(client["denoised"], denoiser=denoiser, **past)
    raw = written(client, step_scan(home / "frames", still()), callback)
    assert callback.close(timeout=120).ok
    live = denoised_for(client, raw)
    again = replay(raw, denoiser=denoiser, **past)
    alone = replay(raw, denoiser=denoiser, analysis=RINGS[0], **OPTIONS)
    for name in names:
        assert np.array_equal(column(live, name), again[name].values, equal_nan=True)
    smaller = column(live, "det_peak_position_sigma") / alone["det_peak_position_sigma"].values
    assert smaller[0] == 1
    assert smaller[4] < 0.8
    assert smaller[5] == 1
    assert abs((column(live, "det_orientation")[5] - 110 + 90) % 180 - 90) < 5
