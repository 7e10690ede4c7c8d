"""`tiled_config.yml` as an engineer uses it: word for word, with PostgreSQL, with Redis."""

from __future__ import annotations

import json
import queue
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bluesky_tiled_plugins import TiledWriter, subscribe_to_streams
from event_model import compose_run
from facility import KEY, TiledProcess, postgres, scan, tiled_process
from servers import private_redis

from bluesky_symdenoise import SymDenoiseError, aligned, denoised_for
from bluesky_symdenoise.catalog.store.containers import prepare

pytestmark = [pytest.mark.server, pytest.mark.process]


def works(server: TiledProcess, frames: Path) -> None:
    """A scan is written, denoised and read back; so is a run of arrays and scalars that Tiled itself stores."""
    client = server.client()
    prepare(client, frames=frames)
    uid, status = scan(client["raw"], client["denoised"], frames)
    assert status.ok, status
    run = denoised_for(client, uid)
    both = aligned(client["raw"][uid], run)
    assert both["det_denoised"].shape == both["det"].shape == (2, 1, 64, 80)
    assert np.isfinite(both["det_denoised"]).all()
    assert len(list(run.documents())) > 2, "the exporter of documents is there"

    inside = compose_run()
    writer = TiledWriter(client["raw"])
    writer("start", inside.start_doc)
    keys = {
        "motor": {"source": "test", "dtype": "number", "shape": []},
        "image": {"source": "test", "dtype": "array", "dtype_numpy": "<f8", "shape": [8, 9]},
    }
    descriptor = inside.compose_descriptor(name="primary", data_keys=keys)
    writer("descriptor", descriptor.descriptor_doc)
    data = {"motor": 1.5, "image": np.arange(72.0).reshape(8, 9)}
    writer("event", descriptor.compose_event(data=data, timestamps=dict.fromkeys(data, 0.0), seq_num=1))
    writer("stop", inside.compose_stop())
    events = client["raw"][inside.start_doc["uid"]]["primary"].read()
    assert events["motor"].values == [1.5]
    np.testing.assert_array_equal(events["image"][0], data["image"])


def test_the_configuration_works_word_for_word_in_an_empty_folder(tmp_path: Path) -> None:
    with tiled_process(tmp_path / "server") as server:
        works(server, server.folder / "symdenoise-data" / "frames")
        assert KEY not in Path(f"/proc/{server.pid}/cmdline").read_text()
    made = {path.name for path in server.folder.iterdir()}
    assert {"symdenoise-catalog.db", "symdenoise-tables.db", "symdenoise-data"} <= made


def test_preparing_twice_changes_nothing(tmp_path: Path) -> None:
    with tiled_process(tmp_path / "server") as server:
        client = server.client()
        for _ in range(2):
            prepare(client, frames=tmp_path)
        assert list(client) == ["raw", "denoised"]
        assert len(client["denoised"].metadata_revisions[:]) == 1
        with pytest.raises(SymDenoiseError, match="itself a catalogue"):
            prepare(client["raw"], frames=tmp_path)


# Of the websockets library, about how Tiled's client calls it.
@pytest.mark.filterwarnings(r"ignore:connect\(\) must be used as a context manager:DeprecationWarning")
def test_postgresql_and_redis_by_environment_variables(tmp_path: Path) -> None:
    """Catalogue and tables in one database server, live data through Redis; the file is not edited."""
    frames, folder = tmp_path / "frames", tmp_path / "server"
    with (
        postgres(tmp_path) as database,
        private_redis(tmp_path) as redis,
        tiled_process(
            folder,
            TILED_CATALOG_URI=database,
            TILED_CATALOG_WRITABLE_STORAGE=json.dumps([str(tmp_path / "arrays"), database.replace("+asyncpg", "")]),
            TILED_CATALOG_READABLE_STORAGE=json.dumps([str(frames), str(tmp_path / "denoised")]),
            TILED_STREAMING_CACHE_URI=redis,
        ) as server,
    ):
        client = server.client()
        prepare(client, frames=frames)
        seen: queue.SimpleQueue[Any] = queue.SimpleQueue()
        with subscribe_to_streams(client["raw"], seen.put, streams={"primary": ["det"]}):
            uid, _ = scan(client["raw"], client["denoised"], frames, frames=1)
            assert seen.get(timeout=60).run_uid == uid
        works(server, frames)
        tables = client["denoised"].values().first()["primary"].base["internal"]
        assert tables.data_sources()[0].assets[0].data_uri.startswith("postgresql:")
    assert not list(folder.glob("*.db")), "nothing was written to SQLite"
