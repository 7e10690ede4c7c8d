"""Past runs denoised in memory, in part, again, or from documents: all frames are bit for bit as in the whole run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tiled.client.utils
import xarray as xr
from bluesky_tiled_plugins.writing._json_writer import JSONLinesWriter
from past_runs import FRAMES, pixels, scan
from raw_runs import step_scan
from tiled.client.container import Container

from bluesky_symdenoise import SymDenoiseError, aligned, denoised_for, find, recompute, replay
from bluesky_symdenoise.acquisition.past.forecast import Forecast
from bluesky_symdenoise.acquisition.past.replay import replay_with
from bluesky_symdenoise.acquisition.request.request import Work
from bluesky_symdenoise.acquisition.runs import frames as frames_module
from bluesky_symdenoise.acquisition.runs.stored import stored_run
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.recipe import Recipe, chosen_frames, rows_of

pytestmark = pytest.mark.server

AXES = {"dimensions": [[["stage"], "primary"]]}


class Counting(Denoiser):
    """A denoiser that counts its calls."""

    calls = 0

    def __call__(self, counts: Any, **options: Any) -> Any:
        self.calls += 1
        return super().__call__(counts, **options)


@pytest.fixture(scope="module")
def model() -> Any:
    return Denoiser.pretrained(threads=1).model


@pytest.fixture
def denoiser(model: Any) -> Counting:
    return Counting(model, threads=1)


@pytest.fixture
def raw(client: Container, home: Path, write_run: Callable[..., str]) -> Any:
    scalars = {"stage": [0.0, 0.5, 1.0, 1.5], "note": ["a", "b", "c", "d"]}
    uid = write_run(client["raw"], home / "frames", {"det": scan()}, scalars=scalars, start={"hints": AXES})
    return client["raw"][uid]


def same(one: xr.Dataset, other: xr.Dataset) -> None:
    """Two datasets are equal except for the time taken and the order of columns."""
    one, other = one.drop_vars("det_ms"), other.drop_vars("det_ms")
    xr.testing.assert_identical(one, other[list(one.data_vars)])


class TestInMemory:
    def test_is_what_the_derived_run_holds(self, client: Container, raw: Any, denoiser: Counting) -> None:
        """The same Dataset as `aligned` gives, coordinates and scan axes included."""
        lazy = replay(raw, denoiser=denoiser)
        written = aligned(raw, replay(raw, into=client["denoised"], denoiser=denoiser))
        same(lazy.compute(), written)
        assert "stage" in written.coords
        assert not np.array_equal(written.det_denoised[1], written.det_denoised[2])

    def test_nothing_is_denoised_before_it_is_computed(self, raw: Any, denoiser: Counting) -> None:
        lazy = replay(raw, denoiser=denoiser)
        assert {*lazy.det_denoised.chunksizes["time"], *lazy.det.chunksizes["time"]} == {1}
        assert denoiser.calls == 0
        lazy.det_denoised[2].compute()
        assert denoiser.calls == 1
        lazy.compute()
        assert denoiser.calls == 1 + FRAMES

    def test_order_of_computing_does_not_matter(
        self, client: Container, home: Path, denoiser: Counting, write_run: Callable[..., str]
    ) -> None:
        """The first frame with counts gives the centre for the run; the last one alone would give another."""
        counts = scan().copy()
        counts[-1] = np.roll(counts[-1], 4, axis=1)
        raw = client["raw"][write_run(client["raw"], home / "frames", {"det": counts})]
        lazy, again = (replay(raw, denoiser=denoiser, symmetry="2mm") for _ in range(2))
        backwards = [lazy.det_center_x[row].compute().item() for row in reversed(range(FRAMES))]
        np.testing.assert_array_equal(backwards[::-1], again.det_center_x.values)
        assert np.isnan(backwards[-1])
        assert len(set(backwards[:-1])) == 1
        alone = denoiser.resolve(counts[-1], symmetry="2mm").beam_center
        assert alone is not None
        assert alone[1] != backwards[0]

    def test_frame_that_cannot_be_denoised_is_nan(self, raw: Any, model: Any) -> None:
        class Fails(Denoiser):
            def __call__(self, counts: Any, **options: Any) -> Any:
                if np.array_equal(np.squeeze(counts), scan()[2]):
                    raise RuntimeError("out of memory")
                return super().__call__(counts, **options)

        lazy = replay(raw, denoiser=Fails(model, threads=1)).compute()
        assert np.isnan(lazy.det_denoised[2]).all()
        assert lazy.det_symmetry[2] == ""
        assert np.isfinite(lazy.det_denoised[3]).all()

    def test_one_of_several_streams_must_be_named(self, raw: Any, denoiser: Counting) -> None:
        with pytest.raises(SymDenoiseError, match="a Dataset holds one stream"):
            replay(raw, denoiser=denoiser, streams=["primary", "baseline"])
        with pytest.raises(SymDenoiseError, match=r"no image fits streams=\['baseline'\]; there is primary/det"):
            replay(raw, denoiser=denoiser, streams=["baseline"])


class TestRequests:
    """Number of HTTP requests for reading stored frames and writing derived ones."""

    @pytest.fixture
    def long(self, client: Container, home: Path, write_run: Callable[..., str]) -> Any:
        return client["raw"][write_run(client["raw"], home / "frames", {"det": scan(12)})]

    @pytest.mark.parametrize(("together", "most"), [(2**20, 3), (1, 12)])
    def test_small_frames_come_several_at_a_time(
        self, long: Any, denoiser: Counting, monkeypatch: pytest.MonkeyPatch, together: int, most: int
    ) -> None:
        """Whatever the order in which dask's threads ask for them."""
        asked: list[str] = []
        http = long.context.http_client
        send = http.send
        monkeypatch.setattr(frames_module, "TOGETHER", together)
        monkeypatch.setattr(
            http, "send", lambda request, **more: asked.append(request.url.path) or send(request, **more)
        )
        np.testing.assert_array_equal(np.squeeze(replay(long, denoiser=denoiser).det.compute()), scan(12))
        frames = sum("/array/" in path and path.endswith("/det") for path in asked)
        assert frames <= most
        assert (frames == 12) == (together == 1)

    def test_unreadable_frame_does_not_affect_the_others(
        self, long: Any, client: Container, home: Path, denoiser: Counting, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tiled.client.utils, "TILED_RETRY_ATTEMPTS", 2)
        path = home / "frames" / f"{long.start['uid']}.h5"
        with h5py.File(path, "r+") as file:
            del file["det"]
            data = file.create_dataset("det", data=scan(12)[:, np.newaxis], chunks=(1, 1, 48, 56), compression="gzip")
            damaged = data.id.get_chunk_info(5).byte_offset
        with path.open("r+b") as raw:
            raw.seek(damaged)
            raw.write(b"\xff" * 64)
        done = replay(long, into=client["denoised"], denoiser=denoiser)
        known = [bool(np.isfinite(image).any()) for image in pixels(done)[0]]
        assert known == [row != 5 for row in range(12)]

    def test_the_first_row_can_be_read_while_the_others_are_denoised(
        self, raw: Any, client: Container, denoiser: Counting
    ) -> None:
        """The documents of the other rows are sent together at the end of a short run."""
        work = Work.planned(client["denoised"], activity="replay", denoiser=denoiser)
        rows: list[int] = []

        def look(_: str | None) -> None:
            stream = client["denoised"][work.recipe.derived_uid(raw.start["uid"])]["primary"]
            rows.append(stream["det"].shape[0])
            assert [spec.name for spec in stream["det_sigma"].specs] == ["SymDenoisedImage"]

        replay_with(work, stored_run(raw), finished_frame=look)
        assert rows == [1] * FRAMES


