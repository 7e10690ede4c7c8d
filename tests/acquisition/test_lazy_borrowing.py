"""Lazy runs and Dask partitions whose rows borrow photons: each row reads its own window, and gives the same bits."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from bluesky_tiled_plugins import TiledWriter
from callback_runs import composed, write
from tiled.client.container import Container

from bluesky_symdenoise.acquisition.lazy.convert import evict, materialize
from bluesky_symdenoise.acquisition.lazy.register import register
from bluesky_symdenoise.acquisition.lazy.renew import _options
from bluesky_symdenoise.acquisition.past.recompute import recompute
from bluesky_symdenoise.acquisition.past.replay import replay
from bluesky_symdenoise.catalog import adapter
from bluesky_symdenoise.catalog.lazy.cache import FRAMES, RAW_FRAMES
from bluesky_symdenoise.catalog.lazy.parameters import LazyImage
from bluesky_symdenoise.cli import main
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.source import Source
from bluesky_symdenoise.physics.neighbours.scan import Scan
from bluesky_symdenoise.physics.neighbours.window import Borrow
from bluesky_symdenoise.recipe import Recipe

pytestmark = pytest.mark.server

HEIGHT, WIDTH = 32, 48
ROWS = 8
#: A map of 2 lines that run back and forth, as the start document of a grid scan states it.
SNAKE: dict[str, Any] = {
    "shape": [2, 4],
    "snaking": [False, True],
    "num_points": ROWS,
    "hints": {"dimensions": [[["y"], "primary"], [["x"], "primary"]]},
}


def frames(rows: int = ROWS) -> np.ndarray:
    """Frames (n, y, x) of a ring that slowly turns."""
    y, x = np.ogrid[:HEIGHT, :WIDTH]
    radius, azimuth = np.hypot(y - 15.5, x - 23.5), np.arctan2(y - 15.5, x - 23.5)
    turns = np.arange(rows)[:, None, None] * 0.01
    rate = 0.2 + 2 * np.exp(-((radius - 10) ** 2) / 20) * (1 + np.cos(2 * azimuth + turns))
    counts = np.random.default_rng(5).poisson(rate).astype(np.uint16)
    counts.flags.writeable = False
    return counts


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return Denoiser.pretrained(device="cpu", threads=1)


def written(client: Container, folder: Path, images: np.ndarray, start: dict[str, Any]) -> Any:
    """A raw run of these images in one HDF5 file."""
    path = folder / f"{np.random.default_rng().integers(2**62)}.h5"
    write(images, path)
    writer = TiledWriter(client["raw"])
    documents = composed(images, path, start=start)
    for name, doc in documents:
        writer(name, doc)
    return client["raw"][documents[0][1]["uid"]]


def read(run: Any) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(run["primary"]["det"]), np.asarray(run["primary"]["det_sigma"])


def same(one: Any, other: Any) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other), equal_nan=True)


def settle(run: Any) -> Any:
    """The run as the server has it now."""
    return run.parent[run.start["uid"]]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often each raw row is read from its file, with empty caches of the server at the beginning."""
    counted: Counter[int] = Counter()
    plain = Source.read

    def counting(self: Source, row: int) -> Any:
        counted[row] += 1
        return plain(self, row)

    monkeypatch.setattr(Source, "read", counting)
    adapter._cache.cache_clear()
    adapter._raw_cache.cache_clear()
    return counted


@pytest.mark.parametrize("start", [{}, SNAKE], ids=["series", "snake"])
@pytest.mark.parametrize("side", ["past", "both"])
def test_a_lazy_run_is_bit_for_bit_a_replayed_one(
    client: Container, home: Path, denoiser: Denoiser, side: str, start: dict[str, Any]
) -> None:
    raw = written(client, home / "frames", frames(), start)
    options: dict[str, Any] = {"denoiser": denoiser, "symmetry": "1", "borrow": side, "borrow_reach": 3}
    lazy = register(raw, client["denoised"], **options)
    assert lazy.start["provenance"]["recipe"]["borrow"] == f"{side}:3"
    got = read(lazy)
    assert np.isnan(lazy["primary"]["det_borrowed"].read()).all()
    lenders = list(lazy["primary"]["det_borrowed_from"].read())
    assert same(recompute(lazy, 5)["intensity"], got[0][5])
    lazy.delete(recursive=True, external_only=False)

    computed = replay(raw, into=client["denoised"], **options)
    assert computed.start["uid"] == lazy.start["uid"]
    assert all(same(one, other) for one, other in zip(got, read(computed), strict=True))
    borrowed = np.asarray(computed["primary"]["det_borrowed"].read())
    assert borrowed[-1] > 0
    assert list(computed["primary"]["det_borrowed_from"].read()) == lenders
    assert not same(denoiser(frames()[5], symmetry="1")["sigma"], got[1][5, 0])


