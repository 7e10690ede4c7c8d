"""Raw files that are replaced or reconfigured while the denoiser is behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
from bluesky_tiled_plugins import TiledWriter
from made_runs import HEIGHT, WIDTH, Made, counts_in, derived, described, fed, frames, sums
from tiled.client.container import Container

from bluesky_symdenoise.acquisition.deliver.spool import spool_folder
from bluesky_symdenoise.acquisition.live.backlog import Head, RunFile
from bluesky_symdenoise.acquisition.live.callback import DenoiseCallback
from bluesky_symdenoise.acquisition.live.threaded import ThreadedDenoiseCallback
from bluesky_symdenoise.acquisition.past.replay import replay
from bluesky_symdenoise.acquisition.request.request import Work
from bluesky_symdenoise.acquisition.runs import counting
from bluesky_symdenoise.acquisition.runs.counting import Counting
from bluesky_symdenoise.acquisition.runs.documents import packed
from bluesky_symdenoise.acquisition.runs.replaced import Places, Replaced
from bluesky_symdenoise.acquisition.service.catchup import finish_left
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.denoiser.settings import DenoiserSettings
from bluesky_symdenoise.errors import SymDenoiseError

pytestmark = pytest.mark.server

NAN = float("nan")


@pytest.fixture
def made(home: Path) -> Callable[..., Made]:
    return lambda **metadata: Made(home / "frames" / "raw", **metadata)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "SETTLE_S", 0.3)


class Late(Denoiser):
    """A denoiser that waits until the test lets it continue."""

    go = threading.Event()
    begun = threading.Event()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        posteriors = self._engine.posteriors

        def waiting(*given: Any) -> Any:
            self.begun.set()
            self.go.wait(60)
            return posteriors(*given)

        self._engine.posteriors = waiting  # type: ignore[method-assign]


@pytest.fixture
def late(client: Container, denoiser: Denoiser) -> Iterator[tuple[Any, Late]]:
    """A callback that is behind from its first frame on, and its denoiser."""
    slow = Late(denoiser.model, threads=1)
    slow.go, slow.begun = threading.Event(), threading.Event()
    with ThreadedDenoiseCallback(client["denoised"], denoiser=slow, symmetry="1") as callback:
        yield callback, slow
        slow.go.set()


@pytest.fixture
def keeping_busy(made: Callable[..., Made]) -> list[tuple[str, Any]]:
    """A run whose frames are in its events: while it is worked off, no file is read."""
    run = made()
    stream = run.stream(det=described([256, 256], None))
    for image in frames(12, 256, 256):
        run.event(stream, det=image)
    return run.ended()


def hdf5(run: Made, name: str, stack: np.ndarray) -> Any:
    """A file whose name is always the same, announced."""
    write(run.folder / name, stack)
    resource = run.run.compose_stream_resource(
        mimetype="application/x-hdf5",
        uri=f"file://localhost{run.folder / name}",
        data_key="det",
        parameters={"dataset": "counts", "chunk_shape": (1, HEIGHT, WIDTH)},
    )
    run.documents.append(("stream_resource", resource.stream_resource_doc))
    return resource


def stage_twice(run: Made, stack: np.ndarray) -> None:
    """Two times three rows, in files of one name."""
    stream = run.stream(det=described([1, HEIGHT, WIDTH]))
    for part in range(2):
        resource = hdf5(run, f"{run.uid}.h5", stack[3 * part : 3 * part + 3])
        for row in range(3):
            run.row(stream, resource, row, 3 * part + row + 1)


def write(path: Path, stack: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("counts", data=stack, chunks=(1, *stack.shape[1:]))


def reasons(run: Any) -> str:
    return str(run.metadata["stop"]["provenance"]["failures"])


class TestWrittenAnew:
    def test_file_replaced_by_the_next_staging(self, late: Any, client: Container, made: Callable[..., Made]) -> None:
        """If the denoiser is behind, frames of the old file are lost and those of the new one are denoised."""
        callback, slow = late
        run, stack = made(), frames(6)
        stream = run.stream(det=described([1, HEIGHT, WIDTH]))
        first = hdf5(run, f"{run.uid}.h5", stack[:3])
        for row in range(3):
            run.row(stream, first, row, row + 1)
        for name, doc in run.documents:
            callback(name, doc)
        assert slow.begun.wait(60), "the first frame was not read"
        told = len(run.documents)
        second = hdf5(run, f"{run.uid}.h5", stack[3:])
        for row in range(3):
            run.row(stream, second, row, row + 4)
        for name, doc in run.documents[told:]:
            callback(name, doc)
        slow.go.set()
        fed(callback, [("stop", run.run.compose_stop())])
        found = derived(client, run.uid)
        # The first was read before it was written anew.
        np.testing.assert_array_equal(counts_in(found), [sums(stack)[0], NAN, NAN, *sums(stack[3:])])
        assert "give each file a name of its own" in str(callback.status().errors)

    @pytest.mark.process
    def test_file_replaced_by_the_next_run(
        self, client: Container, made: Callable[..., Made], keeping_busy: list[tuple[str, Any]]
    ) -> None:
        """The worker process is informed at once."""
        runs, stacks = [made(), made()], [frames(6)[:3], frames(6)[3:]]
        name = f"{runs[0].uid}.h5"
        settings = DenoiserSettings(threads=1)
        with DenoiseCallback(client["denoised"], denoiser=settings, nice=0, symmetry="1") as callback:
            for each in keeping_busy:
                callback(*each)
            for run, stack in zip(runs, stacks, strict=True):
                stream = run.stream(det=described([1, HEIGHT, WIDTH]))
                resource = hdf5(run, name, stack)
                for row in range(3):
                    run.row(stream, resource, row, row + 1)
                for each in run.ended():
                    callback(*each)
        assert np.isnan(counts_in(derived(client, runs[0].uid))).all()
        assert "announced a file of this name again" in reasons(derived(client, runs[0].uid))
        assert counts_in(derived(client, runs[1].uid)) == sums(stacks[1])

    def test_replacement_is_found_when_documents_are_replayed(
        self, client: Container, denoiser: Denoiser, made: Callable[..., Made], tmp_path: Path
    ) -> None:
        run, stack = made(), frames(6)
        stage_twice(run, stack)
        documents = run.ended()
        expected = [NAN, NAN, NAN, *sums(stack[3:])]
        again = replay(documents, into=client["denoised"], denoiser=denoiser, symmetry="1")
        np.testing.assert_array_equal(counts_in(again), expected)
        path = tmp_path / "backup.jsonl"
        path.write_text("".join(json.dumps({"name": name, "doc": doc}) + "\n" for name, doc in documents))
        again = replay(path, into=client["denoised"], denoiser=denoiser, symmetry="1", force=True)
        np.testing.assert_array_equal(counts_in(again), expected)

    def test_replaced_frames_are_not_read_through_tiled(
        self, client: Container, denoiser: Denoiser, made: Callable[..., Made]
    ) -> None:
        """Tiled refers to the same file twice."""
        run, stack = made(), frames(6)
        stage_twice(run, stack)
        writer = TiledWriter(client["raw"], batch_size=1)
        for name, doc in run.ended():
            writer(name, doc)
        done = replay(client["raw"][run.uid], into=client["denoised"], denoiser=denoiser, symmetry="1")
        assert np.isnan(counts_in(done)).all()

    def test_file_that_was_not_touched_since_is_read(self, made: Callable[..., Made]) -> None:
        """The same old frames, published in two runs."""
        path = made().folder / "old.h5"
        write(path, frames(1))
        os.utime(path, (1e9, 1e9))
        replaced = Replaced()
        replaced.add({"a": 1e9 + 60})
        replaced.check("a", [path])
        os.utime(path, (1e9 + 3600, 1e9 + 3600))
        with pytest.raises(SymDenoiseError, match="announced a file of this name again"):
            replaced.check("a", [path])

    def test_file_that_goes_on_in_the_next_run_is_the_same(self, made: Callable[..., Made]) -> None:
        places = Places()
        for uid, start, replaced in (("a", 0, []), ("b", 3, []), ("c", 0, ["a", "b"])):
            assert places.take("start", {"uid": f"run {uid}", "time": 1.0}) == {}
            resource = {"uid": uid, "uri": "file:///same.h5", "parameters": {"dataset": "x"}}
            assert places.take("stream_resource", resource) == {}
            for row in range(start, start + 3):
                found = places.take("stream_datum", {"stream_resource": uid, "indices": {"start": row}})
                assert list(found) == (replaced if row == start else [])

    def test_several_resources_of_one_file_do_not_count_as_replaced(self) -> None:
        """Two data keys, two specs, two slices, one resource for each event: nothing was written anew."""
        places = Places()
        resource = {"uri": "file:///same.h5", "data_key": "a", "parameters": {"dataset": "x"}}
        for number, changes in enumerate([{}, {"data_key": "b"}, {"parameters": {"dataset": "x", "slice": "0, :"}}]):
            places.take("stream_resource", resource | changes | {"uid": str(number)})
            assert places.take("stream_datum", {"stream_resource": str(number), "indices": {"start": 0}}) == {}
        old = {"root": "/", "resource_path": "f.h5", "resource_kwargs": {}}
        for number, (spec, point) in enumerate([("AD_HDF5", 0), ("AD_HDF5_TS", 0), ("AD_HDF5", 1), ("AD_HDF5", 2)]):
            places.take("resource", old | {"spec": spec, "uid": f"r{number}"})
            assert places.take("datum", {"resource": f"r{number}", "datum_kwargs": {"point_number": point}}) == {}
        places.take("resource", old | {"spec": "AD_HDF5", "uid": "again"})
        page = {"resource": "again", "datum_id": ["again/0"], "datum_kwargs": {"point_number": [1]}}
        assert list(places.take("datum_page", page)) == ["r2"]

    @pytest.mark.parametrize(
        "doc",
        [
            {},
            {"uid": None, "parameters": 3, "time": "late"},
            {"indices": [0], "stream_resource": "a", "time": 10**400},
            {"indices": {"start": np.arange(2)}, "stream_resource": "None", "resource": []},
        ],
    )
    def test_malformed_documents_are_ignored(self, doc: dict[str, Any]) -> None:
        places = Places()
        for name in ("start", "stream_resource", "stream_datum", "resource", "datum", "datum_page", "stop"):
            assert places.take(name, doc) == {}

    @pytest.mark.process
    def test_detector_opens_its_file_again(self, late: Any, made: Callable[..., Made]) -> None:
        """Between two frames the denoiser has no file open."""
        callback, slow = late
        slow.go.set()
        run, stack = made(), frames(3)
        stream = run.stream(det=described([1, HEIGHT, WIDTH]))
        resource = hdf5(run, f"{run.uid}.h5", stack)
        run.row(stream, resource, 0, 1)
        for name, doc in run.documents:
            callback(name, doc)
        while callback.status().waiting:
            threading.Event().wait(0.05)
        path = run.folder / f"{run.uid}.h5"
        subprocess.run([sys.executable, "-c", f"import h5py; h5py.File({str(path)!r}, 'r+')"], check=True)
        fed(callback, [("stop", run.run.compose_stop())])


@pytest.mark.process
class TestOfAProcessThatHasEnded:
    """Documents of a process that has ended are on disk while the next process already takes runs."""

    @pytest.mark.parametrize("finished_by", ["the next callback", "catch-up"])
    def test_file_that_the_next_process_writes(
        self, finished_by: str, client: Container, made: Callable[..., Made], home: Path, tmp_path: Path
    ) -> None:
        runs, stacks = [made(), made()], [frames(6)[:3], frames(6)[3:]]
        name, settings = f"{runs[0].uid}.h5", DenoiserSettings(threads=1)
        for run, stack in zip(runs, stacks, strict=True):
            stream, resource = run.stream(det=described([1, HEIGHT, WIDTH])), hdf5(run, name, stack)
            for row in range(3):
                run.row(stream, resource, row, row + 1)
        work = Work.planned(client["denoised"], activity="callback", denoiser=settings, symmetry="1")
        head = Head(
            raw_uid=runs[0].uid,
            derived_uid=work.recipe.derived_uid(runs[0].uid),
            recipe_sha256=work.recipe.sha256,
            container=str(work.container.uri),
        )
        file = RunFile.begin(spool_folder(work.folder), head)
        for number, (kind, doc) in enumerate(runs[0].ended()):
            file.append(number, packed(kind, doc))
        file.close()
        # The process ended a while ago; the file has been written since.
        then = time.time() - 3600
        os.utime(file.path, (then, then))
        if finished_by == "catch-up":
            outcomes = [each for each in finish_left(work) if each.uid == runs[0].uid]
            assert len(outcomes) == 1
        else:
            with DenoiseCallback(client["denoised"], denoiser=settings, nice=0, symmetry="1") as callback:
                for each in runs[1].ended():
                    callback(*each)
                while runs[0].uid not in dict(callback.status().runs):
                    time.sleep(0.1)
            assert counts_in(derived(client, runs[1].uid)) == sums(stacks[1])
        assert np.isnan(counts_in(derived(client, runs[0].uid))).all()
        assert "the file changed after the process" in reasons(derived(client, runs[0].uid))

    def test_replay_warns_of_files_changed_after_the_run(
        self, client: Container, denoiser: Denoiser, made: Callable[..., Made], caplog: pytest.LogCaptureFixture
    ) -> None:
        run, stack = made(), frames(3)
        stream, resource = run.stream(det=described([1, HEIGHT, WIDTH])), hdf5(run, f"{run.uid}.h5", stack)
        for row in range(3):
            run.row(stream, resource, row, row + 1)
        writer = TiledWriter(client["raw"], batch_size=1)
        for name, doc in run.ended():
            writer(name, doc)
        later = time.time() + 3600
        os.utime(run.folder / f"{run.uid}.h5", (later, later))
        replay(client["raw"][run.uid], into=client["denoised"], denoiser=denoiser, symmetry="1")
        assert "s after the run had ended: if a later run wrote a file of this name" in caplog.text


class TestNumbersThatGoOn:
    """One folder of TIFF files, announced twice, each time from index 0."""

    def tiffs(self, run: Made, name: str) -> Any:
        resource = run.run.compose_stream_resource(
            mimetype="multipart/related;type=image/tiff",
            uri=f"file://localhost{run.folder / name}/",
            data_key="det",
            parameters={"template": "img_{:04d}.tif", "chunk_shape": (1,), "join_method": "stack"},
        )
        run.documents.append(("stream_resource", resource.stream_resource_doc))
        return resource

    def folder(self, run: Made, name: str, stack: np.ndarray, first: int = 0) -> None:
        (run.folder / name).mkdir(exist_ok=True)
        for number, image in enumerate(stack):
            tifffile.imwrite(run.folder / name / f"img_{number + first:04d}.tif", image)

    def test_sequence_announced_again_from_index_0(
        self, client: Container, denoiser: Denoiser, made: Callable[..., Made]
    ) -> None:
        """It is ambiguous whether these are frames 0 to 2, written again, or frames 3 to 5, which exist as well."""
        run, stack = made(), frames(6)
        self.folder(run, run.uid, stack)
        stream = run.stream(det=described([1, HEIGHT, WIDTH]))
        for part in range(2):
            resource = self.tiffs(run, run.uid)
            for row in range(3):
                run.row(stream, resource, row, 3 * part + row + 1)
        with ThreadedDenoiseCallback(client["denoised"], denoiser=denoiser, symmetry="1") as callback:
            fed(callback, run.ended())
        found = derived(client, run.uid)
        shown = np.asarray(counts_in(found))
        assert np.all(np.isnan(shown) | (shown == sums(stack)))
        assert np.isnan(shown[3:]).all()
        assert "the start of its rows is unknown" in reasons(found)

    def test_files_that_begin_with_the_first_index(
        self, client: Container, denoiser: Denoiser, made: Callable[..., Made]
    ) -> None:
        """A folder that has no file 0 numbers them by their index."""
        run, stack = made(), frames(6)
        self.folder(run, f"{run.uid}-a", stack[:3])
        self.folder(run, f"{run.uid}-b", stack[3:], first=3)
        stream = run.stream(det=described([1, HEIGHT, WIDTH]))
        for part, name in enumerate("ab"):
            resource = self.tiffs(run, f"{run.uid}-{name}")
            for row in range(3 * part, 3 * part + 3):
                run.row(stream, resource, row, row + 1)
        with ThreadedDenoiseCallback(client["denoised"], denoiser=denoiser, symmetry="1") as callback:
            assert fed(callback, run.ended()).ok
        assert counts_in(derived(client, run.uid)) == sums(stack)


class TestFramesOfAnEvent:
    def test_detector_that_is_configured_to_take_more(
        self, client: Container, denoiser: Denoiser, made: Callable[..., Made]
    ) -> None:
        """Rows of a stream have one shape."""
        run, stack = made(), frames(8)
        one = run.stream(det=described([1, HEIGHT, WIDTH]))
        first = run.hdf5("a", stack[:2])
        for row in range(2):
            run.row(one, first, row, row + 1)
        three = run.stream(det=described([3, HEIGHT, WIDTH]))
        second = run.hdf5("b", stack[2:])
        for row in range(2):
            run.row(three, second, row, row + 3)
        with ThreadedDenoiseCallback(client["denoised"], denoiser=denoiser, symmetry="1") as callback:
            fed(callback, run.ended())
        found = derived(client, run.uid)
        np.testing.assert_array_equal(counts_in(found), [*sums(stack[:2]), NAN, NAN])
        assert "the stream began with 1" in reasons(found)

    def test_second_descriptor_without_the_number_of_frames(
        self, client: Container, denoiser: Denoiser, made: Callable[..., Made]
    ) -> None:
        run, stack = made(), frames(4)
        first = run.stream(det=described([1, HEIGHT, WIDTH]))
        resource = run.hdf5("a", stack)
        second = run.stream(det=described([None, HEIGHT, WIDTH]))
        for row in range(4):
            run.row(first if row < 2 else second, resource, row, row + 1)
        with ThreadedDenoiseCallback(client["denoised"], denoiser=denoiser, symmetry="1") as callback:
            fed(callback, run.ended())
        assert counts_in(derived(client, run.uid)) == sums(stack)

    @pytest.mark.parametrize("dataset", ["/", "empty", "scalar"])
    def test_dataset_without_images_gives_nan_rows(
        self, dataset: str, client: Container, denoiser: Denoiser, made: Callable[..., Made]
    ) -> None:
        """Its rows are NaN, and the run ends."""
        run, stack = made(), frames(2)
        stream = run.stream(det=described([1, HEIGHT, WIDTH]))
        resource = run.hdf5("a", stack)
        with h5py.File(run.folder / f"{run.uid}-a.h5", "a") as file:
            file["empty"], file["scalar"] = h5py.Empty("u2"), np.uint16(3)
        resource.stream_resource_doc["parameters"]["dataset"] = dataset
        for row in range(2):
            run.row(stream, resource, row, row + 1)
        with ThreadedDenoiseCallback(client["denoised"], denoiser=denoiser, symmetry="1") as callback:
            fed(callback, run.ended())
        assert np.isnan(counts_in(derived(client, run.uid))).all()
        assert "0 frames denoised, 2 failed" in dict(callback.status().runs)[run.uid]

    def test_statements_that_contradict_each_other(
        self, client: Container, denoiser: Denoiser, made: Callable[..., Made]
    ) -> None:
        run, stack = made(), frames(6)
        stream = run.stream(det=described([3, HEIGHT, WIDTH]))
        resource = run.hdf5("a", stack)
        resource.stream_resource_doc["parameters"]["multiplier"] = 1
        for row in range(2):
            run.row(stream, resource, row, row + 1)
        with ThreadedDenoiseCallback(client["denoised"], denoiser=denoiser, symmetry="1") as callback:
            fed(callback, run.ended())
        found = derived(client, run.uid)
        assert np.isnan(counts_in(found)).all()
        assert "the number of frames per event is not stated" in reasons(found)

    def test_file_with_a_multiple_of_the_frames_that_were_announced(
        self, client: Container, denoiser: Denoiser, made: Callable[..., Made], caplog: pytest.LogCaptureFixture
    ) -> None:
        """The documents are consistent: a warning is logged when the run ends."""
        run, stack = made(), frames(6)
        stream = run.stream(det=described([HEIGHT, WIDTH]))
        resource = run.hdf5("a", stack)
        for row in range(2):
            run.row(stream, resource, row, row + 1)
        with ThreadedDenoiseCallback(client["denoised"], denoiser=denoiser, symmetry="1") as callback:
            fed(callback, run.ended())
        assert "holds 3 times as many frames as were announced, 6 and 2" in caplog.text


def test_rows_of_a_place_are_counted_over_its_resources() -> None:
    """The third announcement of a file whose rows go on is settled by the second."""
    counted, device = Counting(), {"data_key": "det", "uri": "file:///x.h5", "parameters": {"dataset": "d"}}
    datum = {"indices": {"start": 0, "stop": 2}}
    counts = [counted.take({**device, "uid": uid}, datum, "primary") for uid in "abc"]
    assert counts[0].row(1, has=lambda row: row < 6) == 1
    with pytest.raises(SymDenoiseError, match="announced before, with 2 rows"):
        counts[1].row(0, has=lambda row: row < 6)
    assert counts[1].row(1, has=lambda row: row < 2) == 1
    assert counts[2].row(0, has=lambda row: row < 6) == 0