class TestChosenFrames:
    def test_rows_that_the_run_lacks_are_refused(self, client: Container, raw: Any, denoiser: Counting) -> None:
        before = len(client["denoised"])
        with pytest.raises(SymDenoiseError, match="no such rows"):
            replay(raw, into=client["denoised"], denoiser=denoiser, rows=[FRAMES + 9])
        assert len(client["denoised"]) == before

    def test_chosen_frames_are_those_of_the_whole_run(self, client: Container, raw: Any, denoiser: Counting) -> None:
        """Also where a frame that is not wanted decides the symmetry."""
        whole = replay(raw, into=client["denoised"], denoiser=denoiser)
        before = denoiser.calls
        part = replay(raw, into=client["denoised"], denoiser=denoiser, rows=[3, 2], self_check="off")
        assert denoiser.calls == before + 2
        for one, other in zip(pixels(part), pixels(whole), strict=True):
            np.testing.assert_array_equal(one, other[2:])
        np.testing.assert_array_equal(part["primary"]["seq_num"].read(), [3, 4])
        np.testing.assert_array_equal(recompute(part, 1)["intensity"], pixels(whole)[0][3])
        lazy = replay(raw, denoiser=denoiser, rows=slice(2, None)).compute()
        np.testing.assert_array_equal(lazy.det_denoised, pixels(part)[0])
        both = aligned(raw, part)
        assert np.isnan(both.det_denoised[:2]).all()
        np.testing.assert_array_equal(both.det_denoised[2:], pixels(part)[0])

    def test_a_part_is_never_taken_for_the_whole_run(self, client: Container, raw: Any, denoiser: Counting) -> None:
        part = replay(raw, into=client["denoised"], denoiser=denoiser, rows=range(2))
        assert denoised_for(client, raw) is None
        whole = replay(raw, into=client["denoised"], denoiser=denoiser)
        assert whole.start["uid"] != part.start["uid"]
        newest = replay(raw, into=client["denoised"], denoiser=denoiser, rows=range(1))
        assert denoised_for(client, raw).start["uid"] == whole.start["uid"]
        assert len(denoised_for(client, raw, latest=False)) == 1
        for made, frames in ((part, slice(2)), (newest, [0])):
            assert denoised_for(client, raw, rows=frames).start["uid"] == made.start["uid"]
        assert denoised_for(client, raw, rows=[3]) is None
        assert len(denoised_for(client, raw, rows="any", latest=False)) == 3
        assert newest.start["uid"] in find(client, recipe=newest.start["provenance"]["recipe_sha256"])

    def test_chosen_frames_of_a_fly_scan_align_with_their_raw_frames(
        self, client: Container, home: Path, denoiser: Counting, write_run: Callable[..., str]
    ) -> None:
        flown = client["raw"][write_run(client["raw"], home / "frames", {"det": scan()}, events=False)]
        part = replay(flown, into=client["denoised"], denoiser=denoiser, rows=[1, 3])
        both = aligned(flown, part)
        assert np.isnan(both.det_denoised).all(dim=both.det_denoised.dims[1:]).values.tolist() == [True, False] * 2
        whole = replay(flown, denoiser=denoiser).compute()
        np.testing.assert_array_equal(both.det_denoised[1::2], whole.det_denoised[1::2])

    @pytest.mark.parametrize(
        ("frames", "said"),
        [
            (None, None),
            (slice(None), None),
            (slice(10), "0:10:1"),
            (range(10), "0:10:1"),
            (list(range(9, -1, -1)), "0:10:1"),
            (slice(5, None), "5::1"),
            (slice(1, 8, 3), "1:8:3"),
            ([7, 1, 4], "1:8:3"),
            ([0, 1, 5], "0,1,5"),
            (np.array([2]), "2:3:1"),
        ],
    )
    def test_equal_rows_have_one_text(self, frames: Any, said: str | None) -> None:
        assert chosen_frames(frames) == said
        meant = np.arange(12)[slice(None) if frames is None else np.sort(frames) if np.iterable(frames) else frames]
        assert [row for row in rows_of(said)[:12] if row < 12] == meant.tolist()

    @pytest.mark.parametrize("frames", [[], [-1], slice(-3, None), slice(5, 2), slice(None, None, -1), [0.5], "0"])
    def test_empty_or_invalid_rows_are_refused(self, frames: Any) -> None:
        with pytest.raises(SymDenoiseError, match="rows="):
            chosen_frames(frames)

    def test_recipes_of_whole_runs_have_no_entry_for_rows(self) -> None:
        recipe = Recipe(model_sha256="0" * 64, algorithm="1")
        assert "frames" not in recipe.to_dict()
        assert Recipe.from_dict(recipe.to_dict()) == recipe