def test_pixels_come_and_go_with_what_was_borrowed(client: Container, home: Path, denoiser: Denoiser) -> None:
    raw = written(client, home / "frames", frames(), SNAKE)
    run = register(raw, client["denoised"], denoiser=denoiser, symmetry="1", borrow="both", borrow_reach=2)
    got = read(run)
    materialize(run)
    stored = settle(run)
    assert all(same(one, other) for one, other in zip(got, read(stored), strict=True))
    borrowed = np.asarray(stored["primary"]["det_borrowed"].read())
    assert np.isfinite(borrowed).all()
    assert borrowed.max() > 0
    evict(stored)
    again = settle(run)
    assert all(same(one, other) for one, other in zip(got, read(again), strict=True))
    assert same(borrowed, again["primary"]["det_borrowed"].read())


def test_a_row_reads_its_window_and_no_more(
    client: Container, home: Path, denoiser: Denoiser, reads: Counter[int]
) -> None:
    raw = written(client, home / "frames", frames(), {})
    run = register(raw, client["denoised"], denoiser=denoiser, symmetry="1", borrow="both", borrow_reach=2)
    adapter._cache.cache_clear()
    adapter._raw_cache.cache_clear()
    reads.clear()
    np.asarray(run["primary"]["det"][4, 0, 3:5, 7])
    assert reads == Counter([2, 3, 4, 5, 6])
    np.asarray(run["primary"]["det"][0])
    assert reads == Counter([2, 3, 4, 5, 6, 0, 1])


def test_rows_read_in_order_share_raw_frames(
    client: Container, home: Path, denoiser: Denoiser, reads: Counter[int]
) -> None:
    raw = written(client, home / "frames", frames(), SNAKE)
    run = register(raw, client["denoised"], denoiser=denoiser, symmetry="1", borrow="both")
    adapter._cache.cache_clear()
    adapter._raw_cache.cache_clear()
    reads.clear()
    for row in range(ROWS):
        np.asarray(run["primary"]["det"][row])
    assert reads == Counter(range(ROWS))


