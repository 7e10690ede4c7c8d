"""Runs of databroker: in MongoDB (mongomock behind a real Tiled server), by v1 Headers, v2 runs, and as documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from event_model import compose_run
from past_runs import FRAMES, pixels, scan
from tiled.client import from_uri
from tiled.client.container import Container
from tiled.config import Authentication
from tiled.server.app import build_app
from tiled.server.simple import ThreadedServer

from bluesky_symdenoise import replay
from bluesky_symdenoise.catalog.server.serve import embedded_catalog
from bluesky_symdenoise.denoiser.infer import Denoiser

mongo_normalized = pytest.importorskip("databroker.mongo_normalized", exc_type=ImportError)
v1 = pytest.importorskip("databroker.v1", exc_type=ImportError)

pytestmark = pytest.mark.server

KEY = "mongoKey"


@pytest.fixture(scope="module")
def mongo(home: Path) -> Iterator[Container]:
    """Client of a catalogue in MongoDB with one run: external frames (NPY_SEQ) and inline ones."""
    tree = mongo_normalized.MongoAdapter.from_mongomock()
    app = build_app(tree, authentication=Authentication(single_user_api_key=KEY, allow_anonymous_access=False))
    server = ThreadedServer(uvicorn.Config(app, port=0, loop="asyncio", log_level="error"))
    with server.run_in_thread() as url:
        client = from_uri(f"{url}/api/v1", api_key=KEY)
        insert(client, home)
        yield client
        client.context.http_client.close()


def insert(client: Any, folder: Path) -> None:
    run, counts = compose_run(metadata={"hints": {"dimensions": [[["stage"], "primary"]]}}), scan()
    resource = run.compose_resource(spec="NPY_SEQ", root=str(folder), resource_path="frame", resource_kwargs={})
    external = {"source": "t", "dtype": "array", "dtype_numpy": "<u2", "shape": [48, 56], "external": "FILESTORE:"}
    stage = {"source": "t", "dtype": "number", "shape": []}
    inline = {"source": "t", "dtype": "array", "dtype_numpy": "<i8", "shape": [48, 56]}
    stream = run.compose_descriptor(name="primary", data_keys={"det": external, "inline": inline, "stage": stage})
    client.post_document("start", run.start_doc)
    client.post_document("descriptor", stream.descriptor_doc)
    client.post_document("resource", resource.resource_doc)
    for row, frame in enumerate(counts):
        np.save(folder / f"frame_{row}.npy", frame)
        datum = resource.compose_datum(datum_kwargs={"index": row})
        client.post_document("datum", datum)
        data = {"det": datum["datum_id"], "inline": frame.tolist(), "stage": row / 2}
        event = stream.compose_event(data=data, timestamps=dict.fromkeys(data, 0.0), filled={"det": False})
        client.post_document("event", event)
    client.post_document("stop", run.compose_stop())


@pytest.fixture(scope="module")
def client(home: Path) -> Iterator[Container]:
    with embedded_catalog(home / "catalog") as client:
        yield client


def run_of(mongo: Any) -> Any:
    return mongo.values().last()


#: What users of databroker hold.
HELD = {
    "a v2 run": run_of,
    "a v1 Header": lambda mongo: v1.Broker(mongo)[run_of(mongo).start["uid"]],
    "documents of a v2 run": lambda mongo: run_of(mongo).documents(),
    "documents of a Header": lambda mongo: v1.Broker(mongo)[run_of(mongo).start["uid"]].documents(),
}


@pytest.mark.parametrize("held", HELD)
def test_in_memory(mongo: Any, denoiser: Denoiser, held: str) -> None:
    lazy = replay(HELD[held](mongo), denoiser=denoiser).compute()
    assert lazy.stage.values.tolist() == [row / 2 for row in range(FRAMES)]
    for key in ("det", "inline"):
        np.testing.assert_array_equal(lazy[key], scan())
        for row in range(1, FRAMES):
            alone = denoiser(scan()[row], symmetry="1")
            error = np.abs(lazy[f"{key}_denoised"][row] - alone.intensity.values) / alone.sigma.values
            assert float(error.median()) < 1
    np.testing.assert_array_equal(lazy.det_denoised, lazy.inline_denoised)


@pytest.mark.parametrize("held", HELD)
def test_into_a_catalogue(mongo: Any, client: Container, denoiser: Denoiser, held: str) -> None:
    """The derived run is stored in SQL, and is not made again whichever object the run is given as."""
    run = replay(HELD[held](mongo), into=client["denoised"], denoiser=denoiser)
    assert run.start["raw_uid"] == run_of(mongo).start["uid"]
    assert len(client["denoised"]) == 1
    expected = replay(run_of(mongo), denoiser=denoiser)
    np.testing.assert_array_equal(pixels(run)[0], expected.det_denoised)
    np.testing.assert_array_equal(run["primary"]["time"].read(), expected.time)


def test_frames_of_a_block_are_asked_for_once(mongo: Any, denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server would read a whole block of frames for each of them."""
    asked: list[str] = []
    http = mongo.context.http_client
    send = http.send
    monkeypatch.setattr(http, "send", lambda request, **more: asked.append(str(request.url)) or send(request, **more))
    replay(run_of(mongo), denoiser=denoiser, data_keys=["det"]).det_denoised.compute()
    assert sum("/array/" in url and "/det" in url for url in asked) == 1


def test_v1_on_a_sql_catalogue(client: Container, home: Path, denoiser: Denoiser, write_run: Any) -> None:
    uid = write_run(client["raw"], home / "catalog" / "frames", {"det": scan()})
    of_header = replay(client["raw"].v1[uid], into=client["denoised"], denoiser=denoiser)
    of_run = replay(client["raw"][uid], into=client["denoised"], denoiser=denoiser)
    assert of_header.start["uid"] == of_run.start["uid"]
    assert of_header.start["provenance"]["wasGeneratedBy"]["activity"] == "replay"