class TestAgain:
    def test_force_makes_a_complete_run_again(self, client: Container, raw: Any, denoiser: Counting) -> None:
        first = replay(raw, into=client["denoised"], denoiser=denoiser, self_check="off")
        held = pixels(first)
        assert replay(raw, into=client["denoised"], denoiser=denoiser).start == first.start
        assert denoiser.calls == FRAMES
        again = replay(raw, into=client["denoised"], denoiser=denoiser, force=True, self_check="off")
        assert denoiser.calls == 2 * FRAMES
        assert again.start["uid"] == first.start["uid"]
        assert again.start["time"] > first.start["time"]
        for one, other in zip(pixels(again), held, strict=True):
            np.testing.assert_array_equal(one, other)

    def test_ctrl_c_leaves_a_run_that_goes_on(self, client: Container, raw: Any, model: Any) -> None:
        """What was finished is not denoised again, and the result is as if nothing had happened."""

        class Interrupted(Counting):
            def __call__(self, counts: Any, **options: Any) -> Any:
                if self.calls == 2:
                    raise KeyboardInterrupt
                return super().__call__(counts, **options)

        with pytest.raises(KeyboardInterrupt):
            replay(raw, into=client["denoised"], denoiser=Interrupted(model, threads=1))
        rest = Counting(model, threads=1)
        left = replay(raw, into=client["denoised"], denoiser=rest, dry_run=True)
        assert (left.state, left.finished, left.images) == ("interrupted", 2, FRAMES - 2)
        assert f"interrupted, 2 of {FRAMES} images finished; 2 images left" in str(left)
        rest = Counting(model, threads=1)
        done = replay(raw, into=client["denoised"], denoiser=rest, self_check="off")
        # Of the two, the empty frame is done again: it could not have decided anything.
        assert rest.calls == FRAMES - 1
        np.testing.assert_array_equal(pixels(done)[0], replay(raw, denoiser=rest).det_denoised.compute())

    def test_dry_run_says_what_would_be_done(self, client: Container, raw: Any, denoiser: Counting) -> None:
        said = replay(raw, into=client["denoised"], denoiser=denoiser, dry_run=True)
        assert isinstance(said, Forecast)
        assert (said.state, said.images) == ("not denoised", FRAMES)
        assert said.seconds > 0
        assert denoised_for(client, raw) is None
        run = replay(raw, into=client["denoised"], denoiser=denoiser)
        stored = run.metadata["stop"]["provenance"]["bytes"]
        assert stored / 20 < said.bytes < 20 * stored
        done = replay(raw, into=client["denoised"], denoiser=denoiser, dry_run=True)
        assert (done.state, done.images, done.bytes) == ("complete", 0, 0)
        assert "nothing to do" in str(done)
        assert "to be made again" in str(
            replay(raw, into=client["denoised"], denoiser=denoiser, dry_run=True, force=True)
        )
        in_memory = replay(raw, denoiser=denoiser, dry_run=True)
        assert in_memory.bytes == 2 * 4 * scan().size

    def test_progress_is_drawn_where_it_is_wanted(
        self, client: Container, raw: Any, denoiser: Counting, capsys: pytest.CaptureFixture[str]
    ) -> None:
        replay(raw, into=client["denoised"], denoiser=denoiser)
        assert "image" not in capsys.readouterr().err
        replay(raw, into=client["denoised"], denoiser=denoiser, force=True, progress=True)
        assert f"{FRAMES}/{FRAMES}" in capsys.readouterr().err


