"""Stored runs denoised later, and stored frames computed again: bit for bit what the callback wrote."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from bluesky_tiled_plugins import TiledWriter
from event_model import compose_run
from raw_runs import step_scan, written
from tiled.client.container import Container
from tiled.queries import Key
from tiled.utils import path_from_uri

from bluesky_symdenoise.acquisition.live.threaded import ThreadedDenoiseCallback as DenoiseCallback
from bluesky_symdenoise.acquisition.past.recompute import recompute
from bluesky_symdenoise.acquisition.past.replay import replay
from bluesky_symdenoise.catalog.find.query import denoised_for
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.errors import SymDenoiseError

pytestmark = pytest.mark.server

HEIGHT, WIDTH = 64, 80
CENTER = (31.0, 40.5)
FRAMES = 2
COMPARED = ("det", "det_sigma", "det_counts_in", "det_counts_out", "det_symmetry")


def spots(n: int = FRAMES) -> np.ndarray:
    """Frames (n, y, x) of Poisson counts that are symmetric under 2mm about `CENTER`."""
    y, x = np.ogrid[:HEIGHT, :WIDTH]
    away = np.abs(np.abs(y - CENTER[0]) - 15) ** 2 + np.abs(np.abs(x - CENTER[1]) - 22) ** 2
    counts = np.random.default_rng(3).poisson(0.5 + 8 * np.exp(-away / 30), (n, HEIGHT, WIDTH))
    counts = counts.astype(np.uint32)
    counts.flags.writeable = False
    return counts


def edge() -> np.ndarray:
    """Mask, True = bad: a strip and a dead pixel."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[:, :3], mask[30, 50] = True, True
    mask.flags.writeable = False
    return mask


def vignette() -> np.ndarray:
    """Relative exposure that falls off to one side, with a row of zeros."""
    exposure = np.linspace(0.5, 1.5, WIDTH) * np.ones((HEIGHT, 1))
    exposure[5] = 0
    exposure.flags.writeable = False
    return exposure


OPTIONS: dict[str, dict[str, Any]] = {
    "auto": {},
    "2mm, mask, exposure": {
        "symmetry": "2mm",
        "beam_center": CENTER,
        "mask": edge(),
        "exposure": vignette(),
    },
}


@pytest.fixture(scope="module")
def acquired(client: Container, home: Path) -> Callable[..., Any]:
    """Function that writes a raw run of `spots`, seen by a callback if one is given; returns the raw run."""

    def acquire(callback: Callable[..., Any] = lambda *_: None, *, stop: bool = True, frames: int = FRAMES) -> Any:
        return written(client, step_scan(home / "frames", spots(frames), ended=stop), callback)

    return acquire


@pytest.fixture(scope="module")
def live(acquired: Callable[..., Any], client: Container, denoiser: Denoiser) -> Callable[..., tuple[Any, Any]]:
    """Function that gives the raw run and the live derived run of one of `OPTIONS`, made once each."""
    made: dict[str, tuple[Any, Any]] = {}

    def of(name: str) -> tuple[Any, Any]:
        if name not in made:
            callback = DenoiseCallback(client["denoised"], denoiser=denoiser, **OPTIONS[name])
            raw = acquired(callback)
            assert callback.close(timeout=60).ok
            made[name] = raw, denoised_for(client, raw)
        return made[name]

    return of


def column(run: Any, name: str) -> np.ndarray:
    return np.asarray(run["primary"][name].read())


def file_of(run: Any) -> Path:
    (source,) = run["primary"]["det"].data_sources()
    return Path(path_from_uri(source.assets[0].data_uri))


class TestRecompute:
    """One stored frame again, from the raw frame and the provenance."""

    @pytest.mark.parametrize("options", OPTIONS)
    def test_is_bit_for_bit_what_is_stored(self, live: Callable[..., Any], options: str) -> None:
        _, derived = live(options)
        for index in range(FRAMES):
            again = recompute(derived, index)
            assert again["intensity"].dims == ("dim_0", "y", "x")
            np.testing.assert_array_equal(again["intensity"], column(derived, "det")[index])
            np.testing.assert_array_equal(again["sigma"], column(derived, "det_sigma")[index])
            assert not np.array_equal(again["intensity"], column(derived, "det")[1 - index])

    def test_mask_and_exposure_change_the_frame(self, live: Callable[..., Any]) -> None:
        """Control: without mask and exposure, the frame differs."""
        one, other = (column(live(options)[1], "det") for options in OPTIONS)
        assert not np.array_equal(one, other)

    def test_refuses_a_mask_that_was_exchanged(self, live: Callable[..., Any], tmp_path: Path) -> None:
        _, derived = live("2mm, mask, exposure")
        path = file_of(derived)
        kept = shutil.copy2(path, tmp_path)
        try:
            # An SWMR file cannot be opened for writing again: a copy with another mask takes its place.
            changed = tmp_path / "changed.h5"
            with h5py.File(path, "r") as old, h5py.File(changed, "w") as new:
                old.copy("entry", new)
                new["entry/process/mask"][0, 0] ^= True
            shutil.copy2(changed, path)
            with pytest.raises(SymDenoiseError, match="its sha256 is not the recorded one"):
                recompute(derived, 0)
        finally:
            shutil.copy2(kept, path)
        recompute(derived, 0)

    def test_refuses_another_model(self, live: Callable[..., Any], denoiser: Denoiser) -> None:
        class Other:
            name, sha256 = "other", "0" * 64

        other = Denoiser(denoiser.model, threads=1)
        other.model = Other()  # type: ignore[assignment]
        with pytest.raises(SymDenoiseError, match="give a denoiser of these"):
            recompute(live("auto")[1], 0, denoiser=other)

    @pytest.mark.parametrize("index", [FRAMES, -FRAMES - 1])
    def test_refuses_a_row_that_is_not_there(self, live: Callable[..., Any], index: int) -> None:
        with pytest.raises(SymDenoiseError, match="2 rows"):
            recompute(live("auto")[1], index)


