"""What Tiled hands out of a denoised run: pictures, report page, NeXus; and to whom it shows raw frames."""

from __future__ import annotations

import asyncio
import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import h5py
import httpx
import numpy as np
import pytest
from nexusformat.nexus import nxload
from PIL import Image
from raw_runs import write_run
from tiled.catalog import from_uri as catalog_from_uri
from tiled.client.base import BaseClient
from tiled.client.container import Container
from tiled.server.utils import filter_for_access

from bluesky_symdenoise import __version__, embedded_catalog, replay
from bluesky_symdenoise.catalog.exporters import report_html
from bluesky_symdenoise.catalog.report import nexus_export
from bluesky_symdenoise.catalog.report.self_check import self_check_section
from bluesky_symdenoise.catalog.server import serve
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.files import open_frames

pytestmark = [pytest.mark.server, pytest.mark.process]

SHAPE = (64, 80)
CENTER = (31.5, 39.5)
KEY = "exportKey1"


def rings(frames: int = 3) -> np.ndarray:
    y, x = np.ogrid[: SHAPE[0], : SHAPE[1]]
    radius = np.hypot(y - CENTER[0], x - CENTER[1])
    rate = 0.3 + 9 * np.exp(-((radius - 18) ** 2) / 20)
    return np.random.default_rng(7).poisson(rate, (frames, *SHAPE)).astype(np.uint16)


@pytest.fixture(scope="module")
def client(home: Path) -> Iterator[Container]:
    with embedded_catalog(home, api_key=KEY) as client:
        yield client


def derived(client: Container, home: Path, denoiser: Denoiser, counts: np.ndarray, **asked: Any) -> Any:
    uid = write_run(client["raw"], home / "frames", {"det": counts}, scalars={"motor": list(range(len(counts)))})
    about = {"symmetry": "2mm", "beam_center": CENTER}
    return replay(client["raw"][uid], into=client["denoised"], denoiser=denoiser, **{**about, **asked})


@pytest.fixture(scope="module")
def run(client: Container, home: Path, denoiser: Denoiser) -> Any:
    mask = np.zeros(SHAPE, bool)
    mask[5:9] = True
    return derived(client, home, denoiser, rings(), mask=mask)


def fetched(client: Container, path: str, media_type: str, **more: str) -> httpx.Response:
    headers = {"Authorization": f"Apikey {KEY}"}
    url = f"{client.context.api_uri}{path}"
    return httpx.get(url, params={"format": media_type, **more}, headers=headers, timeout=120)


def report(client: Container, run: Any, parameters: str = "") -> httpx.Response:
    return fetched(client, f"container/full/denoised/{run.start['uid']}", f"text/html{parameters}")


# --- pictures


def test_denoised_images_are_drawn_by_our_own_exporter(client: Container, run: Any) -> None:
    path = f"array/full/denoised/{run.start['uid']}/primary/"
    for name in ("det", "det_sigma"):
        assert [spec.name for spec in run.base["primary"].base[name].specs] == ["SymDenoisedImage"]
        answer = fetched(client, path + name, "image/png", slice="0,0")
        assert answer.status_code == 200
        assert np.asarray(Image.open(io.BytesIO(answer.content))).shape == (*SHAPE, 3)
    assert fetched(client, path + "det", "image/png", slice="0,0,0").status_code == 406