class TestDocuments:
    """Runs that never reached Tiled, from what a RunEngine emitted."""

    @pytest.fixture
    def documents(self, home: Path) -> list[tuple[str, Any]]:
        """As a RunEngine emits them."""
        stage = {"stage": [0.0, 0.5, 1.0, 1.5]}
        return list(step_scan(home / "frames", scan(), scalars=stage, metadata={"hints": AXES}))

    @pytest.fixture
    def backup(self, documents: list[tuple[str, Any]], tmp_path: Path) -> Path:
        """The file that TiledWriter's backup_directory would hold."""
        writer = JSONLinesWriter(str(tmp_path))
        for name, doc in documents:
            writer(name, doc)
        (path,) = tmp_path.glob("*.jsonl")
        return path

    def test_a_backup_gives_what_the_catalogue_gives(
        self, client: Container, raw: Any, backup: Path, documents: list[tuple[str, Any]], denoiser: Counting
    ) -> None:
        from_tiled = pixels(replay(raw, into=client["denoised"], denoiser=denoiser))
        run = replay(backup, into=client["denoised"], denoiser=denoiser)
        assert run.start["raw_uid"] == documents[0][1]["uid"]
        assert run.start["provenance"]["wasGeneratedBy"]["activity"] == "replay"
        lazy = replay(iter(documents), denoiser=denoiser).compute()
        assert lazy.stage.values.tolist() == [0.0, 0.5, 1.0, 1.5]
        np.testing.assert_array_equal(lazy.det, scan()[:, np.newaxis])
        for one, other in zip(pixels(run), from_tiled, strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(lazy.det_denoised, from_tiled[0])
        before = denoiser.calls
        replay(str(backup), into=client["denoised"], denoiser=denoiser)
        assert denoiser.calls == before

    def test_a_backup_that_was_cut_off_has_not_ended(
        self, client: Container, backup: Path, denoiser: Counting, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Its incomplete last line is left out; the other rows can be read in memory, with a warning."""
        whole = backup.read_bytes()
        backup.write_bytes(whole[: whole.rindex(b'{"name": "stop"') + 30])
        for dry_run in (False, True):
            with pytest.raises(SymDenoiseError, match="no stop document"):
                replay(backup, into=client["denoised"], denoiser=denoiser, dry_run=dry_run)
        assert denoiser.calls == 0
        caplog.clear()
        assert replay(backup, denoiser=denoiser).sizes["time"] == FRAMES
        assert f"{backup} has no stop document, and its last line was cut off" in caplog.text
        backup.write_bytes(whole[: whole.rindex(b'{"name": "stop"')])
        caplog.clear()
        replay(backup, denoiser=denoiser)
        assert "no stop document: the run may have had more frames" in caplog.text

    def test_documents_without_an_end_are_refused_in_a_dry_run_too(
        self, client: Container, documents: list[tuple[str, Any]], denoiser: Counting
    ) -> None:
        for dry_run in (True, False):
            with pytest.raises(SymDenoiseError, match="no stop document"):
                replay(iter(documents[:-1]), into=client["denoised"], denoiser=denoiser, dry_run=dry_run)

    def test_other_files_are_refused_as_backups(self, backup: Path) -> None:
        uid = "7a80c1de-0000-4000-8000-000000000000"
        with pytest.raises(SymDenoiseError, match=f"{uid}.* give the run itself, .*raw.*{uid}"):
            replay(uid)
        with pytest.raises(SymDenoiseError, match=r"nowhere\.jsonl.* give a \.jsonl backup"):
            replay("nowhere.jsonl")
        backup.write_text(backup.read_text().split("\n", 1)[1])
        with pytest.raises(SymDenoiseError, match=f"{backup}.*this file begins with 'descriptor'"):
            replay(backup)
        backup.write_text("")
        with pytest.raises(SymDenoiseError, match=f"{backup}.*this file is empty"):
            replay(backup)

    @pytest.mark.parametrize("line", ["nonsense", '{"name": "event"}', "[]"])
    def test_a_file_of_another_kind_is_refused(self, client: Container, backup: Path, line: str) -> None:
        backup.write_text(backup.read_text().replace("\n", f"\n{line}\n", 1))
        with pytest.raises(SymDenoiseError, match="line 2"):
            replay(backup, into=client["denoised"])

    def test_one_run_at_a_time(self, documents: list[tuple[str, Any]], denoiser: Counting, tmp_path: Path) -> None:
        other = json.loads(json.dumps(documents[0]))
        other[1]["uid"] = "9" + other[1]["uid"][1:]
        with pytest.raises(SymDenoiseError, match="a second start document"):
            replay([*documents[:-1], other], denoiser=denoiser)
        with pytest.raises(SymDenoiseError, match="begins with its start document"):
            replay(documents[1:], denoiser=denoiser)
        with pytest.raises(SymDenoiseError, match="cannot be read"):
            replay(tmp_path / "missing.jsonl", denoiser=denoiser)
        with pytest.raises(SymDenoiseError, match="is not a run"):
            replay(3, denoiser=denoiser)
