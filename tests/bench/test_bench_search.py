"""The catalogue that searches are measured on is one that Tiled could have written."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from bluesky_symdenoise import denoised_for
from bluesky_symdenoise.bench.load import population
from bluesky_symdenoise.bench.load.postgres import private_postgres
from bluesky_symdenoise.bench.load.search import _SEARCHES, _scan, catalogue, measured
from bluesky_symdenoise.errors import SymDenoiseError

pytestmark = pytest.mark.server


@pytest.mark.process
def test_copies_of_runs_are_whole_and_found(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/catalog.db"
    with catalogue(uri, tmp_path) as client:
        raw, denoised = _scan(client, tmp_path / "frames")
    filled = population.populate(uri, raw=raw, denoised=denoised, raw_runs=5, denoised_runs=3)
    assert (filled.raw, filled.denoised) == (5, 3)
    with closing(sqlite3.connect(tmp_path / "catalog.db")) as connection:
        depths = connection.execute("SELECT depth, count(*) FROM nodes_closure GROUP BY depth").fetchall()
    # Each node is below itself, and each but the root has a parent.
    assert dict(depths)[0] == filled.nodes
    assert dict(depths)[1] == filled.nodes - 1
    with catalogue(uri, tmp_path) as client:
        assert (len(client["raw"]), len(client["denoised"])) == (6, 4)
        copy = denoised_for(client, population.raw_uid(4))
        assert copy is not None
        assert copy.start["uid"] == population.derived_uid(4)
        assert set(copy["primary"]) == set(client["denoised"][denoised]["primary"])
        assert copy["primary"]["det"].shape == (2, 1, 64, 64)
        assert denoised_for(client, population.raw_uid(0)) is None


@pytest.mark.process
def test_every_search_is_measured_with_its_plan_on_postgresql(tmp_path: Path) -> None:
    try:
        with private_postgres(tmp_path):
            pass
    except SymDenoiseError as error:
        if "neither on the path" not in str(error):
            raise
        pytest.skip(str(error))
    figures = measured("postgresql", tmp_path, raw_runs=12, denoised_runs=8, repeats=1)
    assert {one.search for one in figures} == set(_SEARCHES)
    assert {one.nodes for one in figures} == {12 + 4 * 12 + 5 * 8}
    found = {one.search: one.found for one in figures}
    assert found["denoised_for(client, uid)"] == 1
    assert found["denoised_for, there is none"] == 0
    assert found["newest 10 of a model"] == 2
    for one in figures:
        assert 0 < one.database_ms < one.median_ms
        assert any("actual time" in line for line in one.plan)
