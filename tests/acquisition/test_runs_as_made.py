"""Unusual runs: each derived row shows the frame that was taken, or is NaN with a reason."""

from __future__ import annotations

import enum
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bluesky_tiled_plugins import TiledWriter
from event_model import pack_event_page
from made_runs import HEIGHT, WIDTH, Documents, Made, counts_in, derived, described, fed, frames, sums
from tiled.client.container import Container

from bluesky_symdenoise import denoised_for
from bluesky_symdenoise.acquisition.lazy.register import register
from bluesky_symdenoise.acquisition.live import feeder
from bluesky_symdenoise.acquisition.live.callback import DenoiseCallback
from bluesky_symdenoise.acquisition.live.status import Status
from bluesky_symdenoise.acquisition.live.threaded import ThreadedDenoiseCallback
from bluesky_symdenoise.acquisition.past.recompute import recompute
from bluesky_symdenoise.acquisition.past.replay import replay
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.denoiser.settings import DenoiserSettings
from bluesky_symdenoise.errors import SymDenoiseError

pytestmark = pytest.mark.server


@pytest.fixture
def made(home: Path) -> Callable[..., Made]:
    return lambda **metadata: Made(home / "frames" / "raw", **metadata)


class Lasting:
    """A callback that outlasts a test: what that gives to it, and what comes of that."""

    def __init__(self, callback: DenoiseCallback) -> None:
        self._callback, self._before, self._begun = callback, callback.status(), set[str]()

    def __call__(self, name: str, doc: Any) -> None:
        if name == "start":
            self._begun.add(doc["uid"])
        self._callback(name, doc)

    def status(self) -> Status:
        now, before = self._callback.status(), self._before
        return replace(
            now,
            frames=now.frames - before.frames,
            failed=now.failed - before.failed,
            runs=tuple(each for each in now.runs if each not in before.runs),
            errors=tuple(line for line in now.errors if line not in before.errors),
        )

    def close(self, timeout: float) -> Status:
        """Wait until all documents are worked off, and the runs are in Tiled; it takes more of both."""
        deadline = time.monotonic() + timeout
        while (status := self.status()).waiting or not self._begun <= set(dict(status.runs)):
            assert time.monotonic() < deadline, status
            time.sleep(0.02)
        return status


@pytest.fixture(scope="module")
def worker(client: Container) -> Iterator[DenoiseCallback]:
    """One worker process for all: starting it takes longer than the runs."""
    with DenoiseCallback(client["denoised"], denoiser=DenoiserSettings(threads=1), nice=0, symmetry="1") as callback:
        yield callback
        assert callback.status().restarts == 0


KINDS = ["thread", pytest.param("process", marks=pytest.mark.process)]


