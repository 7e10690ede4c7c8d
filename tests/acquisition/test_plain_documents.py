"""Documents on their way to the worker: copied at once, plain values only, and on disk until their run is finished."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import threading
import uuid
from collections import deque
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from bluesky_symdenoise.acquisition.live.backlog import Backlog, Head, documents_in, head_of, merged_documents
from bluesky_symdenoise.acquisition.live.pool import LEAST, Pool
from bluesky_symdenoise.acquisition.runs.documents import (
    PackedDocument,
    Unreadable,
    packed,
    plain,
    unpacked,
    unreadable,
)
from bluesky_symdenoise.acquisition.runs.routing import Owners
from bluesky_symdenoise.catalog.store.lock import HeldError


class Mode(enum.StrEnum):
    STEP = "step"


class Speed(enum.IntEnum):
    FAST = 3


class Odd(enum.Enum):
    PAIR = (1, Mode.STEP)


class Name(str):
    __slots__ = ()


@dataclasses.dataclass
class Stage:
    x: float
    mode: Mode


class Table(BaseModel):
    rows: list[int]


class Evil:
    def __array__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("not now")


def through(doc: dict[str, Any]) -> dict[str, Any]:
    """What arrives in the worker."""
    made = packed("event", plain(doc))
    body = b"".join(made.parts)
    assert len(body) == made.size
    name, found = unpacked(made.head, body)
    assert name == "event"
    return found


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Mode.STEP, "step"),
        (Speed.FAST, 3),
        (Odd.PAIR, [1, "step"]),
        (Name("x"), "x"),
        (np.float32(0.5), 0.5),
        (np.longdouble(2), 2.0),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.array(5), 5),
        (np.array(["a", "b"]), ["a", "b"]),
        (np.array([Mode.STEP, 2], dtype=object), ["step", 2]),
        (np.datetime64("2026-11-30"), "2026-11-30"),
        ((1, (2, 3)), [1, [2, 3]]),
        ({3, 1, 2}, [1, 2, 3]),
        (deque([1]), [1]),
        (range(3), [0, 1, 2]),
        (Path("/a/b"), "/a/b"),
        (uuid.UUID(int=1), str(uuid.UUID(int=1))),
        (datetime.datetime(2026, 11, 30), "2026-11-30T00:00:00"),
        (datetime.timedelta(minutes=1), 60.0),
        (Decimal("1.5"), 1.5),
        (Stage(1.0, Mode.STEP), {"x": 1.0, "mode": "step"}),
        (Table(rows=[1, 2]), {"rows": [1, 2]}),
        ({Mode.STEP: 1, 2: 3}, {"step": 1, "2": 3}),
        (b"\x00\xff", b"\x00\xff"),
        (1 + 2j, 1 + 2j),
        (float("inf"), float("inf")),
        ("d\ud800t", "d?t"),
        (2**70, 2**70),
        (None, None),
    ],
)
def test_plain_value_of_what_devices_put_into_documents(value: Any, expected: Any) -> None:
    found = through({"value": value})["value"]
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "|u1", "<i4", "<f4", "<f8", "|b1", "<f2"])
@pytest.mark.parametrize("made", [np.asarray, np.asfortranarray, lambda a: a[::2, ::-1], lambda a: a[:0]])
def test_arrays_arrive_as_they_were(dtype: str, made: Any) -> None:
    array = made(np.arange(48).reshape(6, 8).astype(dtype))
    found = through({"image": array})["image"]
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype


def test_dataarrays_and_arrays_without_a_masked_value_are_arrays() -> None:
    counts = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(through({"a": xr.DataArray(counts)})["a"], counts)
    np.testing.assert_array_equal(through({"a": np.ma.masked_array(counts)})["a"], counts)


@pytest.mark.parametrize(
    "value",
    [
        object(),
        lambda: 0,
        Evil(),
        pytest.param(10**5000, id="5001 digits"),
        threading.Lock(),
        np.ma.masked_less(np.arange(3), 1),
    ],
)
def test_unreadable_value_is_named_and_the_others_are_kept(value: Any) -> None:
    found = through({"data": {"good": 1, "bad": [0, value]}})
    assert found["data"]["good"] == 1
    ((name, why),) = unreadable(found)
    assert name == "data.bad.1"
    assert isinstance(why, Unreadable)


def test_document_that_holds_itself_has_an_end() -> None:
    doc: dict[str, Any] = {"a": 1}
    doc["self"] = doc
    assert "nested deeper" in str(next(iter(unreadable(plain(doc))))[1])


@dataclasses.dataclass
class Part:
    parent: Any = None
    children: list[Any] = dataclasses.field(default_factory=list)


def test_objects_that_refer_to_each_other_are_packed_quickly() -> None:
    whole = Part()
    whole.children = [Part(whole), Part(whole)]
    found = plain({"whole": whole})
    assert [name for name, _ in unreadable(found)] == ["whole.children.0.parent", "whole.children.1.parent"]


def test_nothing_of_the_callers_document_is_shared() -> None:
    buffer, nested = np.zeros((4, 4), np.uint16), {"list": [1, [2]]}
    taken = plain({"image": buffer, "nested": nested, "rows": [[1, 2], [3, 4]]})
    buffer += 7
    nested["list"][1].append(3)
    nested["more"] = 1
    assert taken["image"].sum() == 0
    assert taken["nested"] == {"list": [1, [2]]}


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(doc=st.dictionaries(st.text(), _values, max_size=5))
def test_plain_documents_arrive_unchanged(doc: dict[str, Any]) -> None:
    assert through(doc) == doc


class TestPool:
    def test_copies_into_memory_that_was_given_back(self) -> None:
        pool = Pool()
        first = pool.copy(np.full(LEAST, 1, np.uint8))
        place = first.__array_interface__["data"][0]
        pool.give_back(first)
        second = pool.copy(np.full(LEAST // 2, 2, np.uint16))
        assert second.__array_interface__["data"][0] == place
        assert (second == 2).all()

    def test_two_copies_never_share_memory(self) -> None:
        pool = Pool()
        pool.prepare(LEAST)
        buffer = np.zeros(LEAST, np.uint8)
        copies = []
        for value in range(20):
            buffer[:] = value
            copies.append(pool.copy(buffer))
        assert [copy[0] for copy in copies] == list(range(20))

    def test_keeps_no_more_than_it_may(self) -> None:
        pool = Pool(keep=3 * LEAST)
        copies = [pool.copy(np.zeros(LEAST, np.uint8)) for _ in range(10)]
        for copy in copies:
            pool.give_back(copy)
        pool.prepare(LEAST)
        assert pool._kept == 3 * LEAST

    def test_memory_of_other_arrays_is_not_taken(self) -> None:
        pool, mine = Pool(), np.zeros((2, LEAST), np.uint8)
        pool.give_back(mine)
        pool.give_back(mine[0])
        assert not np.shares_memory(pool.copy(np.ones(LEAST, np.uint8)), mine)


def head(uid: str = "raw") -> Head:
    return Head(raw_uid=uid, derived_uid=f"of-{uid}", recipe_sha256="abc", container="http://here")


def document(doc: dict[str, Any]) -> PackedDocument:
    return packed("event", plain(doc))


class TestBacklog:
    def test_documents_of_all_runs_are_there_for_the_next_process(self, tmp_path: Path) -> None:
        backlog, frame = Backlog(tmp_path), np.arange(12).reshape(3, 4)
        for uid in ("a", "b"):
            backlog.begin(head(uid))
        for number in range(6):
            assert backlog.add("ab"[number % 2], document({"n": number, "image": frame + number}), 0.0) == number
        paths = [backlog.path(uid) for uid in ("a", "b")]
        backlog.close()
        found = list(merged_documents([path for path in paths if path], after=1))
        assert [(number, doc["n"]) for number, _, doc in found] == [(number, number) for number in range(2, 6)]
        np.testing.assert_array_equal(found[-1][2]["image"], frame + 5)
        assert head_of(tmp_path / "of-a.documents") == head("a")

    def test_document_in_hand_is_read_again(self, tmp_path: Path) -> None:
        backlog = Backlog(tmp_path)
        backlog.begin(head())
        numbers = [backlog.add("raw", document({"n": n, "image": np.full(5, n)}), 0.0) for n in range(3)]
        assert unpacked(*backlog.pieces(numbers[1]))[1]["n"] == 1
        backlog.forget_run("raw")
        assert len(backlog) == 0
        assert not list(tmp_path.iterdir())

    def test_document_of_a_thousand_arrays_is_one_record(self, tmp_path: Path) -> None:
        backlog = Backlog(tmp_path)
        backlog.begin(head())
        page = {"data": {"det": [np.full((2, 3), n, np.uint16) for n in range(1000)], "none": np.empty((0, 4))}}
        number = backlog.add("raw", document(page), 0.0)
        found = unpacked(*backlog.pieces(number))[1]["data"]
        assert [int(image[0, 0]) for image in found["det"]] == list(range(1000))
        assert found["none"].shape == (0, 4)
        backlog.close()

    def test_file_that_was_cut_off_ends_with_its_last_whole_document(self, tmp_path: Path) -> None:
        backlog = Backlog(tmp_path)
        backlog.begin(head())
        for n in range(3):
            backlog.add("raw", document({"n": n, "image": np.full(100, n)}), 0.0)
        backlog.close()
        path = tmp_path / "of-raw.documents"
        whole = path.read_bytes()
        counts = set()
        for size in range(0, len(whole), 7):
            path.write_bytes(whole[:size])
            counts.add(len(list(documents_in(path))))
        assert counts == {0, 1, 2}
        path.write_bytes(b"\xff garbage\n" + whole)
        assert list(documents_in(path)) == []
        assert head_of(path) is None

    def test_run_of_a_living_process_cannot_be_taken_over(self, tmp_path: Path) -> None:
        backlog = Backlog(tmp_path)
        backlog.begin(head())
        with pytest.raises(HeldError):
            Backlog(tmp_path).begin(head())
        backlog.close()
        another = Backlog(tmp_path)
        another.begin(head())
        another.close()

    def test_without_a_disk_documents_stay_in_memory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        backlog = Backlog(tmp_path)
        backlog.begin(head())

        def full(*_: Any) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(backlog._files["raw"], "append", full)
        for n in range(2):
            number = backlog.add("raw", document({"n": n}), 0.0)
            assert json.loads(backlog.pieces(number)[0])[1] == {"n": n}
        backlog.close()
        assert caplog.text.count("free disk space") == 1


def test_owner_of_each_kind_of_document() -> None:
    owners = Owners()
    for name, doc in (
        ("start", {"uid": "r"}),
        ("descriptor", {"uid": "d", "run_start": "r"}),
        ("stream_resource", {"uid": "s", "run_start": "r"}),
        ("resource", {"uid": "l", "run_start": "r"}),
        ("event", {"descriptor": "d"}),
        ("event_page", {"descriptor": "d"}),
        ("stream_datum", {"descriptor": "d", "stream_resource": "s"}),
        ("datum", {"resource": "l"}),
        ("datum_page", {"resource": "l"}),
        ("bulk_events", {"d": []}),
        ("stop", {"run_start": "r"}),
    ):
        assert owners.of(name, doc) == "r", name
    assert owners.of("event", {"descriptor": "other"}) is None
    owners.forget("r")
    assert owners.of("event", {"descriptor": "d"}) is None
