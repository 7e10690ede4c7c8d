"""Denoised runs are found by how they were made, on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, date, datetime
from typing import Any

import httpx
import pytest
import tiled.client.utils
from bluesky_tiled_plugins import TiledWriter
from bluesky_tiled_plugins.queries import TimeRange
from event_model import compose_run
from tiled.client import from_uri
from tiled.client.container import Container
from tiled.queries import Key, SpecsQuery

from bluesky_symdenoise import SymDenoiseError, denoised_for, find, raw_for
from bluesky_symdenoise.bench.load.postgres import private_postgres
from bluesky_symdenoise.bench.load.search import catalogue
from bluesky_symdenoise.catalog.client import SymDenoisedRun
from bluesky_symdenoise.catalog.server.serve import embedded_catalog
from bluesky_symdenoise.recipe import Recipe

pytestmark = pytest.mark.server

RAW = "0a000000-0000-4000-8000-000000000000"
FAST, PRECISE = "ab" * 32, "AbcD".lower() + "0" * 60
ASKED = {name: Recipe(FAST, "1", symmetry=name) for name in ("auto", "2mm")}
#: key: (raw uid, model, recipe, symmetry used, time)
RUNS = {
    "old": (RAW, ("fast", FAST), ASKED["auto"], {"2mm": ["primary/det"], "1": ["primary/side"]}, 999_999_999.5),
    "mid": (RAW, ("fast_2", PRECISE), ASKED["2mm"], {"2mm": ["primary/det"]}, 1_700_000_000),
    "new": (RAW, ("fast", FAST), ASKED["2mm"], {"2": ["primary/det"]}, 1_700_000_100.25),
    "other": ("0b" + RAW[2:], ("fast", FAST), ASKED["auto"], {"m": ["primary/det"]}, 1_700_000_050.5),
    "writing": ("0c" + RAW[2:], ("fast", FAST), ASKED["auto"], None, 1_700_000_200.0),
}


def _write(container: Container, uid: str, time: float, start: dict[str, Any], stop: dict[str, Any] | None) -> None:
    writer = TiledWriter(container, batch_size=1)
    run = compose_run(uid=uid, time=time, metadata=start)
    writer("start", run.start_doc)
    if stop is not None:
        writer("stop", run.compose_stop() | stop)


def _uid(name: str) -> str:
    return f"d{list(RUNS).index(name)}{RAW[2:]}"


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.process)])
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """A raw run, five denoised ones written out of order, and one that somebody else derived."""
    folder = tmp_path_factory.mktemp(request.param)
    with ExitStack() as stack:
        if request.param == "sqlite":
            root = stack.enter_context(embedded_catalog(folder))
        else:
            try:
                uri = stack.enter_context(private_postgres(folder))
            except SymDenoiseError as error:
                if "neither on the path" not in str(error):
                    raise
                pytest.skip(str(error))
            root = stack.enter_context(catalogue(uri, folder))
        _write(root["raw"], RAW, 1_600_000_000, {"scan_id": 1}, {})
        for name in ("new", "old", "mid", "other", "writing"):
            raw_uid, model, recipe, used, time = RUNS[name]
            made = {
                "model": {"name": model[0], "sha256": model[1]},
                "recipe": recipe.to_dict(),
                "recipe_sha256": recipe.sha256,
            }
            start = {"raw_uid": raw_uid, "tiled_specs": ["SymDenoised"], "provenance": made}
            stop = None if used is None else {"provenance": {"symmetry": used, "frames": 1, "failures": []}}
            _write(root["denoised"], _uid(name), time, start, stop)
        _write(root["denoised"], "e0" + RAW[2:], 1_800_000_000, {"raw_uid": RAW, "tiled_specs": ["Theirs"]}, {})
        clients = copy.copy(root.structure_clients)
        clients.set("SymDenoised", lambda: SymDenoisedRun)
        yield root.new_variation(structure_clients=clients)


def _names(runs: Any) -> list[str]:
    by_uid = {_uid(name): name for name in RUNS}
    return [by_uid[run.start["uid"]] for run in (runs if isinstance(runs, list) else runs.values())]


def test_all_denoised_runs_of_a_raw_run_come_newest_first(client):
    """By the number, not by its text: 999999999.5 comes before 1700000000."""
    assert _names(denoised_for(client, RAW, latest=False)) == ["new", "mid", "old"]
    assert _names(denoised_for(client["denoised"], RAW, latest=False)) == ["new", "mid", "old"]
    assert denoised_for(client, RAW).start["uid"] == _uid("new")
    assert denoised_for(client, "ff" + RAW[2:], latest=False) == []


def test_a_run_that_is_begun_anew_during_the_search_is_left_out(client, monkeypatch):
    """A writer that takes over an unfinished run deletes it and makes it again."""
    distinct = Container.distinct

    def and_one_that_is_gone(self, *keys):
        found = distinct(self, *keys)
        found["metadata"]["start.uid"].append({"value": "dd" + RAW[2:], "count": None})
        return found

    monkeypatch.setattr(Container, "distinct", and_one_that_is_gone)
    assert _names(denoised_for(client, RAW, latest=False)) == ["new", "mid", "old"]


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("fast", ["new", "old"]),
        ("fast_2", ["mid"]),
        (FAST, ["new", "old"]),
        (FAST[:8], ["new", "old"]),
        (PRECISE[:9].upper(), ["mid"]),
        ("fast%", []),
        ("f" * 8, []),
    ],
)
def test_denoised_runs_of_one_model(client, model, names):
    assert _names(denoised_for(client, RAW, model=model, latest=False)) == names
    first = denoised_for(client, RAW, model=model)
    assert first is None if not names else first.start["uid"] == _uid(names[0])


def test_find_gives_all_our_denoised_runs_newest_first(client):
    assert _names(find(client)) == ["writing", "other", "mid", "old", "new"]
    assert _names(find(client["denoised"])) == _names(find(client))
    assert all(isinstance(run, SymDenoisedRun) for run in find(client).values())
    assert len(find(client)) == 5


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ({"symmetry": "2mm"}, {"old", "mid"}),
        ({"symmetry": "2"}, {"new"}),
        ({"symmetry": "m"}, {"other"}),
        ({"symmetry": "1"}, {"old"}),
        ({"symmetry": "my"}, set()),
        ({"model": "fast_2"}, {"mid"}),
        ({"model": FAST[:10], "symmetry": "2mm"}, {"old"}),
        ({"recipe": ASKED["2mm"]}, {"mid", "new"}),
        ({"recipe": ASKED["2mm"].sha256[:12]}, {"mid", "new"}),
        ({"recipe": Recipe(PRECISE, "1")}, set()),
        ({"since": 1_700_000_050.5}, {"other", "new", "writing"}),
        ({"since": 1_700_000_051}, {"new", "writing"}),
        ({"since": datetime.fromtimestamp(1_700_000_100, UTC)}, {"new", "writing"}),
        ({"since": datetime.fromtimestamp(1_700_000_100)}, {"new", "writing"}),
        ({"since": "2023-11-14T22:15:01+00:00"}, {"writing"}),
        ({"since": "2023-11-20"}, set()),
        ({"since": date(2001, 9, 8)}, set(RUNS)),
        ({"since": date(2001, 9, 8), "model": "fast", "recipe": ASKED["auto"]}, {"old", "other", "writing"}),
    ],
)
def test_find_by_how_a_run_was_made(client, asked, names):
    assert set(_names(find(client, **asked))) == names


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"symmetry": "5"}, "must be one of"),
        ({"symmetry": "auto"}, r"asked for.*Key\(\"provenance.recipe.symmetry\"\)"),
        ({"since": "yesterday"}, "neither a time nor a date"),
        ({"recipe": "2mm"}, "hexadecimal"),
    ],
)
def test_what_cannot_be_searched_for_is_refused(client, asked, message):
    with pytest.raises(SymDenoiseError, match=message):
        find(client, **asked)


def test_what_was_found_can_be_searched_and_sorted_further(client):
    found = find(client, model="fast")
    assert set(_names(found.search(Key("provenance.recipe.symmetry") == "auto"))) == {"old", "other", "writing"}
    assert set(_names(found.search(TimeRange(since=1_700_000_060, until=1_700_000_150)))) == {"new"}
    assert _names(found.search(SpecsQuery(["Theirs"]))) == []
    assert _names(found.search(Key("raw_uid") == RAW).sort(("start.uid", 1))) == ["old", "new"]
    assert set(_names(find(found, symmetry="2mm"))) == {"old"}


def test_tiled_own_queries_find_denoised_runs(client):
    runs = client["denoised"]
    assert len(runs.search(SpecsQuery(["SymDenoised"]))) == 5
    assert set(_names(runs.search(Key("provenance.model.sha256") == PRECISE))) == {"mid"}
    assert set(_names(runs.search(Key("stop.provenance.frames") == 1).search(Key("raw_uid") == RAW))) == {
        "old", "mid", "new",
    }  # fmt: skip


def test_the_raw_run_is_found_back(client):
    assert raw_for(denoised_for(client, RAW)).start["uid"] == RAW


def test_a_server_that_is_gone_is_one_line_with_a_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(tiled.client.utils, "TILED_RETRY_ATTEMPTS", 1)
    with embedded_catalog(tmp_path) as root:
        _write(root["denoised"], _uid("new"), 1_700_000_000, {"raw_uid": RAW, "tiled_specs": ["SymDenoised"]}, {})
        context = root.context
        opened = from_uri(f"{context.api_uri}", api_key=context.api_key, trust_env=False)
        run = opened["denoised"][_uid("new")]
    try:
        with pytest.raises(httpx.TransportError):
            opened["denoised"]
        for search in (lambda: denoised_for(opened, RAW), lambda: find(opened), lambda: raw_for(run)):
            with pytest.raises(SymDenoiseError, match=r"cannot be reached .* check that it runs"):
                search()
    finally:
        opened.context.http_client.close()
