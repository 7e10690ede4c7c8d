"""Columns of derived runs in Tiled's tables: which names they can have, and that no row changes their types."""

from __future__ import annotations

import json
import queue
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tiled.client.utils
from bluesky_tiled_plugins import TiledWriter, subscribe_to_streams
from event_model import compose_run
from facility import postgres, tiled_process
from jsonschema import ValidationError
from tiled.adapters.sql import COLUMN_NAME_PATTERN, is_safe_identifier
from tiled.client.container import Container
from tiled.client.stream import LiveTableData
from tiled.utils import UnsafeIdentifier

from bluesky_symdenoise.catalog.store.containers import prepare
from bluesky_symdenoise.catalog.store.journal import Journal
from bluesky_symdenoise.catalog.store.writer import DerivedRun
from bluesky_symdenoise.derived.columns import SCALARS, refused_keys, refused_stream, with_numbers
from bluesky_symdenoise.derived.row import Row, empty_row

pytestmark = [pytest.mark.server, pytest.mark.process]

SHAPE = (1, 4, 5)
NAN = float("nan")


@dataclass(frozen=True)
class Place:
    """A Tiled server whose tables are in this database, and a folder that it reads."""

    database: str
    client: Container
    frames: Path

    def derive(
        self,
        rows: Sequence[Mapping[str, Row]],
        *,
        stream: str = "primary",
        columns: Mapping[str, str] = SCALARS,
        flown: bool = False,
        batch_size: int = 1,
        times: Sequence[float] = (1e9, 1e9 + 0.5),
        uid: str | None = None,
    ) -> Any:
        """Write a derived run with rows of these images."""
        uid = uid or str(uuid.uuid4())
        journal = Journal(self.frames / f"{uid}.journal", made_with={})
        try:
            writer = TiledWriter(self.client["denoised"], batch_size=batch_size)
            start = {"raw_uid": "none", "tiled_specs": ["SymDenoised"]}
            run = DerivedRun(writer, journal=journal, start=start, uid=uid, time=1e9, arrays={}, columns=columns)
            image = {"source": "test", "dtype": "array", "shape": list(SHAPE)}
            descriptor = {"name": stream, "time": 1e9, "data_keys": dict.fromkeys(rows[0], image)}
            opened = run.stream(descriptor, list(rows[0]), flown=flown)
            for number, (time, row) in enumerate(zip(times, rows, strict=True), 1):
                opened.append(seq_num=number, time=None if flown else time, rows=row)
            run.stop(exit_status="success", reason="", provenance={"complete": True, "failures": []})
        finally:
            journal.close()
        return self.client["denoised"][uid]


