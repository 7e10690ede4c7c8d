"""Denoised runs that store no pixels: they read as computed ones do, whatever holds the raw frames."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
from bluesky_tiled_plugins import TiledWriter
from event_model import compose_run
from tiled.client import from_uri
from tiled.client.container import Container
from tiled.utils import path_from_uri

from bluesky_symdenoise.acquisition.lazy.callback import RegisterCallback
from bluesky_symdenoise.acquisition.lazy.convert import evict, materialize
from bluesky_symdenoise.acquisition.lazy.register import register
from bluesky_symdenoise.acquisition.past.recompute import recompute
from bluesky_symdenoise.acquisition.past.replay import replay
from bluesky_symdenoise.catalog.client import _summary
from bluesky_symdenoise.catalog.find.query import find
from bluesky_symdenoise.catalog.lazy.cache import FRAMES, Pair, RowCache
from bluesky_symdenoise.catalog.lazy.parameters import MIMETYPE
from bluesky_symdenoise.cli import main
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.derived.columns import PENDING
from bluesky_symdenoise.errors import SymDenoiseError

pytestmark = pytest.mark.server

HEIGHT, WIDTH = 32, 48
ROWS = 3


def frames(seed: int = 3) -> np.ndarray:
    """Frames (n, y, x) of which the first is dark."""
    y, x = np.ogrid[:HEIGHT, :WIDTH]
    away = np.abs(np.abs(y - 15.5) - 6) ** 2 + np.abs(np.abs(x - 23.5) - 12) ** 2
    counts = np.random.default_rng(seed).poisson(0.5 + 8 * np.exp(-away / 30), (ROWS, HEIGHT, WIDTH)).astype(np.uint16)
    counts[0] = 0
    counts.flags.writeable = False
    return counts


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return Denoiser.pretrained(device="cpu", threads=1)


def written(client: Container, folder: Path, kind: str, *, callback: Any = None) -> Any:
    """A raw run of `frames` in one of the ways in which detectors store them."""
    run = compose_run(metadata={"scan_id": 7, "sample": "silver"})
    uid, counts = run.start_doc["uid"], frames()
    writer = TiledWriter(client["raw"])

    def emit(name: str, doc: Any) -> None:
        writer(name, doc)
        if callback is not None:
            callback(name, doc)

    emit("start", run.start_doc)
    key = {"source": "test", "dtype": "array", "dtype_numpy": "<u2", "shape": [1, HEIGHT, WIDTH], "external": "STREAM:"}
    if kind == "zarr":
        key = {"source": "test", "dtype": "array", "dtype_numpy": "<u2", "shape": [HEIGHT, WIDTH]}
    stream = run.compose_descriptor(name="primary", data_keys={"det": key})
    emit("descriptor", stream.descriptor_doc)
    resources = []
    if kind in ("chunked", "contiguous", "virtual"):
        path = folder / f"{uid}.h5"
        with h5py.File(path, "w") as file:
            if kind == "virtual":
                with h5py.File(folder / f"{uid}-data.h5", "w") as data:
                    data.create_dataset("d", data=counts, chunks=(1, HEIGHT, WIDTH), compression="gzip")
                layout = h5py.VirtualLayout(counts.shape, "<u2")
                layout[:] = h5py.VirtualSource(f"{uid}-data.h5", "d", counts.shape)
                file.create_virtual_dataset("counts", layout)
            else:
                chunks = (1, 10, WIDTH) if kind == "chunked" else None
                file.create_dataset("counts", data=counts, chunks=chunks, compression="gzip" if chunks else None)
        resources.append(
            ("application/x-hdf5", path, {"dataset": "counts", "chunk_shape": (1, HEIGHT, WIDTH)}, (0, ROWS))
        )
    elif kind == "several":
        for number, rows in enumerate((slice(0, 2), slice(2, 3))):
            path = folder / f"{uid}-{number}.h5"
            with h5py.File(path, "w") as file:
                file.create_dataset("counts", data=counts[rows])
            parameters = {"dataset": "counts", "chunk_shape": (1, HEIGHT, WIDTH)}
            resources.append(("application/x-hdf5", path, parameters, (rows.start, rows.stop)))
    elif kind == "tiff":
        for number, image in enumerate(counts):
            tifffile.imwrite(folder / f"{uid}-{number:03d}.tif", image, compression="zlib")
        parameters = {"template": "-{:03d}.tif", "chunk_shape": (1, HEIGHT, WIDTH), "join_method": "stack"}
        resources.append(("multipart/related;type=image/tiff", folder / uid, parameters, (0, ROWS)))
    for mimetype, path, parameters, (first, last) in resources:
        resource = run.compose_stream_resource(
            mimetype=mimetype, uri=f"file://localhost{path}", data_key="det", parameters=parameters
        )
        emit("stream_resource", resource.stream_resource_doc)
        seq_nums = {"start": first + 1, "stop": last + 1}
        emit(
            "stream_datum",
            resource.compose_stream_datum({"start": first, "stop": last}, seq_nums, stream.descriptor_doc),
        )
    for number in range(ROWS):
        data = {"det": counts[number].tolist()} if kind == "zarr" else {}
        emit("event", stream.compose_event(data=data, timestamps=dict.fromkeys(data, 0.0), seq_num=number + 1))
    emit("stop", run.compose_stop())
    return client["raw"][uid]


def source_of(run: Any, name: str = "det") -> Any:
    (source,) = run["primary"][name].data_sources()
    return source


def same(one: Any, other: Any) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other), equal_nan=True)


def settle(run: Any) -> Any:
    """The run as the server has it now."""
    return run.parent[run.start["uid"]]


@pytest.mark.parametrize("kind", ["chunked", "contiguous", "virtual", "several", "tiff", "zarr"])
def test_a_lazy_run_reads_bit_for_bit_as_a_computed_one(
    client: Container, home: Path, denoiser: Denoiser, kind: str
) -> None:
    raw = written(client, home / "frames", kind)
    options: dict[str, Any] = {"denoiser": denoiser, "mask": np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) < 100}
    lazy = register(raw, client["denoised"], **options)
    assert source_of(lazy).mimetype == MIMETYPE
    stream = lazy["primary"]
    arrays = {name: stream[name] for name in ("det", "det_sigma")}
    read = {name: np.asarray(array) for name, array in arrays.items()}
    shape, dims = arrays["det"].shape, arrays["det"].dims
    columns = set(stream)
    symmetry = [np.asarray(stream[f"det_{name}"].read()) for name in ("symmetry", "center_y")]
    assert replay(raw, into=client["denoised"], **options).start["uid"] == lazy.start["uid"], (
        "it excludes a computed run"
    )
    assert source_of(lazy).mimetype == MIMETYPE
    assert same(recompute(lazy, 1)["sigma"], read["det_sigma"][1])
    lazy.delete(recursive=True, external_only=False)
    np.testing.assert_array_equal(np.asarray(raw["primary"]["det"]).reshape(frames().shape), frames())

    computed = replay(raw, into=client["denoised"], **options)
    assert computed.start["uid"] == lazy.start["uid"]
    stream = computed["primary"]
    arrays = {name: stream[name] for name in read}
    assert all(same(read[name], array) for name, array in arrays.items())
    assert not same(read["det"], read["det_sigma"])
    assert (shape, dims) == (arrays["det"].shape, arrays["det"].dims)
    assert columns == set(stream) - {f"ts_det_{name}" for name in PENDING}
    used = np.asarray(stream["det_symmetry"].read())
    assert same(symmetry[0] == "", used == "")
    assert list(symmetry[0]) == list(used)
    assert same(symmetry[1], stream["det_center_y"].read())
    here, there = lazy.start, computed.start
    assert here["provenance"]["wasGeneratedBy"]["activity"] == "register"
    assert {k for k in here} == {k for k in there}
    assert [spec.name for spec in lazy.specs] == [spec.name for spec in computed.specs]
    assert {k: v for k, v in here["provenance"].items() if k != "wasGeneratedBy"} == {
        k: v for k, v in there["provenance"].items() if k != "wasGeneratedBy"
    }


@pytest.fixture(scope="module")
def lazy(client: Container, home: Path, denoiser: Denoiser) -> Any:
    return register(written(client, home / "frames", "chunked"), client["denoised"], denoiser=denoiser)


@pytest.mark.parametrize(
    "part",
    [
        np.s_[1],
        np.s_[-1],
        np.s_[1, 0],
        np.s_[1, 0, 5, 7],
        np.s_[::2, :, 3:40:5, ::7],
        np.s_[::-1, 0, ::-1, 40:10:-3],
        np.s_[1:1],
        np.s_[..., 2],
        np.s_[2:0:-1, ..., 1:2],
    ],
)
def test_slices_are_cut_from_whole_denoised_frames(lazy: Any, part: Any) -> None:
    whole = np.asarray(lazy["primary"]["det"])
    assert same(lazy["primary"]["det"][part], whole[part])


def test_blocks_and_dask_agree_with_reading(client: Container, lazy: Any) -> None:
    whole = np.asarray(lazy["primary"]["det"])
    array = lazy["primary"]["det"]
    assert same(array.read_block((1, 0, 0, 0)), whole[1:2])
    assert same(array.read_block((1, 0, 0, 0), slice=np.s_[:, 0, 3:40:5, ::-1]), whole[1:2][:, 0, 3:40:5, ::-1])
    dasked = from_uri(lazy.base["primary"].base["det"].uri, "dask", api_key=client.context.api_key)
    with closing(dasked.context.http_client):
        assert same(dasked.read()[1:, 0, ::3].compute(), whole[1:, 0, ::3])


def test_intensity_and_sigma_come_from_one_computation(client: Container, home: Path, denoiser: Denoiser) -> None:
    run = register(written(client, home / "frames", "chunked"), client["denoised"], denoiser=denoiser)
    before = {name: FRAMES.labels(name)._value.get() for name in ("computed", "hit")}
    for name in ("det", "det_sigma", "det"):
        np.asarray(run["primary"][name])
    after = {name: FRAMES.labels(name)._value.get() for name in ("computed", "hit")}
    assert after["computed"] - before["computed"] == ROWS - 1, "registration has read one"
    assert after["hit"] - before["hit"] == 2 * ROWS + 1
    answer = client.context.http_client.get(str(client.context.api_uri) + "metrics")
    assert 'symdenoise_lazy_frames_total{outcome="hit"}' in answer.text


def status(array: Any, **params: str) -> tuple[int, str]:
    answer = array.context.http_client.get(array.item["links"]["full"], params=params)
    return answer.status_code, answer.text


@pytest.mark.parametrize("harm", ["gone", "changed", "link"])
def test_a_source_that_is_not_as_registered_is_refused_without_the_model(
    client: Container, home: Path, denoiser: Denoiser, tmp_path: Path, harm: str
) -> None:
    run = register(written(client, home / "frames", "chunked"), client["denoised"], denoiser=denoiser)
    array = run["primary"]["det"]
    assert status(array)[0] == 200
    path = next(path_from_uri(a.data_uri) for a in source_of(run).assets if a.parameter == "source")
    kept = path.rename(tmp_path / "kept.h5")
    if harm == "changed":
        path.write_bytes(kept.read_bytes())
    if harm == "link":
        path.symlink_to(kept)
    computed = FRAMES.labels("computed")._value.get()
    code, said = status(array)
    assert code == 422
    assert {"gone": "gone", "changed": "changed since", "link": "outside the server's readable storage"}[harm] in said
    assert str(tmp_path) not in said
    assert FRAMES.labels("computed")._value.get() == computed


def test_files_outside_readable_storage_are_refused_at_registration(
    client: Container, tmp_path: Path, denoiser: Denoiser
) -> None:
    raw = written(client, tmp_path, "chunked")
    with pytest.raises(SymDenoiseError, match="the server cannot serve it"):
        register(raw, client["denoised"], denoiser=denoiser)
    assert not [run for run in client["denoised"].values() if run.start["raw_uid"] == raw.start["uid"]]


def test_too_many_frames_at_a_time_are_refused_before_any_is_denoised(
    lazy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiled.server.settings import get_settings

    monkeypatch.setattr(get_settings(), "response_bytesize_limit", 2 * HEIGHT * WIDTH * 4)
    code, said = status(lazy["primary"]["det"], slice="0:3,0,0,0")
    assert (code, "at most 2 frames" in said) == (400, True)
    assert status(lazy["primary"]["det"], slice="0:2,0,0,0", format="application/json")[0] == 200


@pytest.mark.parametrize("asked", ["2mm", "2", "1", "auto"])
def test_a_lazy_run_is_found_by_the_symmetry_that_is_used(
    client: Container, home: Path, denoiser: Denoiser, asked: str
) -> None:
    raw = written(client, home / "frames", "chunked")
    center = None if asked == "1" else (15.5, 23.5)
    run = register(raw, client["denoised"], denoiser=denoiser, symmetry=asked, beam_center=center)
    used = str(run["primary"]["det_symmetry"].read()[-1])
    assert asked in ("auto", used)

    def shown() -> str:
        now = settle(run)
        for group in ("2mm", "2", "1"):
            assert (run.start["uid"] in find(client, symmetry=group)) == (group == used)
        assert now.metadata["stop"]["provenance"]["symmetry"] == {used: ["primary/det"]}
        text = str(_summary(now.start, now.metadata["stop"], now.uri))
        assert f"used {used}" in text
        return text

    assert f"{ROWS} frames, denoised when they are read" in shown()
    if asked == "2":
        materialize(settle(run))
        assert f"{ROWS} frames denoised" in shown()
        evict(settle(run))
        assert "denoised when they are read" in shown()


@pytest.mark.process
def test_the_report_of_a_lazy_run_says_that_nothing_is_stored(client: Container, lazy: Any) -> None:
    url = f"{client.context.api_uri}container/full/denoised/{lazy.start['uid']}"
    page = client.context.http_client.get(url, params={"format": "text/html;frames=1"}).text
    assert "No pixels are stored" in page
    assert "All frames were denoised" not in page
    assert f"{ROWS} frames. Symmetry used:" in page


def test_registering_a_stored_run_says_that_it_stays_stored(
    client: Container, home: Path, denoiser: Denoiser, caplog: pytest.LogCaptureFixture
) -> None:
    raw = written(client, home / "frames", "chunked")
    stored = replay(raw, into=client["denoised"], denoiser=denoiser, symmetry="1")
    assert register(raw, client["denoised"], denoiser=denoiser, symmetry="1").start["uid"] == stored.start["uid"]
    assert "is stored already and is kept; `symdenoise evict` makes it lazy" in caplog.text
    caplog.clear()
    evict(settle(stored))
    register(raw, client["denoised"], denoiser=denoiser, symmetry="1")
    assert not caplog.text


class TestPixels:
    """`materialize` and `evict`."""

    def test_pixels_come_and_go_and_nothing_else_changes(
        self, client: Container, home: Path, denoiser: Denoiser
    ) -> None:
        options: dict[str, Any] = {"denoiser": denoiser, "exposure": np.linspace(0.5, 1, WIDTH) * np.ones((HEIGHT, 1))}
        run = register(written(client, home / "frames", "chunked"), client["denoised"], **options)
        read = {name: np.asarray(run["primary"][name]) for name in ("det", "det_sigma")}
        assert np.isnan(run["primary"]["det_counts_out"].read()).all()
        assert materialize(run) > 0
        stored = settle(run)
        assert source_of(stored).mimetype == "application/x-hdf5"
        assert all(same(stored["primary"][name], read[name]) for name in read)
        assert np.isfinite(stored["primary"]["det_counts_out"].read()[1:]).all()
        path = next(path_from_uri(a.data_uri) for a in source_of(stored).assets if a.parameter == "data_uris")
        assert evict(stored) > 0
        assert not path.exists()
        lazy = settle(run)
        assert source_of(lazy).mimetype == MIMETYPE
        assert all(same(lazy["primary"][name], read[name]) for name in read)
        assert np.isfinite(lazy["primary"]["det_counts_out"].read()[1:]).all()
        assert lazy.start == run.start
        assert [name for name, _ in lazy.documents()][-1] == "stop"

    def test_pixels_that_would_come_back_different_stay(
        self, client: Container, home: Path, denoiser: Denoiser, tmp_path: Path
    ) -> None:
        run = replay(written(client, home / "frames", "chunked"), into=client["denoised"], denoiser=denoiser)
        path = next(path_from_uri(a.data_uri) for a in source_of(run).assets)
        # An SWMR file cannot be opened for writing again: a copy with another pixel takes its place.
        with h5py.File(path, "r") as old, h5py.File(tmp_path / "changed.h5", "w") as new:
            old.copy("entry", new)
            new["entry/data/det"][2, 0, 3, 4] += 0.125
        path.write_bytes((tmp_path / "changed.h5").read_bytes())
        with pytest.raises(SymDenoiseError, match="row 2 of primary/det: the recomputed row differs from the stored"):
            evict(run)
        assert path.exists()
        assert source_of(settle(run)).mimetype == "application/x-hdf5"

    def test_an_eviction_that_was_cut_off_can_be_read_and_finished(
        self, client: Container, home: Path, denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = replay(written(client, home / "frames", "chunked"), into=client["denoised"], denoiser=denoiser)
        read = np.asarray(run["primary"]["det"])
        path = next(path_from_uri(a.data_uri) for a in source_of(run).assets)

        def killed(*_: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", killed)
            with pytest.raises(KeyboardInterrupt):
                evict(run)
        assert path.exists()
        assert same(settle(run)["primary"]["det"], read)
        evict(settle(run))
        assert not path.exists()
        assert same(settle(run)["primary"]["det"], read)

    def test_a_raw_run_that_has_changed_is_not_materialized(
        self, client: Container, home: Path, denoiser: Denoiser
    ) -> None:
        run = register(written(client, home / "frames", "chunked"), client["denoised"], denoiser=denoiser)
        path = next(path_from_uri(a.data_uri) for a in source_of(run).assets if a.parameter == "source")
        path.write_bytes(path.read_bytes())
        with pytest.raises(SymDenoiseError, match="changed since the run was registered"):
            materialize(run)
        assert source_of(settle(run)).mimetype == MIMETYPE


def test_the_callback_registers_when_a_run_ends(client: Container, home: Path, denoiser: Denoiser) -> None:
    with RegisterCallback(client["raw"], client["denoised"], denoiser=denoiser) as callback:
        raw = written(client, home / "frames", "chunked", callback=callback)
    ((uid, derived),) = callback.outcomes()
    assert uid == raw.start["uid"]
    assert source_of(client["denoised"][derived]).mimetype == MIMETYPE


def test_the_commands_register_materialize_and_evict(
    client: Container, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TILED_API_KEY", client.context.api_key)
    raw, url = written(client, home / "frames", "chunked"), str(client.context.api_uri)
    main_ = lambda *arguments: main([*arguments])  # noqa: E731
    for command, of in (("register", raw.start["uid"]), ("materialize", None), ("evict", None)):
        uid = of or next(
            run.start["uid"] for run in client["denoised"].values() if run.start["raw_uid"] == raw.start["uid"]
        )
        options = ["--threads", "1"] if command == "register" else []
        with pytest.raises(SystemExit) as caught:
            main_(command, url, uid[:8], *options)
        assert not caught.value.code, capsys.readouterr().err
    assert "bytes freed" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main_("evict", url, "00000000")
    assert caught.value.code == 2
    assert "give the whole uid" in capsys.readouterr().err


class TestCache:
    """`RowCache`."""

    @staticmethod
    def pair(value: float) -> Pair:
        return Pair(np.full(4, value, np.float32), np.full(4, value, np.float32))

    def test_it_forgets_what_was_used_longest_ago(self) -> None:
        made: list[int] = []
        cache = RowCache(limit=2 * self.pair(0).nbytes)

        def compute(key: int) -> Pair:
            made.append(key)
            return self.pair(key)

        for key in (1, 2, 1, 3, 1, 2):
            assert cache.get(key, lambda key=key: compute(key)).intensity[0] == key
        assert made == [1, 2, 3, 2]

    def test_readers_at_a_time_share_one_computation_and_its_failure(self) -> None:
        cache, gate, calls = RowCache(limit=10**6), threading.Event(), []

        def compute(fails: bool) -> Pair:
            calls.append(fails)
            gate.wait(10)
            if fails:
                raise ValueError("no")
            return self.pair(1)

        for fails in (True, False):
            gate.clear()
            ends: list[Any] = []

            def read(fails: bool = fails, ends: list[Any] = ends) -> None:
                try:
                    ends.append(cache.get("row", lambda: compute(fails)))
                except ValueError as error:
                    ends.append(error)

            threads = [threading.Thread(target=read) for _ in range(8)]
            for thread in threads:
                thread.start()
            while len(cache._pending) == 0:
                pass
            gate.set()
            for thread in threads:
                thread.join()
            assert len(ends) == 8
            assert {type(end) for end in ends} <= {ValueError if fails else Pair}
        assert calls.count(False) == 1