def test_the_cache_of_raw_frames_is_bounded(
    client: Container, home: Path, denoiser: Denoiser, reads: Counter[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = written(client, home / "frames", frames(), {})
    run = register(raw, client["denoised"], denoiser=denoiser, symmetry="1", borrow="past", borrow_reach=2)
    monkeypatch.setenv(adapter.RAW_CACHE_VARIABLE, "0")
    adapter._cache.cache_clear()
    adapter._raw_cache.cache_clear()
    reads.clear()
    held = RAW_FRAMES.labels("hit")._value.get()
    for row in range(3, 6):
        np.asarray(run["primary"]["det"][row])
    assert reads == Counter([1, 2, 3, 2, 3, 4, 3, 4, 5])
    assert RAW_FRAMES.labels("hit")._value.get() == held
    adapter._raw_cache.cache_clear()


def test_a_file_that_only_lends_must_be_as_registered_too(
    client: Container, home: Path, denoiser: Denoiser, tmp_path: Path
) -> None:
    images = frames(4)
    folder = home / "frames"
    paths = [write(images[rows], folder / f"{tmp_path.name}-{rows.start}.h5") for rows in (slice(0, 2), slice(2, 4))]
    documents = composed(images, paths[0])
    writer = TiledWriter(client["raw"])
    resource = next(doc for name, doc in documents if name == "stream_resource")
    second = resource | {"uid": "second", "uri": f"file://localhost{paths[1]}"}
    for name, doc in documents:
        if name == "stream_datum" and doc["indices"]["start"] >= 2:
            doc = doc | {"stream_resource": "second", "uid": f"second/{doc['indices']['start']}"}
        writer(name, doc)
        if name == "stream_resource":
            writer(name, second)
    raw = client["raw"][documents[0][1]["uid"]]
    run = register(raw, client["denoised"], denoiser=denoiser, symmetry="1", borrow="past", borrow_reach=2)
    array = run["primary"]["det"]
    assert array[3].shape == (1, HEIGHT, WIDTH)
    with h5py.File(paths[0], "r+") as file:
        file["counts"][0] = 0
    paths[0].touch()
    computed = FRAMES.labels("computed")._value.get()
    answer = array.context.http_client.get(array.item["links"]["full"], params={"slice": "3,0,0,0"})
    assert (answer.status_code, "changed since" in answer.text) == (422, True)
    assert FRAMES.labels("computed")._value.get() == computed


def test_nothing_is_served_without_a_frame_that_was_to_lend(
    client: Container, home: Path, denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame that cannot be read now may be there later: the pixels would change."""
    raw = written(client, home / "frames", frames(), {})
    run = register(raw, client["denoised"], denoiser=denoiser, symmetry="1", borrow="past", borrow_reach=1)
    plain = Source.read

    def unreadable(self: Source, row: int) -> Any:
        if row == 4:
            raise SymDenoiseError("row 4", rule="it cannot be read", remedy="check the raw run's files")
        return plain(self, row)

    monkeypatch.setattr(Source, "read", unreadable)
    adapter._raw_cache.cache_clear()
    array = run["primary"]["det"]
    for row, code in ((3, 200), (5, 422), (6, 200)):
        given = {"slice": f"{row},0,0,0", "format": "application/json"}
        answer = array.context.http_client.get(array.item["links"]["full"], params=given)
        assert answer.status_code == code, row
    with pytest.raises(SymDenoiseError, match="row 4: it cannot be read"):
        materialize(run)


def test_an_algorithm_that_cannot_borrow_is_refused(client: Container, home: Path) -> None:
    raw = written(client, home / "frames", frames(2), {})
    older = Denoiser.pretrained(device="cpu", threads=1, algorithm="6")
    with pytest.raises(SymDenoiseError, match="algorithm 6"):
        register(raw, client["denoised"], denoiser=older, symmetry="1", borrow="past")
    assert not [run for run in client["denoised"].values() if run.start["raw_uid"] == raw.start["uid"]]


def test_a_run_that_goes_on_is_not_registered(client: Container, home: Path, denoiser: Denoiser) -> None:
    path = home / "frames" / "growing.h5"
    documents = composed(frames(), write(frames(), path))
    writer = TiledWriter(client["raw"], batch_size=1)
    for name, doc in documents[:-1]:
        writer(name, doc)
    raw = client["raw"][documents[0][1]["uid"]]
    for side in ("past", "both"):
        with pytest.raises(SymDenoiseError, match="no stop document yet; register it when it has ended"):
            register(raw, client["denoised"], denoiser=denoiser, borrow=side)


def test_the_command_registers_with_borrowing(
    client: Container, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = written(client, home / "frames", frames(), SNAKE)
    monkeypatch.setenv("TILED_API_KEY", client.context.api_key)
    uri = str(client.context.api_uri).removesuffix("/api/v1/")
    given = ["--borrow", "both", "--borrow-reach", "2", "--symmetry", "1", "--threads", "1"]
    with pytest.raises(SystemExit) as ended:
        main(["register", uri, raw.start["uid"], *given])
    assert ended.value.code in (0, None)
    uid = capsys.readouterr().out.split()[-1]
    run = client["denoised"][uid]
    assert run.start["provenance"]["recipe"]["borrow"] == "both:2"
    (source,) = run["primary"]["det"].data_sources()
    image = LazyImage.from_dict(source.parameters)
    assert (image.rows, image.scan) == (ROWS, Scan((2, 4), (False, True)))
    kept = _options(run, raw)
    assert (kept["borrow"], kept["borrow_reach"]) == ("both", 2)


HARMS = {
    "rows": [("rows", 0), ("rows", None), ("rows", 2**40), ("rows", True)],
    "scan": [("scan", [3, 4]), ("scan", [[3], [True, False], 1]), ("scan", [[3, 0], [False, True], 1])],
    "borrow": [("borrow", "both:0"), ("borrow", "both:08"), ("borrow", "all:8"), ("borrow", "both"), ("borrow", 8)],
}


@pytest.mark.parametrize(("name", "value"), [each for harms in HARMS.values() for each in harms])
def test_parameters_that_somebody_made_up_are_refused(
    client: Container, home: Path, denoiser: Denoiser, name: str, value: Any
) -> None:
    stored = made_up()
    assert LazyImage.from_dict(stored).lenders(5) == Borrow("both", 2).rows(5, ROWS, Scan((2, 4), (False, True)))
    if name == "borrow":
        stored["recipe"] = stored["recipe"] | {"borrow": value}
    else:
        stored[name] = value
    with pytest.raises(SymDenoiseError):
        LazyImage.from_dict(stored)


def made_up() -> dict[str, Any]:
    """Parameters of a lazy image whose rows borrow."""

    recipe = Recipe(model_sha256="0" * 64, algorithm="7", borrow="both:2")
    return LazyImage(
        quantity="intensity",
        recipe=recipe,
        model="fast",
        device="cpu",
        threads=1,
        point_group="1",
        beam_center=None,
        first_row=0,
        mimetype="application/x-hdf5",
        shape=(ROWS, 1, HEIGHT, WIDTH),
        dtype="<u2",
        dataset="counts",
        stamps=((1, 1),),
        rows=ROWS,
        scan=Scan((2, 4), (False, True)),
    ).to_dict()


def test_windows_of_large_frames_are_refused_with_a_remedy() -> None:
    stored = made_up()
    stored["recipe"] = stored["recipe"] | {"borrow": "both:64"}
    stored["shape"] = [ROWS, 1, 5000, 6000]
    with pytest.raises(SymDenoiseError, match="smaller borrow_reach"):
        LazyImage.from_dict(stored)
