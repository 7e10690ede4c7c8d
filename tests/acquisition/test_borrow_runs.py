"""What a row borrows from is the same whichever way its run comes: live, replayed, from documents, in memory, again."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bluesky.plans as bp
import numpy as np
import ophyd.sim
import pytest
from bluesky_tiled_plugins import TiledWriter
from borrowing import Remembering, drifting, expected, inline
from callback_runs import composed
from ophyd_async.core import StaticPathProvider, UUIDFilenameProvider, init_devices
from raw_runs import step_scan, written
from tiled.client.container import Container

from bluesky_symdenoise import SymDenoiseError, ThreadedDenoiseCallback, denoised_for, recompute, replay
from bluesky_symdenoise.acquisition.derive import kept as kept_module
from bluesky_symdenoise.acquisition.derive.kept import KeptFrames
from bluesky_symdenoise.acquisition.play import PlayDetector
from bluesky_symdenoise.physics.neighbours.window import Borrow, Scan

pytestmark = pytest.mark.server

ROWS = 12
SETTINGS: dict[str, Any] = {"symmetry": "1", "borrow_reach": 3, "self_check": "off"}
#: Columns that say how long it took are not compared.
TIMES = {"det_ms"}


@pytest.fixture(scope="module")
def model() -> Any:
    return Remembering.pretrained(threads=1).model


@pytest.fixture
def fresh(model: Any) -> Callable[[], Remembering]:
    """Function that returns a denoiser that remembers nothing yet."""
    return lambda: Remembering(model, threads=1)


def windows(borrow: str, reach: int = 3, rows: int = ROWS, scan: Scan | None = None) -> dict[int, Any]:
    """Rows and offsets from which each row may borrow."""
    choice = Borrow(borrow, reach)
    return {row: [(each.row, each.offset) for each in choice.rows(row, rows, scan)] for row in range(rows)}


def table(run: Any, *, but: set[str] = frozenset()) -> dict[str, np.ndarray]:  # type: ignore[assignment]
    """Pixels and columns of a derived run."""
    stream = run["primary"]
    return {name: np.asarray(stream[name].read()) for name in stream if name not in TIMES | set(but)}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def live(client: Container, denoiser: Remembering, documents: Any, **options: Any) -> Any:
    """Denoise the documents while they come, and return the raw run."""
    with ThreadedDenoiseCallback(client["denoised"], denoiser=denoiser, **SETTINGS, **options) as callback:
        raw = written(client, documents, callback)
    assert callback.close(60).errors == ()
    return raw


@pytest.mark.parametrize("source", ["files", "inline"])
def test_live_replayed_in_memory_and_again_are_lent_the_same(
    source: str, client: Container, home: Path, fresh: Callable[[], Remembering]
) -> None:
    """The past, frame for frame: rows, offsets and bytes; what is stored is the same in all bits."""
    frames = drifting(ROWS)
    documents = list(step_scan(home / "frames", frames) if source == "files" else inline(frames))
    right = expected(frames, windows("past"))
    first = fresh()
    raw = live(client, first, documents, borrow="past")
    assert first.lents(frames) == right
    stored = table(denoised_for(client, raw))
    assert list(stored["det_borrowed_from"]) == [
        "", "0", "0-1", *(f"{row - 3}-{row - 1}" for row in range(3, ROWS))
    ]  # fmt: skip
    for run in (raw, documents):
        again = fresh()
        done = replay(run, into=client["denoised"], denoiser=again, force=True, borrow="past", **SETTINGS)
        assert again.lents(frames) == right
        same(table(done), stored)
    memory = fresh()
    lazy = replay(raw, denoiser=memory, borrow="past", **SETTINGS).compute()
    assert memory.lents(frames) == right
    np.testing.assert_array_equal(lazy.det_denoised.values.reshape(stored["det"].shape), stored["det"])
    np.testing.assert_array_equal(lazy.det_borrowed, stored["det_borrowed"])
    assert list(lazy.det_borrowed_from.values) == list(stored["det_borrowed_from"])
    for row in (0, 5):
        once = fresh()
        np.testing.assert_array_equal(recompute(done, row, denoiser=once).intensity.values, stored["det"][row])
        assert once.lents(frames).items() <= right.items()


@pytest.mark.parametrize("source", ["files", "inline"])
@pytest.mark.parametrize("memory", [2**25, 1], ids=["in memory", "beyond it"])
def test_an_ended_run_borrows_on_both_sides(
    source: str,
    memory: int,
    client: Container,
    home: Path,
    fresh: Callable[[], Remembering],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows wait for those after them and keep their order; frames that memory does not hold are read again."""
    monkeypatch.setattr(KeptFrames.__init__, "__kwdefaults__", {"most": memory, "rows": 1024})
    frames = drifting(ROWS)
    documents = list(step_scan(home / "frames", frames) if source == "files" else inline(frames))
    raw, right = written(client, documents), expected(frames, windows("both"))
    tables = []
    for run in (raw, documents):
        denoiser = fresh()
        done = replay(run, into=client["denoised"], denoiser=denoiser, force=True, borrow="both", **SETTINGS)
        assert denoiser.lents(frames) == right
        assert list(denoiser.lents(frames)) == list(right)
        tables.append(table(done))
    same(*tables)
    lazy = fresh()
    replay(raw, denoiser=lazy, borrow="both", **SETTINGS).compute()
    assert lazy.lents(frames) == right
    once = fresh()
    np.testing.assert_array_equal(recompute(done, 4, denoiser=once).intensity.values, tables[0]["det"][4])
    assert once.lents(frames).items() <= right.items()
    assert list((home / "denoised").rglob("symdenoise-*.lent")) == []