@pytest.fixture(scope="module", params=["SQLite", "PostgreSQL"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    home = tmp_path_factory.mktemp(request.param)
    frames = home / "frames"
    frames.mkdir()
    variables = {"TILED_CATALOG_READABLE_STORAGE": json.dumps([str(frames)])}
    if request.param == "SQLite":
        with tiled_process(home / "server", **variables) as server:
            client = server.client()
            prepare(client, frames=frames)
            yield Place(request.param, client, frames)
        return
    with postgres(home) as database:
        variables["TILED_CATALOG_URI"] = database
        storage = [str(home / "arrays"), database.replace("+asyncpg", "")]
        variables["TILED_CATALOG_WRITABLE_STORAGE"] = json.dumps(storage)
        with tiled_process(home / "server", **variables) as server:
            client = server.client()
            prepare(client, frames=frames)
            yield Place(request.param, client, frames)


#: What refuses: Tiled's server or client, Bluesky's plugins for it, event-model, h5py or the file system. Not a
#: connection that breaks, as it does after the server's errors.
REFUSALS = (httpx.HTTPStatusError, httpx.InvalidURL, ValidationError, ValueError, KeyError, RuntimeError, OSError)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the server refuses is sent once more and not ten times."""
    monkeypatch.setattr(tiled.client.utils, "TILED_RETRY_ATTEMPTS", 2)


def good_row(value: float = 1.0, columns: Mapping[str, str] = SCALARS, **scalars: Any) -> Row:
    image = np.full(SHAPE, value, np.float32)
    return Row(image, image, {name: "2mm" if kind == "string" else value for name, kind in columns.items()} | scalars)


def rows_of(keys: Sequence[str], columns: Mapping[str, str] = SCALARS) -> list[dict[str, Row]]:
    return [dict.fromkeys(keys, good_row(value, columns)) for value in (1.0, 2.0)]


# --- names

#: Names that people's images have, and odd ones that Tiled takes all the same.
TAKEN = (
    "det image", "XF:31ID-Cam1:image", "XF:31ID{Cam:1}:image", "d探测器", "DETECTOR", "det[1],2|<3>!@$^&*~-", "select",
    "a" * 48, "dé" * 16, "ts_other",
)  # fmt: skip
#: One for each part of the rule.
REFUSED = (
    "1det", "_det", " det", "étalon", "{det}", "det's", 'det"', "det`", "det;", "det\\1", "det--1", "det%", "det(1)",
    "det=1", "det+1", "a" * 49, "dé" * 16 + "d", "time", "internal", "det.image", "det/image", "det?x", "det#1",
    "det%20image", "det\n", "",
)  # fmt: skip
#: Without events there is no table.
TAKEN_WHEN_FLOWN = ("1dét's;\\(%)", "{det}", "a" * 200, "internal")
REFUSED_WHEN_FLOWN = ("time", "det?x", "det#1", "det%20image", "det.image", "det/image", "det\n")


def test_names_that_are_taken_are_written_and_read_back(place: Place) -> None:
    assert refused_keys(TAKEN, flown=False) == {}
    stream = place.derive(rows_of(TAKEN))["primary"]
    # All by name: Tiled's own choice leaves out what begins like a time.
    read = stream.read(list(stream))
    for key in TAKEN:
        assert read[key].shape == read[f"{key}_sigma"].shape == (2, *SHAPE)
        for name, kind in SCALARS.items():
            expected = ["2mm", "2mm"] if kind == "string" else [1, 2]
            np.testing.assert_array_equal(read[f"{key}_{name}"].astype("U" if kind == "string" else float), expected)
            np.testing.assert_array_equal(read[f"ts_{key}_{name}"], [1e9, 1e9 + 0.5])


@pytest.mark.parametrize("key", REFUSED)
def test_names_that_are_refused_are_refused_by_tiled(place: Place, key: str, impatient: None) -> None:
    assert list(refused_keys([key, "det"], flown=False)) == [key]
    with pytest.raises(REFUSALS):
        place.derive(rows_of([key]))


def test_a_fly_scan_has_no_table_and_more_names(place: Place) -> None:
    columns = {"symmetry": "string", "ms": "number"}
    assert refused_keys(TAKEN_WHEN_FLOWN, columns, flown=True) == {}
    read = place.derive(rows_of(TAKEN_WHEN_FLOWN, columns), columns=columns, flown=True)["primary"].read()
    for key in TAKEN_WHEN_FLOWN:
        assert read[key].shape == (2, *SHAPE)
        np.testing.assert_array_equal(read[f"{key}_ms"], [1, 2])


@pytest.mark.parametrize("key", REFUSED_WHEN_FLOWN)
def test_names_that_a_fly_scan_cannot_have_are_refused_by_tiled(place: Place, key: str, impatient: None) -> None:
    assert list(refused_keys([key], flown=True)) == [key]
    with pytest.raises(REFUSALS):
        place.derive(rows_of([key]), flown=True)


@pytest.mark.parametrize(
    ("first", "second"), [("Det", "det"), ("det", "det_sigma"), ("det", "det_counts_in"), ("det_sigma", "det")]
)
def test_two_images_that_would_share_a_name_are_not_both_taken(
    place: Place, first: str, second: str, impatient: None
) -> None:
    assert list(refused_keys([first, second], flown=False)) == [second]
    assert first in refused_keys([first, second], flown=False)[second]
    with pytest.raises(REFUSALS):
        place.derive(rows_of([first, second]))


def test_a_name_that_grows_when_its_letters_are_made_small_is_refused_for_postgresql(
    place: Place, impatient: None
) -> None:
    """Ⱥ has two bytes and ⱥ three: Tiled counts before it lowers, PostgreSQL cuts what it gets."""
    key = "a" + "Ⱥ" * 23
    assert list(refused_keys([key], flown=False)) == [key]
    if place.database == "PostgreSQL":
        with pytest.raises(REFUSALS):
            place.derive(rows_of([key]))


def test_names_of_rings_leave_less_room_for_that_of_the_image(place: Place, impatient: None) -> None:
    columns = with_numbers(["first_ring_orientation", "first_ring_orientation_sigma"])
    room = 63 - len("ts__first_ring_orientation_sigma")
    assert list(refused_keys(["a" * room, "a" * (room + 1)], columns, flown=False)) == ["a" * (room + 1)]
    place.derive(rows_of(["a" * room], columns), columns=columns)
    with pytest.raises(REFUSALS):
        place.derive(rows_of(["a" * (room + 1)], columns), columns=columns)


def test_names_of_rings_that_differ_in_capitals_alone_are_refused(place: Place, impatient: None) -> None:
    columns = with_numbers(["A_orientation", "a_orientation"])
    assert "'det_a_orientation' twice" in refused_keys(["det"], columns, flown=False)["det"]
    with pytest.raises(REFUSALS):
        place.derive(rows_of(["det"], columns), columns=columns)


@pytest.mark.parametrize("pattern", ["d{}t", "{}t", "d{}{}t"])
def test_the_rule_is_that_of_the_installed_tiled_for_every_ascii_character(pattern: str) -> None:
    for character in map(chr, range(0x20, 0x7F)):
        key = pattern.replace("{}", character)
        try:
            for name in SCALARS:
                is_safe_identifier(f"{key}_{name}", COLUMN_NAME_PATTERN)
        except UnsafeIdentifier:
            safe = False
        else:
            # Tiled's client keeps columns that begin so for itself; the others have no place in a URL.
            safe = key[0] != "_" and character not in "./?#"
        assert (key not in refused_keys([key], flown=False)) == safe, key


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("1det", "Tiled's tables take no column '1det_counts_in': it does not begin with a letter a to z"),
        ("det's", 'Tiled\'s tables take no column "det\'s_counts_in": it holds "\'"'),
        ("a" * 49, f"Tiled's tables take no column 'ts_{'a' * 49}_dead_pixels': it has 64 bytes, and 63 is the most"),
        ("det?", "it holds '?', which Bluesky's documents or Tiled's URLs cannot have in a name"),
        ("seq_num", "Tiled cannot have an image of that name"),
        ("internal", "its 'internal' would be that of the table too"),
    ],
)
def test_the_reason_names_what_is_wrong(key: str, reason: str) -> None:
    assert refused_keys([key], flown=False) == {key: reason}


@pytest.mark.parametrize("stream", ["a stream", "a.b", "étalon", "it's 100%", "a" * 150])
def test_streams_that_are_taken_are_written_and_read_back(place: Place, stream: str) -> None:
    assert refused_stream(stream) is None
    read = place.derive(rows_of(["det"]), stream=stream)[stream].read()
    np.testing.assert_array_equal(read["det"][:, 0, 0, 0], [1, 2])


@pytest.mark.parametrize("stream", ["a/b", "a?b", "a#b", "%20", "a\nb", "{x}", "a" * 230])
def test_streams_that_are_refused_cannot_be_written(place: Place, stream: str, impatient: None) -> None:
    assert refused_stream(stream)
    with pytest.raises(REFUSALS):
        place.derive(rows_of(["det"]), stream=stream)


@pytest.mark.parametrize("stream", ["", ".", ".."])
def test_streams_that_would_lead_to_another_place_are_refused(stream: str) -> None:
    assert refused_stream(stream) == "it is no name in a URL"


# --- types

#: Values of a number in two rows, by the name of a column. Whatever comes first, the column holds floats.
NUMBERS: dict[str, tuple[Any, Any]] = {
    "int_then_float": (1, 2.5),
    "int_then_nan": (1, NAN),
    "numpy_int_then_float": (np.int64(1), 2.5),
    "unsigned_then_float": (np.uint64(1), 2.5),
    "bool_then_float": (True, 0.25),
    "numpy_bool_then_float": (np.bool_(True), 0.25),
    "none_then_float": (None, 0.25),
    "float_then_none": (0.25, None),
    "nan_then_int": (NAN, 3),
    "float32_then_float": (np.float32(0.5), 0.1),
    "array_then_int": (np.array(0.5), 2**60),
}
COLUMNS = with_numbers(NUMBERS)


def stored(value: Any) -> float:
    return NAN if value is None else float(value)


def odd_rows() -> list[dict[str, Row]]:
    """The first row has no symmetry, the second has, as where the first frame failed."""
    symmetries = (None, np.str_("2mm"))
    return [
        {"det": good_row(i + 1, COLUMNS, symmetry=symmetries[i], **{name: pair[i] for name, pair in NUMBERS.items()})}
        for i in range(2)
    ]


@pytest.mark.parametrize("batch_size", [1, 100])
def test_columns_have_one_type_whatever_the_first_row_holds(place: Place, batch_size: int) -> None:
    """The time of an event may be an int as well."""
    run = place.derive(odd_rows(), columns=COLUMNS, batch_size=batch_size, times=(10**9, 10**9 + 0.5))
    read = run["primary"].read()
    for name, pair in NUMBERS.items():
        assert read[f"det_{name}"].dtype == np.float64, name
        np.testing.assert_array_equal(read[f"det_{name}"], [stored(value) for value in pair], err_msg=name)
    assert [str(symmetry) for symmetry in read["det_symmetry"].values] == ["", "2mm"]
    times = np.asarray(run["primary"]["ts_det_ms"].read())
    np.testing.assert_array_equal(times, [1e9, 1e9 + 0.5])
    assert times.dtype == read["time"].dtype == np.float64


def test_by_itself_tiled_refuses_a_float_after_an_int(place: Place, impatient: None) -> None:
    """Control: the table has the type of the first row."""
    run = compose_run()
    writer = TiledWriter(place.client["denoised"], batch_size=1)
    writer("start", run.start_doc)
    keys = {"number": {"source": "test", "dtype": "number", "shape": []}}
    stream = run.compose_descriptor(name="primary", data_keys=keys)
    writer("descriptor", stream.descriptor_doc)
    write = (stream.compose_event(data={"number": each}, timestamps={"number": 0.0}) for each in (1, 2.5))
    writer("event", next(write))
    with pytest.raises(REFUSALS):
        writer("event", next(write))


@pytest.mark.parametrize("failed", [0, 1])
def test_a_failed_frame_does_not_decide_how_the_others_are_stored(place: Place, failed: int) -> None:
    rows = [{"det": good_row(7.0)}, {"det": good_row(7.0)}]
    rows[failed] = {"det": empty_row(SHAPE)}
    run = place.derive(rows)
    read, quality = run["primary"].read(), run.quality
    for name, kind in SCALARS.items():
        column = read[f"det_{name}"]
        if kind == "number":
            assert column.dtype == np.float64
            assert np.isnan(column).values.tolist() == [failed == 0, failed == 1]
            assert column[1 - failed] == 7
    assert quality["failed"].tolist() == [failed == 0, failed == 1]
    assert quality["symmetry"].tolist() == (["", "2mm"] if failed == 0 else ["2mm", ""])


# Of the websockets library, about how Tiled's client calls it.
@pytest.mark.filterwarnings(r"ignore:connect\(\) must be used as a context manager:DeprecationWarning")
@pytest.mark.parametrize("make", [odd_rows, lambda: [{"det": empty_row(SHAPE, COLUMNS)}, odd_rows()[1]]])
def test_live_subscribers_get_the_stored_types(place: Place, make: Callable[[], list[dict[str, Row]]]) -> None:
    seen: queue.SimpleQueue[Any] = queue.SimpleQueue()
    uid = str(uuid.uuid4())
    tables = []
    with subscribe_to_streams(
        place.client["denoised"], seen.put, streams={"primary": None}, run_filter=lambda created: created.key == uid
    ):
        place.derive(make(), columns=COLUMNS, uid=uid)
        while len(tables) < 2:
            update = seen.get(timeout=60)
            if isinstance(update.update, LiveTableData):
                tables.append(update.update.data())
    for row, table in enumerate(tables):
        assert table["seq_num"].tolist() == [row + 1]
        for name in COLUMNS:
            if COLUMNS[name] == "number":
                assert table[f"det_{name}"].dtype == table[f"ts_det_{name}"].dtype == np.float64, name
            else:
                assert isinstance(table[f"det_{name}"].iloc[0], str), name
    np.testing.assert_array_equal(tables[1]["det_int_then_float"], [2.5])


def test_the_descriptor_says_how_scalars_are_stored(place: Place) -> None:
    keys = place.derive(rows_of(["det"]))["primary"].metadata["data_keys"]
    assert {keys[f"det_{name}"]["dtype_numpy"] for name, kind in SCALARS.items() if kind == "number"} == {"<f8"}
    assert keys["det_symmetry"]["dtype_numpy"] == "<U64"


def test_a_fly_scan_keeps_the_symmetry_of_a_tilted_detector_whole(place: Place) -> None:
    symmetry = "2mm@123.456~60.000:-360.000:12345678.00"
    rows = [{"det": empty_row(SHAPE)}, {"det": good_row(symmetry=symmetry)}]
    read = place.derive(rows, flown=True)["primary"]["det_symmetry"].read()
    assert read.astype(str).tolist() == ["", symmetry]