def test_a_run_is_complete_where_its_images_cannot_be_marked(
    client: Container, home: Path, denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    update = BaseClient.update_metadata

    def refuse_specs(self: Any, *given: Any, specs: Any = None, **more: Any) -> None:
        if specs is not None:
            raise httpx.ConnectError("gone")
        update(self, *given, **more)

    monkeypatch.setattr(BaseClient, "update_metadata", refuse_specs)
    made = derived(client, home, denoiser, rings(1))
    assert made.metadata["stop"]["exit_status"] == "success"
    assert "not marked, so Tiled draws their pictures (gone)" in caplog.text


# --- NeXus


def test_an_export_holds_images_scalars_and_provenance_as_nexus(client: Container, run: Any, tmp_path: Path) -> None:
    path = tmp_path / "run.nxs"
    run.export(path)
    events = run["primary"].read()
    with h5py.File(path) as file:
        entry = file[file.attrs["default"]]
        data = entry[entry.attrs["default"]]
        assert data.attrs["signal"] == "det"
        for name in ("det", "det_sigma"):
            np.testing.assert_array_equal(data[name], events[name][:, 0])
            assert data[name].compression == "gzip"
        np.testing.assert_array_equal(data["det_errors"], events["det_sigma"][:, 0])
        np.testing.assert_array_equal(entry["events/det_counts_in"], events["det_counts_in"])
        process = entry["process"]
        assert process.attrs["NX_class"] == "NXprocess"
        assert process["program"].asstr()[()] == "bluesky-symdenoise"
        assert process["version"].asstr()[()] == __version__
        assert process["parameters"].attrs["NX_class"] == "NXparameters"
        recipe = run.start["provenance"]["recipe"]
        assert process["parameters/recipe_symmetry"].asstr()[()] == recipe["symmetry"] == "2mm"
        np.testing.assert_array_equal(process["parameters/recipe_beam_center"], CENTER)
        assert process["parameters/model_sha256"].asstr()[()] == run.start["provenance"]["model"]["sha256"]
        assert json.loads(process["provenance/data"].asstr()[()])["outcome"]["complete"] is True


@pytest.mark.parametrize("made", ["export", "own"])
def test_nexus_programs_open_the_image_with_its_errors(run: Any, home: Path, tmp_path: Path, made: str) -> None:
    if made == "export":
        path = tmp_path / "run.nxs"
        run.export(path)
    else:
        path = home / "denoised" / f"{run.start['uid']}-primary.h5"
    shown = nxload(path).plottable_data
    assert shown.nxsignal.shape == ((3, *SHAPE) if made == "export" else (3, 1, *SHAPE))
    assert shown.nxerrors.shape == shown.nxsignal.shape
    assert [axis.nxname for axis in shown.nxaxes[-2:]] == ["y", "x"]
    with open_frames(path) as stack:
        assert stack.shape == (3, *SHAPE)


def test_parts_can_be_exported(client: Container, run: Any) -> None:
    path = f"container/full/denoised/{run.start['uid']}"
    answer = fetched(client, path, "application/x-nexus;frames=1-2")
    with h5py.File(io.BytesIO(answer.content)) as file:
        np.testing.assert_array_equal(file["entry/data/det"], run["primary"].read()["det"][1:, 0])
        assert list(file["entry/events/seq_num"]) == [2, 3]


@pytest.mark.parametrize("media_type", ["application/x-nexus", "text/html"])
def test_frames_mean_the_same_in_a_report_and_in_an_export(client: Container, run: Any, media_type: str) -> None:
    def answered(frames: str) -> httpx.Response:
        return fetched(client, f"container/full/denoised/{run.start['uid']}", f"{media_type};frames={frames}")

    def shown(frames: str) -> list[int]:
        answer = answered(frames)
        if media_type == "text/html":
            return [number for number in range(3) if f"<h3>Frame {number}</h3>" in answer.text]
        with h5py.File(io.BytesIO(answer.content)) as file:
            return [int(number) - 1 for number in file["entry/events/seq_num"]]

    for frames, numbers in {"1": [1], "0-1": [0, 1], "0+2": [0, 2], "0 2": [0, 2], "2+0-1+1": [0, 1, 2]}.items():
        assert shown(frames) == numbers
    for beyond in ("3", "2-3", "0+7", "0-999999999" if media_type == "application/x-nexus" else "5-9"):
        answer = answered(beyond)
        assert (answer.status_code, "the run has 0 to 2" in answer.json()["detail"]) == (416, True)
    for malformed in ("a", "1-", "-1", "1-2-3", "2-1", "0++1", "9" * 30, "0+" * 200 + "0"):
        assert answered(malformed).status_code == 400


def test_an_export_that_is_too_large_says_how_to_get_it(
    client: Container, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nexus_export, "MOST_BYTES", 2 * 2 * 4 * SHAPE[0] * SHAPE[1])
    path = f"container/full/denoised/{run.start['uid']}"
    answer = fetched(client, path, "nxs")
    assert answer.status_code == 413
    assert "frames=0-1" in answer.json()["detail"]
    assert fetched(client, path, "application/x-nexus;frames=0-1").status_code == 200


# --- the report


def test_the_report_shows_the_frames_that_are_asked_for(client: Container, run: Any) -> None:
    page = report(client, run).text
    assert [f"<h3>Frame {number}</h3>" in page for number in range(3)] == [True] * 3
    assert page.count("data:image/png;base64,") == 3
    assert "inversion (2)" in page
    assert run.start["provenance"]["model"]["sha256"] in page
    one = report(client, run, ";frames=1").text
    assert "<h3>Frame 1</h3>" in one
    assert one.count("data:image/png;base64,") == 1
    assert report(client, run, ";frames=3").status_code == 416
    assert report(client, run, ";frames=0-6").status_code == 400


def test_the_report_shows_the_self_check(client: Container, run: Any) -> None:
    page = report(client, run).text
    assert f"<h2>Self-check: {run.self_check.verdict}</h2>" in page
    assert "correlation of residuals" in page
    assert "<svg" in page
    assert escape(run.methods) in page
    # A stop document is written by whoever may write runs.
    check = {**run.self_check.to_dict(), "images": [{"stream": "<b>", "data_key": "x", "verdict": "agrees"}]}
    forged = self_check_section(dict(run.start), {"provenance": {"self_check": check}})
    assert "<h2>Self-check: not computed</h2>" in forged
    assert "<b>" not in forged


def test_a_report_of_a_part_names_its_rows(client: Container, home: Path, denoiser: Denoiser, run: Any) -> None:
    page = report(client, derived(client, home, denoiser, rings(4), rows=[1, 3])).text
    assert "<h3>Frame 0, row 1 of the raw run</h3>" in page
    assert "<h3>Frame 1, row 3 of the raw run</h3>" in page
    assert "<th>rows of the raw run</th><td>1:4:2</td>" in page
    # Control: a whole run has the rows of its raw run.
    assert "of the raw run" not in report(client, run, ";frames=0").text.split("<h2>Provenance</h2>")[0]


def test_a_report_warns_of_frames_that_failed(client: Container, home: Path, denoiser: Denoiser) -> None:
    counts = rings()
    counts[1] = 65535
    page = report(client, derived(client, home, denoiser, counts)).text
    assert "Failed, 1 frames:" in page
    assert "all pixels masked" in page
    assert "This frame was not denoised" in page


def test_without_its_raw_run_a_report_shows_what_it_has_and_says_so(
    client: Container, home: Path, denoiser: Denoiser
) -> None:
    made = derived(client, home, denoiser, rings(2))
    client["raw"][made.start["raw_uid"]].delete(recursive=True, external_only=False)
    page = report(client, made).text
    assert "The raw frames are not shown" in page
    assert "inversion (2)" not in page
    assert page.count("data:image/png;base64,") == 2


class RawIsNotYours:
    """An access policy that lets this principal read all but runs of the container `raw`."""

    def __init__(self, hidden: set[str]) -> None:
        self.hidden = hidden

    async def allowed_scopes(self, node: Any, principal: Any, tags: Any, scopes: Any) -> set[str]:
        return {"read:metadata"} if node.node.key in self.hidden else {"read:metadata", "read:data"}

    async def filters(self, *_: Any) -> list[Any]:
        return []


def served_to(home: Path, uid: str, allowed: Any) -> str:
    """The report as the exporter makes it for a request with the given rights."""

    async def page() -> bytes:
        root = catalog_from_uri(
            f"sqlite:///{home}/catalog.db",
            readable_storage=[str(home / name) for name in ("frames", "denoised")],
            writable_storage=[f"sqlite:///{home}/tables.db"],
            storage_pool_size=1,
            storage_max_overflow=0,
        )
        await root.startup()
        try:
            run = await root.lookup_adapter(["denoised", uid])
            blocks = await report_html("text/html;frames=0", run, run.metadata(), allowed)
            return b"".join([block async for block in blocks])
        finally:
            await root.shutdown()

    return asyncio.run(page()).decode()


def test_raw_frames_are_shown_to_those_only_who_may_read_them(client: Container, run: Any, home: Path) -> None:
    uid, raw_uid = run.start["uid"], run.start["raw_uid"]

    def rights(policy: Any) -> Any:
        return partial(
            filter_for_access,
            access_policy=policy,
            principal=None,
            authn_access_tags=None,
            authn_scopes={"read:data"},
            scopes=["read:data"],
            metrics=defaultdict(Counter),
        )

    async def unknown(node: Any) -> Any:
        return node

    for allowed in (rights(None), rights(RawIsNotYours(set()))):
        assert "inversion (2)" in served_to(home, uid, allowed)
    for allowed in (rights(RawIsNotYours({raw_uid})), unknown):
        page = served_to(home, uid, allowed)
        assert "you may not read it" in page
        assert "inversion (2)" not in page


def test_the_configuration_offers_all_of_it() -> None:
    """The file at the top is what a facility copies from."""
    offered = serve.embedded_config(Path("somewhere"), api_key="abc").media_types
    assert set(offered["SymDenoised"]) == {"text/html", "application/x-nexus", "application/x-hdf5"}
    assert set(offered["SymDenoisedImage"]) == {"image/png"}