@pytest.mark.parametrize("kind", ["file", "inline"])
@pytest.mark.parametrize("snakes", [False, True], ids=["grid", "snake"])
def test_a_real_map_borrows_from_the_row_above(
    kind: str, snakes: bool, engine: Any, client: Container, home: Path, fresh: Callable[[], Remembering]
) -> None:
    """A RunEngine scans two motors; above is what the start document says, live and afterwards."""
    frames = drifting(ROWS)
    if kind == "file":
        with init_devices():
            det = PlayDetector(frames, StaticPathProvider(UUIDFilenameProvider(), home / "frames"), name="det")
    else:
        # Without a stated type, Tiled stores floats; the device is asked once before the scan, too.
        frames = frames.astype(float)
        taken = iter([frames[0], *frames])
        det = ophyd.sim.SynSignal(name="det", func=lambda: next(taken))
    denoiser, uids = fresh(), []
    callback = ThreadedDenoiseCallback(client["denoised"], denoiser=denoiser, borrow="past", **SETTINGS)
    tokens = [engine.subscribe(each) for each in (TiledWriter(client["raw"], batch_size=1), callback)]
    tokens.append(engine.subscribe(lambda name, doc: uids.append(doc["uid"]) if name == "start" else None))
    try:
        motors = ophyd.sim.motor1, 0, 2, 3, ophyd.sim.motor2, 0, 3, 4
        engine(bp.grid_scan([det], *motors, snake_axes=snakes))
    finally:
        for token in tokens:
            engine.unsubscribe(token)
    assert callback.close(60).errors == ()
    scan = Scan((3, 4), (False, snakes))
    assert denoiser.lents(frames) == expected(frames, windows("past", scan=scan))
    raw = client["raw"][uids[0]]
    above = 1 if snakes else 2
    assert (above, (-1.0, 0.0)) in windows("past", scan=scan)[6]
    said = str(np.asarray(denoised_for(client, raw)["primary"]["det_borrowed_from"].read())[6])
    assert str(above) in re.split("[,-]", said)
    both = fresh()
    done = replay(raw, into=client["denoised"], denoiser=both, borrow="both", **SETTINGS)
    assert both.lents(frames) == expected(frames, windows("both", scan=scan))
    once = fresh()
    recompute(done, 6, denoiser=once)
    assert once.lents(frames).items() <= both.lents(frames).items()