@pytest.fixture(params=KINDS)
def callback(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue("live") if request.param == "thread" else Lasting(request.getfixturevalue("worker"))


@pytest.fixture(params=KINDS)
def own_callback(request: pytest.FixtureRequest, client: Container) -> Iterator[Any]:
    """One that is closed for good."""
    if request.param == "thread":
        yield request.getfixturevalue("live")
    else:
        settings = DenoiserSettings(threads=1)
        with DenoiseCallback(client["denoised"], denoiser=settings, nice=0, symmetry="1") as callback:
            yield callback


@pytest.fixture
def live(client: Container, denoiser: Denoiser) -> Iterator[ThreadedDenoiseCallback]:
    with ThreadedDenoiseCallback(client["denoised"], denoiser=denoiser, symmetry="1") as callback:
        yield callback


def upright(run: Any, stack: np.ndarray, stream: str = "primary", key: str = "det") -> None:
    """The denoised images have the shape of these frames, and are bright where they are."""
    images = np.asarray(run[stream][key].read())
    assert images.shape[-2:] == stack.shape[-2:]
    for image, frame in zip(images.reshape(-1, *images.shape[-2:]), stack, strict=True):
        assert np.corrcoef(image.ravel(), frame.ravel())[0, 1] > 0.6


class TestBuffers:
    def test_device_that_fills_one_buffer_again_and_again(
        self, callback: Any, client: Container, made: Callable[..., Made]
    ) -> None:
        run, stack = made(), frames(12)
        stream = run.stream(det=described([HEIGHT, WIDTH], None))
        buffer = np.zeros((HEIGHT, WIDTH), np.uint16)
        for name, doc in run.documents:
            callback(name, doc)
        for image in stack:
            buffer[:] = image
            run.event(stream, det=buffer)
            callback(*run.documents[-1])
        buffer[:] = 0
        assert fed(callback, [("stop", run.run.compose_stop())]).ok
        found = derived(client, run.uid)
        assert counts_in(found) == sums(stack)
        upright(found, stack)

    def test_document_that_is_changed_after_it_was_handed_over(
        self, callback: Any, client: Container, made: Callable[..., Made]
    ) -> None:
        run = made(sample={"names": ["first"]})
        stream = run.stream(det=described([HEIGHT, WIDTH], None))
        for name, doc in run.documents:
            callback(name, doc)
        run.run.start_doc["sample"]["names"].append("later")
        run.event(stream, det=frames(1)[0].tolist())
        event = run.documents[-1][1]
        callback("event", event)
        event["data"]["det"][0][0] = 9999
        fed(callback, [("stop", run.run.compose_stop())])
        found = derived(client, run.uid)
        assert found.start["sample"] == {"names": ["first"]}
        assert counts_in(found) == sums(frames(1))


class TestRestaging:
    """A detector that is staged again in a run announces a new file, which counts its rows from 0."""

    def darks_and_projections(self, run: Made) -> tuple[Documents, dict[str, np.ndarray]]:
        stack, n = frames(12), 3
        streams = {name: run.stream(name, det=described([1, HEIGHT, WIDTH])) for name in ("darks", "projections")}
        meant: dict[str, list[np.ndarray]] = {name: [] for name in streams}
        for part in range(2):
            resource = run.hdf5(f"part{part}", stack[part * 2 * n : (part + 1) * 2 * n])
            for row in range(2 * n):
                name = "darks" if row < n else "projections"
                meant[name].append(stack[part * 2 * n + row])
                run.row(streams[name], resource, row, len(meant[name]))
        return run.ended(), {name: np.stack(each) for name, each in meant.items()}

    def test_darks_and_projections_of_one_detector(
        self, live: Any, client: Container, made: Callable[..., Made]
    ) -> None:
        run = made()
        documents, meant = self.darks_and_projections(run)
        assert fed(live, documents).ok
        for name, stack in meant.items():
            assert counts_in(derived(client, run.uid), name) == sums(stack)

    def test_stream_that_nobody_asked_for_counts_as_well(
        self, client: Container, denoiser: Denoiser, made: Callable[..., Made]
    ) -> None:
        run = made()
        documents, meant = self.darks_and_projections(run)
        callback = ThreadedDenoiseCallback(client["denoised"], denoiser=denoiser, symmetry="1", streams=["projections"])
        assert fed(callback, documents).ok
        assert counts_in(derived(client, run.uid), "projections") == sums(meant["projections"])

    def test_replay_through_tiled_does_not_take_one_stream_for_the_other(
        self, client: Container, denoiser: Denoiser, made: Callable[..., Made]
    ) -> None:
        """Tiled's writer stores the files of such a run, but not which rows belong to which stream."""
        run = made()
        documents, _ = self.darks_and_projections(run)
        writer = TiledWriter(client["raw"], batch_size=1)
        for name, doc in documents:
            writer(name, doc)
        raw = client["raw"][run.uid]
        found = replay(raw, into=client["denoised"], denoiser=denoiser, symmetry="1", data_keys=["det"])
        reasons = str(found.metadata["stop"]["provenance"]["failures"])
        assert "rows belong to which" in reasons
        assert "no rows of it in this stream" in reasons
        for stream in found:
            assert np.isnan(counts_in(found, stream)).all()
        with pytest.raises(SymDenoiseError, match="rows belong to which"):
            register(raw, into=client["denoised"], denoiser=denoiser, symmetry="1", beam_center=None)

    def test_replay_of_the_documents_gives_what_was_meant(
        self, client: Container, denoiser: Denoiser, made: Callable[..., Made]
    ) -> None:
        run = made()
        documents, meant = self.darks_and_projections(run)
        found = replay(documents, into=client["denoised"], denoiser=denoiser, symmetry="1")
        for name, stack in meant.items():
            assert counts_in(found, name) == sums(stack)

    @pytest.mark.parametrize("where", ["the next file", "the same file"])
    def test_frames_before_the_first_announced_one(
        self, where: str, live: Any, client: Container, made: Callable[..., Made]
    ) -> None:
        """Two warm-up frames that no document announces, after one or five frames in the previous file."""
        run, stack = made(), frames(8)
        stream = run.stream(det=described([1, HEIGHT, WIDTH]))
        first = run.hdf5("a", stack if where == "the same file" else stack[:5])
        for row in range(5):
            run.row(stream, first, row, row + 1)
        second = first if where == "the same file" else run.hdf5("b", stack[3:])
        if where == "the next file":
            run.row(stream, second, 2, 6)
            meant = [*stack[:5], stack[5]]
        else:
            run.row(stream, second, 7, 6)
            meant = [*stack[:5], stack[7]]
        assert fed(live, run.ended()).ok
        assert counts_in(derived(client, run.uid)) == sums(np.stack(meant))


def test_point_that_is_taken_again_before_the_other_detector_has_announced(
    live: Any, client: Container, made: Callable[..., Made]
) -> None:
    """The first event keeps its own frame, although its row waits for the other detector."""
    run, stack = made(), frames(6)
    stream = run.stream(det=described([1, HEIGHT, WIDTH]), late=described([1, HEIGHT, WIDTH]))
    det, late = run.hdf5("det", stack[:3]), run.hdf5("late", stack[3:], key="late")
    for row, number in enumerate((1, 2, 2)):
        run.row(stream, det, row, number)
    for row, number in enumerate((1, 2, 2)):
        place = {"start": row, "stop": row + 1}, {"start": number, "stop": number + 1}
        run.documents.append(("stream_datum", late.compose_stream_datum(*place, stream.descriptor_doc)))
    assert fed(live, run.ended()).ok
    found = derived(client, run.uid)
    assert counts_in(found) == sums(stack[:3])
    assert counts_in(found, key="late") == sums(stack[3:])


class TestShapes:
    """If the data key states a wrong shape, that of the file is used."""

    @pytest.mark.parametrize("kind", ["hdf5", "tiffs"])
    @pytest.mark.parametrize(
        "stated",
        [
            (1, HEIGHT, WIDTH),
            (HEIGHT, WIDTH),
            (HEIGHT, WIDTH, 0),
            (WIDTH, HEIGHT, 0),
            (0, HEIGHT, WIDTH),
            (1, WIDTH, HEIGHT),
            (WIDTH, HEIGHT),
            (None, None),
            (1, None, None),
            (1, HEIGHT + 8, WIDTH + 9),
        ],
    )
    def test_stated_shape(
        self,
        kind: str,
        stated: tuple[int | None, ...],
        live: Any,
        client: Container,
        made: Callable[..., Made],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        run, stack = made(), frames(2)
        stream = run.stream(det=described(stated))
        resource = run.hdf5("a", stack) if kind == "hdf5" else run.tiffs(stack)
        for row in range(2):
            run.row(stream, resource, row, row + 1)
        assert fed(live, run.ended()).ok
        found = derived(client, run.uid)
        assert counts_in(found) == sums(stack)
        upright(found, stack)
        known = tuple(size for size in stated if size != 0)
        if known[-2:] != (HEIGHT, WIDTH):
            assert str(tuple(stated)) in caplog.text
            assert str((HEIGHT, WIDTH)) in caplog.text
        else:
            assert "states shape" not in caplog.text

    @pytest.mark.parametrize("stated", [(HEIGHT, WIDTH), (WIDTH, HEIGHT), (HEIGHT, WIDTH, 0), (None, None)])
    def test_images_inside_events(
        self, stated: tuple[int | None, ...], live: Any, client: Container, made: Callable[..., Made]
    ) -> None:
        run, stack = made(), frames(2)
        stream = run.stream(det=described(stated, None))
        for image in stack:
            run.event(stream, det=image)
        assert fed(live, run.ended()).ok
        found = derived(client, run.uid)
        assert counts_in(found) == sums(stack)
        upright(found, stack)

    def test_several_frames_an_event_in_either_layout(
        self, live: Any, client: Container, made: Callable[..., Made]
    ) -> None:
        run, stack = made(), frames(6)
        stream = run.stream(end=described([3, HEIGHT, WIDTH]), rows=described([3, HEIGHT, WIDTH]))
        resources = run.hdf5("end", stack, key="end"), run.hdf5("rows", stack.reshape(2, 3, HEIGHT, WIDTH), key="rows")
        for row in range(2):
            for resource in resources:
                place = {"start": row, "stop": row + 1}, {"start": row + 1, "stop": row + 2}
                run.documents.append(("stream_datum", resource.compose_stream_datum(*place, stream.descriptor_doc)))
            run.documents.append(("event", stream.compose_event(data={}, timestamps={}, seq_num=row + 1)))
        assert fed(live, run.ended()).ok
        found = derived(client, run.uid)
        for key in ("end", "rows"):
            assert counts_in(found, key=key) == sums(stack.reshape(2, 3, HEIGHT, WIDTH))
            upright(found, stack, key=key)

    def test_mask_that_fits_though_the_first_image_is_unreadable(
        self, client: Container, denoiser: Denoiser, made: Callable[..., Made]
    ) -> None:
        run, stack = made(), frames(3)
        stream = run.stream(det=described([HEIGHT + 8, WIDTH + 9], None))
        run.event(stream, det="no image")
        for image in stack:
            run.event(stream, det=image)
        mask = np.zeros((HEIGHT, WIDTH), bool)
        callback = ThreadedDenoiseCallback(client["denoised"], denoiser=denoiser, symmetry="1", mask=mask)
        fed(callback, run.ended())
        np.testing.assert_array_equal(counts_in(derived(client, run.uid)), [np.nan, *sums(stack)])

    @pytest.mark.parametrize("fitting", [True, False])
    def test_mask_of_the_region_that_the_file_holds(
        self, fitting: bool, client: Container, denoiser: Denoiser, made: Callable[..., Made]
    ) -> None:
        """The mask contradicts the stated shape: the first image decides whether the run is refused."""
        run, stack = made(), frames(2)
        stream = run.stream(det=described([1, HEIGHT + 8, WIDTH + 9]))
        resource = run.hdf5("a", stack)
        for row in range(2):
            run.row(stream, resource, row, row + 1)
        mask = np.zeros((HEIGHT, WIDTH) if fitting else (WIDTH, HEIGHT), bool)
        mask[:5] = True
        callback = ThreadedDenoiseCallback(client["denoised"], denoiser=denoiser, symmetry="1", mask=mask)
        status = fed(callback, run.ended())
        if fitting:
            assert status.ok
            assert np.isnan(derived(client, run.uid)["primary"]["det"].read()[..., :5, :]).all()
            assert counts_in(derived(client, run.uid)) == sums(stack[:, 5:])
        else:
            (line,) = status.errors
            assert f"mask of shape ({WIDTH}, {HEIGHT})" in line
            assert denoised_for(client, run.uid) is None

    def test_region_that_changes_in_the_run_is_left_out_with_both_shapes(
        self, live: Any, client: Container, made: Callable[..., Made]
    ) -> None:
        run, stack = made(), frames(1)
        stream = run.stream(det=described([HEIGHT, WIDTH], None))
        for image in (stack[0], stack[0][:40, :50], stack[0]):
            run.event(stream, det=image)
        status = fed(live, run.ended())
        assert (status.frames, status.failed) == (2, 1)
        assert "(40, 50)" in status.errors[0]
        assert str((HEIGHT, WIDTH)) in status.errors[0]
        np.testing.assert_array_equal(
            counts_in(derived(client, run.uid)), [float(stack[0].sum()), np.nan, float(stack[0].sum())]
        )

    @pytest.mark.parametrize("unreadable", [1, 3, 12])
    def test_first_images_that_cannot_be_read_leave_the_shape_to_the_next(
        self, unreadable: int, live: Any, client: Container, made: Callable[..., Made]
    ) -> None:
        """After a dozen of them the stated shape is used: images of another shape are left out with a message."""
        run, stack = made(), frames(2)
        stream = run.stream(det=described([WIDTH, HEIGHT], None))
        for image in (*[object()] * unreadable, *stack):
            run.event(stream, det=image)
        status = fed(live, run.ended())
        found = counts_in(derived(client, run.uid))
        assert np.isnan(found[:unreadable]).all()
        if unreadable < 12:
            assert (status.frames, status.failed) == (2, unreadable)
            assert found[unreadable:] == sums(stack)
        else:
            assert (status.frames, status.failed) == (0, 14)
            assert str((HEIGHT, WIDTH)) in str(status.errors)
            assert str((WIDTH, HEIGHT)) in str(status.errors)

    @pytest.mark.parametrize(
        "shape", [(HEIGHT, WIDTH, 3), (HEIGHT, WIDTH, 4), (HEIGHT, 3, WIDTH), (1, HEIGHT, WIDTH, 3)]
    )
    @pytest.mark.parametrize("inside", [True, False])
    def test_colour_images_are_left_out_with_a_message(
        self,
        shape: tuple[int, ...],
        inside: bool,
        live: Any,
        client: Container,
        made: Callable[..., Made],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        run, stack = made(), frames(2)
        cam = described(shape, None if inside else "STREAM:", "|u1")
        stream = run.stream(cam=cam, det=described([HEIGHT, WIDTH], None))
        for image in stack:
            run.event(stream, det=image, **({"cam": np.zeros(shape, np.uint8)} if inside else {}))
        with caplog.at_level(logging.WARNING):
            assert fed(live, run.ended()).ok
        assert "primary/cam is left out" in caplog.text
        assert "colour" in caplog.text
        found = derived(client, run.uid)
        assert "cam" not in found["primary"]
        assert counts_in(found) == sums(stack)

    def test_colour_image_that_is_stated_as_another(
        self, live: Any, client: Container, made: Callable[..., Made]
    ) -> None:
        run = made()
        stream = run.stream(cam=described([HEIGHT, WIDTH], None, "|u1"))
        run.event(stream, cam=np.ones((HEIGHT, WIDTH, 3), np.uint8))
        status = fed(live, run.ended())
        assert (status.frames, status.failed) == (0, 1)
        assert "colour images hold no counts" in status.errors[0]

    def test_replay_through_tiled_does_not_take_scrambled_images(
        self, client: Container, denoiser: Denoiser, made: Callable[..., Made]
    ) -> None:
        """Tiled gives the pixels of a (y, x) file in rows of x where the data key states (1, x, y)."""
        run, stack = made(), frames(2)
        stream = run.stream(det=described([1, WIDTH, HEIGHT]))
        resource = run.hdf5("a", stack)
        for row in range(2):
            run.row(stream, resource, row, row + 1)
        live = ThreadedDenoiseCallback(client["denoised"], denoiser=denoiser, symmetry="1")
        assert fed(live, run.ended(), TiledWriter(client["raw"], batch_size=1)).ok
        raw = client["raw"][run.uid]
        with pytest.raises(SymDenoiseError, match="another order"):
            recompute(derived(client, run.uid), 0, denoiser=denoiser)
        found = replay(raw, into=client["denoised"], denoiser=denoiser, symmetry="1", data_keys=["det"])
        assert "another order" in found.metadata["stop"]["provenance"]["failures"][0]["reason"]


class Mode(enum.StrEnum):
    STEP = "step"


class TestValues:
    def test_members_of_enumerations_anywhere(
        self, callback: Any, client: Container, made: Callable[..., Made]
    ) -> None:
        class Hidden(enum.IntEnum):
            A = 1

        run, stack = made(mode=Mode.STEP, level={"here": Hidden.A}), frames(2)
        stream = run.stream(det=described([HEIGHT, WIDTH], None), mode={"source": "t", "dtype": "string", "shape": []})
        for image in stack:
            run.event(stream, det=image, mode=Mode.STEP)
        assert fed(callback, run.ended()).ok
        found = derived(client, run.uid)
        assert found.start["mode"] == "step"
        assert found.start["level"] == {"here": 1}
        assert counts_in(found) == sums(stack)

    def test_unreadable_value_beside_an_image_is_named_and_the_image_is_denoised(
        self, callback: Any, client: Container, made: Callable[..., Made], caplog: pytest.LogCaptureFixture
    ) -> None:
        run, stack = made(), frames(2)
        stream = run.stream(det=described([HEIGHT, WIDTH], None), odd={"source": "t", "dtype": "number", "shape": []})
        for image in stack:
            run.event(stream, det=image, odd=object())
        status = fed(callback, run.ended())
        assert status.ok, status
        assert status.restarts == 0
        assert caplog.text.count("key 'odd'") == 1
        assert counts_in(derived(client, run.uid)) == sums(stack)

    def test_unreadable_image_is_a_nan_row_that_names_its_key(
        self, callback: Any, client: Container, made: Callable[..., Made]
    ) -> None:
        run, stack = made(), frames(2)
        stream = run.stream(det=described([HEIGHT, WIDTH], None))
        for image in (stack[0], lambda: None, stack[1]):
            run.event(stream, det=image)
        status = fed(callback, run.ended())
        assert (status.frames, status.failed, status.restarts) == (2, 1, 0)
        assert "'det'" in status.errors[0]
        found = counts_in(derived(client, run.uid))
        assert [found[0], found[2]] == sums(stack)
        assert np.isnan(found[1])

    def test_unreadable_start_document_fails_its_own_run_only(
        self, callback: Any, client: Container, made: Callable[..., Made]
    ) -> None:
        bad, good = made(), made()
        for run in (bad, good):
            stream = run.stream(det=described([HEIGHT, WIDTH], None))
            run.event(stream, det=frames(1)[0])
        documents = bad.ended()
        documents[0] = ("start", documents[0][1] | {"sample": {"holder": object()}})
        for name, doc in documents:
            callback(name, doc)
        status = fed(callback, good.ended())
        (line,) = status.errors
        assert "sample.holder" in line
        assert status.restarts == 0
        assert "sample.holder" in dict(status.runs)[bad.uid]
        assert denoised_for(client, bad.uid) is None
        assert counts_in(derived(client, good.uid)) == sums(frames(1))

    def test_page_of_many_images(self, callback: Any, client: Container, made: Callable[..., Made]) -> None:
        run, stack = made(), frames(40)
        stream = run.stream(det=described([HEIGHT, WIDTH], None))
        for image in stack:
            run.event(stream, det=image)
        events = [doc for name, doc in run.documents if name == "event"]
        documents = [pair for pair in run.documents if pair[0] != "event"]
        documents += [("event_page", pack_event_page(*events)), ("stop", run.run.compose_stop())]
        assert fed(callback, documents).ok
        assert counts_in(derived(client, run.uid)) == sums(stack)

    @pytest.mark.parametrize("shape", [["48", "64"], [48.0, 64.0], [[48], [64]]])
    def test_stated_shape_without_sizes(
        self, shape: Any, live: Any, client: Container, made: Callable[..., Made]
    ) -> None:
        run = made()
        stream = run.stream(det=described([HEIGHT, WIDTH], None))
        run.event(stream, det=frames(1)[0])
        documents = run.ended()
        keys = {"det": described([HEIGHT, WIDTH], None) | {"shape": shape}}
        documents[1] = ("descriptor", documents[1][1] | {"data_keys": keys})
        assert fed(live, documents).ok
        assert counts_in(derived(client, run.uid)) == sums(frames(1))

    def test_resource_that_was_announced_in_another_run(
        self, live: Any, client: Container, made: Callable[..., Made], caplog: pytest.LogCaptureFixture
    ) -> None:
        """As of a detector that is staged once for two runs: rows are NaN, and it is said which resource lacks."""
        run, stack = made(), frames(2)
        stream = run.stream(det=described([1, HEIGHT, WIDTH]))
        resource = run.hdf5("a", stack)
        for row in range(2):
            run.row(stream, resource, row, row + 1)
        uid = resource.stream_resource_doc["uid"]
        fed(live, [each for each in run.ended() if each[0] != "stream_resource"])
        found = derived(client, run.uid)
        assert np.isnan(counts_in(found)).all()
        assert "never announced" in str(found.metadata["stop"]["provenance"]["failures"])
        assert f"names resource {uid!r}, which was not announced in this run" in caplog.text

    def test_document_that_lacks_a_key_names_it(self, live: Any, made: Callable[..., Made]) -> None:
        run = made()
        stream = run.stream(det=described([HEIGHT, WIDTH], None))
        run.event(stream, det=frames(1)[0])
        documents = [(name, {key: doc[key] for key in doc if key != "seq_num"}) for name, doc in run.ended()]
        (line,) = fed(live, documents).errors
        assert "event document without 'seq_num'" in line


class TestAttaching:
    def one_frame(self, run: Made) -> Documents:
        stream = run.stream(det=described([HEIGHT, WIDTH], None))
        run.event(stream, det=frames(1)[0])
        return run.ended()

    @pytest.mark.parametrize("missed", [1, 2])
    def test_callback_attached_in_the_middle_of_a_run(
        self, missed: int, callback: Any, client: Container, made: Callable[..., Made], caplog: pytest.LogCaptureFixture
    ) -> None:
        """That run is not denoised, which is reported with the remedy; the next one is denoised."""
        early, late = made(), made()
        for name, doc in self.one_frame(early)[missed:]:
            callback(name, doc)
        status = fed(callback, self.one_frame(late))
        assert "before the callback was attached" in caplog.text + str(status.errors)
        assert "KeyError" not in str(status.errors)
        if missed == 1:
            assert "catch-up" in dict(status.runs)[early.uid]
        assert denoised_for(client, early.uid) is None
        assert counts_in(derived(client, late.uid)) == sums(frames(1))

    def test_callback_attached_twice(self, own_callback: Any, client: Container, made: Callable[..., Made]) -> None:
        """Each document is processed once, and a message says so."""
        run = made()
        for name, doc in self.one_frame(run):
            own_callback(name, doc)
            own_callback(name, doc)
        status = own_callback.close(timeout=120)
        (line,) = status.errors
        assert "subscribed twice" in line
        assert (status.frames, status.failed) == (1, 0)
        assert counts_in(derived(client, run.uid)) == sums(frames(1))

    @pytest.mark.process
    def test_two_callbacks_of_the_same_settings(
        self, worker: DenoiseCallback, client: Container, made: Callable[..., Made]
    ) -> None:
        """The first denoises the run; the other says why it does not, and nobody is told to end the RunEngine."""
        run = made()
        one = Lasting(worker)
        other = DenoiseCallback(client["denoised"], denoiser=DenoiserSettings(threads=1), symmetry="1", nice=0)
        documents = self.one_frame(run)
        for name, doc in documents[:-1]:
            one(name, doc)
        while one.status().frames < 1:
            time.sleep(0.02)
        for name, doc in documents[:-1]:
            other(name, doc)
        status = other.close(timeout=120)
        one(*documents[-1])
        assert one.close(timeout=120).ok
        assert "another callback" in dict(status.runs)[run.uid]
        assert "unsubscribe" in status.errors[0]
        assert status.frames == 0
        assert counts_in(derived(client, run.uid)) == sums(frames(1))


class TestPlaces:
    @pytest.mark.parametrize(
        "uri",
        [
            "file://localhost/C:/data/x.h5",
            "file:///C:\\data\\x.h5",
            "C:\\data\\x.h5",
            "file://C:/data/x.h5",
            "s3://b/k",
        ],
    )
    def test_file_that_is_nowhere_here_is_named_in_the_reason(
        self, uri: str, live: Any, client: Container, made: Callable[..., Made]
    ) -> None:
        run = made()
        stream = run.stream(det=described([1, HEIGHT, WIDTH]))
        run.row(stream, run.hdf5("a", frames(1), uri=uri), 0, 1)
        status = fed(live, run.ended())
        assert (status.frames, status.failed) == (0, 1)
        assert uri in status.errors[0].replace("\\\\", "\\")
        assert "folder of raw files" not in status.errors[0]

    def test_plain_absolute_path_is_read(self, live: Any, client: Container, made: Callable[..., Made]) -> None:
        run = made()
        stream = run.stream(det=described([1, HEIGHT, WIDTH]))
        path = run.folder / f"{run.uid}-a.h5"
        run.row(stream, run.hdf5("a", frames(1), uri=str(path)), 0, 1)
        assert fed(live, run.ended()).ok
        assert counts_in(derived(client, run.uid)) == sums(frames(1))


@pytest.mark.process
def test_close_with_a_timeout_reports_what_is_not_done(
    client: Container, made: Callable[..., Made], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made()
    stream = run.stream(det=described([512, 512], None))
    for _ in range(12):
        run.event(stream, det=np.ones((512, 512), np.uint16))
    callback = DenoiseCallback(client["denoised"], denoiser=DenoiserSettings(threads=1), symmetry="1", nice=0)
    for name, doc in run.ended():
        callback(name, doc)
    status = callback.close(timeout=0.05)
    assert status.waiting > 0
    assert f"documents of {run.uid[:8]} are not processed yet" in caplog.text
    while callback.status().waiting:
        time.sleep(0.001)
    monkeypatch.setattr(feeder.Feeder, "waiting", property(lambda _: 0))
    said = callback._feeder.unfinished
    assert "being sent to Tiled" in said or "has not ended" in said
    assert callback.close(timeout=120).ok