class TestReplay:
    """A run that no callback saw."""

    @pytest.mark.parametrize("options", OPTIONS)
    def test_writes_bit_for_bit_what_a_callback_writes(
        self,
        acquired: Callable[..., Any],
        live: Callable[..., Any],
        client: Container,
        denoiser: Denoiser,
        options: str,
    ) -> None:
        raw = acquired()
        replayed = replay(raw, into=client["denoised"], denoiser=denoiser, **OPTIONS[options])
        _, seen = live(options)
        for name in COMPARED:
            np.testing.assert_array_equal(column(replayed, name), column(seen, name))
        assert set(replayed["primary"]) == set(seen["primary"])
        np.testing.assert_array_equal(column(replayed, "time"), column(raw, "time"))
        np.testing.assert_array_equal(column(replayed, "seq_num"), [1, 2])
        assert not np.array_equal(column(replayed, "det")[0], column(seen, "det")[1])
        here, there = replayed.start["provenance"], seen.start["provenance"]
        assert here["wasGeneratedBy"]["activity"] == "replay"
        assert there["wasGeneratedBy"]["activity"] == "callback"
        assert here["recipe_sha256"] == there["recipe_sha256"]
        assert replayed.metadata["stop"]["exit_status"] == "success"
        np.testing.assert_array_equal(recompute(replayed, 1)["intensity"], column(replayed, "det")[1])

    def test_run_that_has_a_derived_one_is_not_denoised_again(
        self, live: Callable[..., Any], client: Container, denoiser: Denoiser
    ) -> None:
        raw, derived = live("auto")
        before = file_of(derived).stat().st_mtime_ns
        again = replay(raw, into=client["denoised"], denoiser=denoiser)
        assert again.start["uid"] == derived.start["uid"]
        assert again.start["provenance"]["wasGeneratedBy"]["activity"] == "callback"
        assert file_of(derived).stat().st_mtime_ns == before
        assert len(client["denoised"].search(Key("raw_uid") == raw.start["uid"])) == 1

    def test_another_recipe_makes_another_run(
        self, live: Callable[..., Any], client: Container, denoiser: Denoiser
    ) -> None:
        raw, derived = live("auto")
        other = replay(raw, into=client["denoised"], denoiser=denoiser, symmetry="2", beam_center=CENTER)
        assert other.start["uid"] != derived.start["uid"]
        assert set(column(other, "det_symmetry")) == {"2"}

    def test_frame_that_cannot_be_denoised_is_nan(
        self, acquired: Callable[..., Any], client: Container, denoiser: Denoiser
    ) -> None:
        class Fails(Denoiser):
            def __call__(self, counts: Any, **options: Any) -> Any:
                if np.array_equal(np.squeeze(counts), spots()[1]):
                    raise RuntimeError("out of memory")
                return super().__call__(counts, **options)

        replayed = replay(acquired(), into=client["denoised"], denoiser=Fails(denoiser.model, threads=1))
        assert [bool(np.isnan(image).all()) for image in column(replayed, "det")] == [False, True]
        (failure,) = replayed.metadata["stop"]["provenance"]["failures"]
        assert failure == {"reason": "primary/det: out of memory", "frames": 1}

    def test_refuses_a_run_that_has_not_ended(
        self, acquired: Callable[..., Any], client: Container, denoiser: Denoiser
    ) -> None:
        raw = acquired(stop=False)
        with pytest.raises(SymDenoiseError, match="no stop document yet") as caught:
            replay(raw, into=client["denoised"], denoiser=denoiser)
        assert "\n" not in str(caught.value)
        assert denoised_for(client, raw) is None

    def test_refuses_a_run_without_images(self, client: Container, denoiser: Denoiser) -> None:
        run, writer = compose_run(), TiledWriter(client["raw"], batch_size=1)
        writer("start", run.start_doc)
        key = {"source": "test", "dtype": "number", "shape": []}
        stream = run.compose_descriptor(name="primary", data_keys={"temperature": key})
        writer("descriptor", stream.descriptor_doc)
        writer("event", stream.compose_event(data={"temperature": 1.0}, timestamps={"temperature": 0.0}))
        writer("stop", run.compose_stop())
        raw = client["raw"][run.start_doc["uid"]]
        with pytest.raises(SymDenoiseError, match=r"no 2D image in streams primary \(temperature\)") as caught:
            replay(raw, into=client["denoised"], denoiser=denoiser)
        assert "\n" not in str(caught.value)
        assert denoised_for(client, raw) is None

    def test_refuses_where_a_derived_run_is_being_written(
        self, acquired: Callable[..., Any], client: Container, denoiser: Denoiser
    ) -> None:
        callback = DenoiseCallback(client["denoised"], denoiser=denoiser)
        raw = acquired(callback, stop=False)
        while callback.status().frames < FRAMES:
            time.sleep(0.02)
        ended = acquired_stop(client, raw)
        with pytest.raises(SymDenoiseError, match="holds this lock"):
            replay(ended, into=client["denoised"], denoiser=denoiser)
        callback.close(timeout=60)

    def test_refuses_a_run_that_is_denoised_already(
        self, live: Callable[..., Any], client: Container, denoiser: Denoiser
    ) -> None:
        with pytest.raises(SymDenoiseError, match="raw"):
            replay(live("auto")[1], into=client["denoised"], denoiser=denoiser)

    def test_interrupted_replay_does_not_pass_for_a_complete_run(
        self, acquired: Callable[..., Any], client: Container, denoiser: Denoiser
    ) -> None:
        class Interrupted(Denoiser):
            def __call__(self, counts: Any, **options: Any) -> Any:
                if np.array_equal(np.squeeze(counts), spots()[1]):
                    raise KeyboardInterrupt
                return super().__call__(counts, **options)

        raw = acquired()
        with pytest.raises(KeyboardInterrupt):
            replay(raw, into=client["denoised"], denoiser=Interrupted(denoiser.model, threads=1))
        done = replay(raw, into=client["denoised"], denoiser=denoiser)
        assert done["primary"]["det"].shape[0] == FRAMES
        assert done.metadata["stop"]["exit_status"] == "success"

    def test_failed_frames_are_denoised_when_the_cause_is_fixed(
        self, acquired: Callable[..., Any], client: Container, denoiser: Denoiser
    ) -> None:
        """A run with NaN rows is replaced, not returned."""

        class Broken(Denoiser):
            def __call__(self, counts: Any, **options: Any) -> Any:
                raise RuntimeError("no memory")

        raw = acquired()
        failed = replay(raw, into=client["denoised"], denoiser=Broken(denoiser.model, threads=1))
        assert np.isnan(np.asarray(failed["primary"]["det"])).all()
        with pytest.raises(SymDenoiseError, match="was not denoised"):
            recompute(failed, 0)
        mended = replay(raw, into=client["denoised"], denoiser=denoiser)
        assert mended.start["uid"] == failed.start["uid"]
        assert np.isfinite(np.asarray(mended["primary"]["det"])).all()

    def test_a_dark_first_frame_does_not_decide_the_symmetry(self, client: Container, home: Path) -> None:
        """The shutter opened late: the first frame with counts decides for the run."""
        from bluesky_symdenoise.acquisition.derive.darks import Darks
        from bluesky_symdenoise.acquisition.derive.images import ImageDenoiser
        from bluesky_symdenoise.acquisition.request.request import Work

        work = Work.planned(
            client["denoised"],
            activity="replay",
            denoiser=Denoiser.pretrained(threads=1),
            directory=home / "frames",
            mask=None,
            exposure=None,
            symmetry="2mm",
            beam_center=None,
            streams=None,
            data_keys=None,
        )
        images = ImageDenoiser(work, Darks(work, {}), key="det", start={}, descriptor={"data_keys": {}})
        with pytest.raises(SymDenoiseError, match="none could be found"):
            images.symmetry(np.zeros((HEIGHT, WIDTH), np.uint32), {})
        assert images.symmetry(spots()[0], {}).point_group == "2mm"
        dark = images.symmetry(np.zeros((HEIGHT, WIDTH), np.uint32), {})
        assert dark == images.symmetry(spots()[0], {})


def acquired_stop(client: Container, raw: Any) -> Any:
    """The run with a stop document, as if its writer had just ended it."""
    stop = {"uid": "0", "time": 0.0, "run_start": raw.start["uid"], "exit_status": "success", "reason": ""}
    raw.update_metadata({"stop": stop})
    return client["raw"][raw.start["uid"]]