@pytest.mark.parametrize("borrow", ["past", "both"])
@pytest.mark.parametrize("source", ["files", "inline"])
def test_rows_that_are_not_wanted_lend_all_the_same(
    borrow: str, source: str, client: Container, home: Path, fresh: Callable[[], Remembering]
) -> None:
    frames = drifting(ROWS)
    documents = list(step_scan(home / "frames", frames) if source == "files" else inline(frames))
    raw = written(client, documents)
    chosen = {row: window for row, window in windows(borrow).items() if row in (5, 9)}
    for run in (raw, documents):
        denoiser = fresh()
        done = replay(
            run, into=client["denoised"], denoiser=denoiser, rows=[5, 9], force=True, borrow=borrow, **SETTINGS
        )
        assert denoiser.lents(frames) == expected(frames, chosen)
        assert len(done["primary"]["det_borrowed_from"].read()) == 2
    once = fresh()
    recompute(done, 1, denoiser=once)
    assert once.lents(frames) == expected(frames, {9: chosen[9]})


def test_an_unreadable_row_lends_nothing_and_the_rows_say_so(
    client: Container, home: Path, fresh: Callable[[], Remembering]
) -> None:
    """Until it is there: then the rows that lacked it are made again, and the others are kept."""
    frames = drifting(ROWS)
    documents = inline(frames, broken=6)
    denoiser = fresh()
    done = replay(documents, into=client["denoised"], denoiser=denoiser, borrow="past", **SETTINGS)
    without = {row: [each for each in window if each[0] != 6] for row, window in windows("past").items() if row != 6}
    assert denoiser.lents(frames) == expected(frames, without)
    said = list(np.asarray(done["primary"]["det_borrowed_from"].read()))
    assert said[6:10] == ["", "4-5", "5,7", "7-8"]
    assert np.isnan(np.asarray(done["primary"]["det_borrowed"].read())[6])
    whole = list(documents)
    whole[2 + 6] = ("event", {**documents[2 + 6][1], "data": {"det": frames[6]}})
    again = fresh()
    mended = replay(whole, into=client["denoised"], denoiser=again, borrow="past", **SETTINGS)
    assert again.lents(frames) == expected(frames, {row: windows("past")[row] for row in (6, 7, 8, 9)})
    other = fresh()
    same(
        table(mended),
        table(replay(whole, into=client["denoised"], denoiser=other, force=True, borrow="past", **SETTINGS)),
    )


@pytest.mark.parametrize("borrow", ["past", "both"])
@pytest.mark.parametrize("source", ["files", "inline"])
def test_an_interrupted_run_goes_on_with_the_same_loans(
    borrow: str, source: str, client: Container, home: Path, fresh: Callable[[], Remembering], model: Any
) -> None:
    """Rows that are finished are not denoised again, and lend."""
    frames = drifting(ROWS)
    documents = list(step_scan(home / "frames", frames) if source == "files" else inline(frames))

    class Interrupted(Remembering):
        def __call__(self, counts: Any, **options: Any) -> Any:
            if np.array_equal(np.squeeze(counts), frames[7]):
                raise KeyboardInterrupt
            return super().__call__(counts, **options)

    with pytest.raises(KeyboardInterrupt):
        replay(documents, into=client["denoised"], denoiser=Interrupted(model, threads=1), borrow=borrow, **SETTINGS)
    rest = fresh()
    done = replay(documents, into=client["denoised"], denoiser=rest, borrow=borrow, **SETTINGS)
    right = expected(frames, windows(borrow))
    assert rest.lents(frames).items() <= right.items()
    assert len(rest.lents(frames)) <= 6
    whole = fresh()
    same(
        table(done),
        table(replay(documents, into=client["denoised"], denoiser=whole, force=True, borrow=borrow, **SETTINGS)),
    )
    assert whole.lents(frames) == right


def test_several_exposures_of_a_row_lend_one_by_one(
    client: Container, home: Path, fresh: Callable[[], Remembering]
) -> None:
    frames = drifting(8).reshape(4, 2, 40, 40)
    path = home / "frames" / "several.h5"
    import h5py

    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        file["counts"] = frames.reshape(8, 40, 40)
    denoiser = fresh()
    replay(composed(frames, path), into=client["denoised"], denoiser=denoiser, borrow="past", **SETTINGS)
    lents = list(denoiser.lents(frames).values())
    assert [[(row, offset) for row, offset, _ in each] for each in lents] == [
        [(row - step, (-float(step),)) for step in range(1, 4) if step <= row for _ in range(2)] for row in range(4)
    ]


def test_frames_of_a_fly_scan_lend_by_number(client: Container, home: Path, fresh: Callable[[], Remembering]) -> None:
    """It has no events: the columns are in the file beside the frames."""
    frames, denoiser = drifting(5), fresh()
    documents = step_scan(home / "frames", frames, events=False)
    done = replay(documents, into=client["denoised"], denoiser=denoiser, borrow="both", **SETTINGS)
    assert denoiser.lents(frames) == expected(frames, windows("both", rows=5))
    said = np.asarray(done["primary"]["det_borrowed_from"].read()).astype("U").tolist()
    assert said == ["1-3", "0,2-4", "0-1,3-4", "0-2,4", "1-3"]
    assert "det_borrowed_from" not in str(done["primary"].metadata.get("hints"))


def test_without_borrowing_nothing_is_lent_and_there_are_no_columns(
    client: Container, home: Path, fresh: Callable[[], Remembering]
) -> None:
    denoiser, frames = fresh(), drifting(3)
    options = {"symmetry": "1", "self_check": "off"}
    done = replay(step_scan(home / "frames", frames), into=client["denoised"], denoiser=denoiser, **options)
    assert not any(denoiser.lents(frames).values())
    assert "det_borrowed" not in done["primary"]


def test_a_run_that_goes_on_has_no_rows_after_its_last(
    client: Container, home: Path, fresh: Callable[[], Remembering]
) -> None:
    documents = list(step_scan(home / "frames", drifting(4), ended=False))
    with pytest.raises(SymDenoiseError, match="borrow='past'"):
        replay(documents, denoiser=fresh(), borrow="both", **SETTINGS)
    assert replay(documents, denoiser=fresh(), borrow="past", **SETTINGS).sizes["time"] == 4
    with pytest.raises(SymDenoiseError, match="replay the run with borrow='both' when it has ended"):
        ThreadedDenoiseCallback(client["denoised"], denoiser=fresh(), borrow="both")


class TestKeptFrames:
    """Frames of a window, in memory or beyond it."""

    def test_memory_is_bounded_and_all_bits_come_back(self, tmp_path: Path) -> None:
        frames, most = drifting(60), 20_000
        kept = KeptFrames(lambda: tmp_path, most=most, rows=10)
        for row, frame in enumerate(frames):
            kept.keep("det", row, frame, readable=False)
            assert kept.in_memory <= most
            for back in range(max(0, row - 9), row + 1):
                held = kept.get("det", back)
                assert held is not None
                assert held.dtype == frame.dtype
                np.testing.assert_array_equal(held, frames[back])
            kept.forget(row - 9)
            assert len(kept._files) <= 2
        assert kept.get("det", 3) is None
        kept.close()
        gc.collect()
        assert list(tmp_path.iterdir()) == []

    def test_what_can_be_read_again_is_not_written(self, tmp_path: Path) -> None:
        kept = KeptFrames(lambda: tmp_path, most=10_000)
        for row, frame in enumerate(drifting(30)):
            kept.keep("det", row, frame, readable=True)
        assert kept._files == {}
        assert kept.get("det", 0) is None
        assert kept.get("det", 29) is not None

    def test_a_buffer_that_is_used_again_changes_nothing(self, tmp_path: Path) -> None:
        buffer = np.array(drifting(1)[0])
        kept = KeptFrames(lambda: tmp_path)
        kept.keep("det", 0, buffer, readable=True)
        before = np.array(buffer)
        buffer[:] = 0
        held = kept.get("det", 0)
        assert held is not None
        np.testing.assert_array_equal(held, before)
        assert not held.flags.writeable

    def test_memory_default_is_that_of_the_module(self) -> None:
        assert kept_module.MEMORY == 2**25
