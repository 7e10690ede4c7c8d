"""Runs denoised by the workers of a real Dask cluster: bit for bit what one process writes, whoever is killed."""

from __future__ import annotations

import copy
import hashlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from distributed import Client, LocalCluster
from tiled.client.container import Container
from tiled.structures.core import Spec
from tiled.utils import path_from_uri

from bluesky_symdenoise.acquisition.cluster import distributed
from bluesky_symdenoise.acquisition.past.replay import replay, replay_with
from bluesky_symdenoise.acquisition.request.beamline import Beamline
from bluesky_symdenoise.acquisition.request.place import Place
from bluesky_symdenoise.acquisition.request.request import Work
from bluesky_symdenoise.acquisition.runs.frames import StoredFrames
from bluesky_symdenoise.acquisition.runs.stored import stored_run
from bluesky_symdenoise.analysis.ring import Ring
from bluesky_symdenoise.catalog.find.query import denoised_for
from bluesky_symdenoise.catalog.store.containers import FRAMES_FOLDER
from bluesky_symdenoise.cli import main
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.denoiser.weights import Model, encode
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.integrating.readout import Readout

pytestmark = [pytest.mark.server, pytest.mark.process]

SIZE, FRAMES, FAILS = 128, 13, 7
READOUT = Readout(1.0, 0.4, offset=np.full((SIZE, SIZE), 0.5), saturation=1e6)


def scan() -> np.ndarray:
    """Frames with a symmetry that `auto` finds; the first two are dark, one has no good pixel."""
    y, x = (axis - 63.5 for axis in np.ogrid[:SIZE, :SIZE])
    rate = 0.4 + 6 * np.exp(-((np.hypot(y, x) - 36) ** 2) / 80) * (1 + np.cos(2 * np.arctan2(y, x)))
    counts = np.random.default_rng(8).poisson(rate, (FRAMES, SIZE, SIZE)).astype(np.uint32)
    counts[:2], counts[FAILS] = 0, np.iinfo(np.uint32).max
    counts.flags.writeable = False
    return counts


def edge() -> np.ndarray:
    """Mask, True = bad."""
    mask = np.zeros((SIZE, SIZE), bool)
    mask[:, :3] = True
    return mask


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """Two worker processes of one thread."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0", host="127.0.0.1"
    ) as local:
        yield local


@pytest.fixture
def client(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """Client of the cluster; partitions have two rows."""
    monkeypatch.setattr(distributed, "ROWS", 2)
    with Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=120)
        yield client


@pytest.fixture
def raw_folder(frames_folder: Path) -> Path:
    folder = frames_folder / "raw"
    folder.mkdir()
    return folder


@pytest.fixture
def raw(catalog: Container, raw_folder: Path, write_run: Callable[..., str]) -> Any:
    """A raw run of `scan`."""
    return catalog["raw"][write_run(catalog["raw"], raw_folder, {"det": scan()}, scalars={"x": list(range(FRAMES))})]


@pytest.fixture
def serial(catalog: Container, denoiser: Denoiser, frames_folder: Path) -> Callable[..., Any]:
    """Function that replays a run in this process, into a catalogue of its own."""
    into = catalog.create_container("reference", specs=[Spec("CatalogOfBlueskyRuns", "3.0")])
    folder = frames_folder / "reference"
    folder.mkdir()
    return lambda run, **given: replay(run, into=into, denoiser=denoiser, directory=folder, **given)


def column(run: Any, name: str) -> np.ndarray:
    return np.asarray(run["primary"][name].read())


def chunks(run: Any, key: str) -> list[bytes]:
    """The frames of an image as they are on disk, compressed."""
    (source,) = run["primary"][key].data_sources()
    with h5py.File(path_from_uri(source.assets[0].data_uri), "r") as file:
        dataset = file[source.parameters["dataset"]]
        return [
            dataset.id.read_direct_chunk((row, 0, 0, 0))[1]
            for row in range(len(dataset))
            if np.isfinite(dataset[row]).any()
        ]


def without_times(documents: Any) -> list[Any]:
    """The documents of a derived run without what differs from one replay of it to the next."""

    def plain(value: Any, name: str = "") -> Any:
        if isinstance(value, dict):
            gone = ("uid", "time", "timestamps", "bytes", "journal", "startedAtTime", "endedAtTime", "uri")
            return {
                key: plain(each, key)
                for key, each in value.items()
                if key not in gone and not key.endswith(("_ms", "_uid", "seconds"))
            }
        return [plain(each) for each in value] if isinstance(value, list | tuple) else value

    strangers = ("descriptor", "stream_resource", "run_start")
    return [
        (name, {key: plain(each) for key, each in plain(doc).items() if key not in strangers})
        for name, doc in documents
    ]


def assert_same(one: Any, other: Any) -> None:
    """Two derived runs are the same bit for bit, but for times."""
    assert one.start["uid"] == other.start["uid"]
    mine, theirs = one["primary"], other["primary"]
    names = [name for name in theirs if name != "det_ms" and not name.startswith("ts_")]
    assert {"det", "det_sigma", "det_counts_in", "det_symmetry", "seq_num", "time"} <= set(names)
    assert set(mine) == set(theirs)
    left, right = mine.read(names), theirs.read(names)
    for name in names:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)
    assert without_times(one.documents()) == without_times(other.documents())
    for key in ("det", "det_sigma"):
        assert chunks(one, key) == chunks(other, key)
    images = left["det"]
    assert not np.array_equal(images[-1], images[-2], equal_nan=True)


def parts(catalog: Container) -> list[Path]:
    """Files of parts, those that are still written included."""
    return sorted(Path(catalog["denoised"].metadata[FRAMES_FOLDER]).rglob("*.part-*"))


def wait_for_stragglers(client: Client) -> None:
    """Tasks that were cancelled go on to their end."""
    while any(client.run(lambda dask_worker: len(dask_worker.state.all_running_tasks)).values()):
        time.sleep(0.02)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "given",
    [
        {"mask": edge()},
        {"symmetry": "2", "beam_center": (63.5, 63.5), "exposure": np.linspace(0.5, 1.5, SIZE) * np.ones((SIZE, 1))},
        {"rows": slice(1, None, 3)},
        {"symmetry": "2", "beam_center": (63.5, 63.5), "readout": READOUT},
        {"symmetry": "2", "beam_center": (63.5, 63.5), "analysis": Ring(inner=20, outer=40)},
    ],
    ids=["auto and mask", "2 and exposure", "some rows", "a readout", "a ring"],
)
def test_is_bit_for_bit_what_one_process_writes(
    client: Client,
    catalog: Container,
    denoiser: Denoiser,
    raw: Any,
    raw_folder: Path,
    frames_folder: Path,
    serial: Callable[..., Any],
    given: dict[str, Any],
) -> None:
    """Pixels, their compressed bytes, scalars, documents and failures; the raw run stays as it was."""
    (file,) = raw_folder.iterdir()
    before, metadata = sha256(file), dict(raw.metadata)
    made = replay(raw, into=catalog["denoised"], denoiser=denoiser, scheduler=client, **given)
    assert_same(made, serial(raw, **given))
    failures = made.metadata["stop"]["provenance"]["failures"]
    assert [each["frames"] for each in failures] == [1]
    assert "all pixels masked" in failures[0]["reason"]
    assert {"", given.get("symmetry", "2mm")} <= set(column(made, "det_symmetry"))
    resources = [doc["data_key"] for name, doc in made.documents() if name == "stream_resource"]
    assert Counter(resources) == {"det": 1, "det_sigma": 1}
    assert parts(catalog) == []
    assert sha256(file) == before
    assert dict(catalog["raw"][raw.start["uid"]].metadata) == metadata


def test_a_doubt_about_a_later_frame_is_the_same(
    client: Client,
    catalog: Container,
    denoiser: Denoiser,
    raw_folder: Path,
    write_run: Callable[..., str],
    serial: Callable[..., Any],
) -> None:
    """This process tests some frames whose rows the workers made."""
    frames = np.random.default_rng(7).poisson(4.0, (5, SIZE, SIZE)).astype(np.uint16)
    frames[3] *= 3
    raw = catalog["raw"][write_run(catalog["raw"], raw_folder, {"det": frames})]
    made = replay(raw, into=catalog["denoised"], denoiser=denoiser, scheduler=client, symmetry="1")
    assert_same(made, serial(raw, symmetry="1"))
    said = "frame 4 of those with counts: all its values are multiples of 3: counts are multiples of 1"
    assert made.metadata["stop"]["provenance"]["doubts"] == {"primary/det": said}


def test_darks_and_columns_are_sent_to_the_workers(
    client: Client, catalog: Container, denoiser: Denoiser, raw: Any, serial: Callable[..., Any], tmp_path: Path
) -> None:
    """Values from files that only this process can read, and the columns beside each image."""
    dark = tmp_path / "dark.npy"
    np.save(dark, np.random.default_rng(1).poisson(3, (4, SIZE, SIZE)).astype(np.uint16))
    beamline = Beamline(dark_file=dark, dark_seconds=1.0, exposure_time="x")
    work = Work.planned(catalog["denoised"], activity="replay", denoiser=denoiser, beamline=beamline)

    def gone(_: str | None) -> None:
        dark.unlink(missing_ok=True)

    kept = dark.read_bytes()
    made = replay_with(work, stored_run(raw), finished_frame=gone, scheduler=client)
    dark.write_bytes(kept)
    assert_same(made, serial(raw, beamline=beamline))


def kill_one_that_writes(pids: list[int]) -> None:
    """Wait until one of these processes has a part open, and kill it."""
    while True:
        for pid in pids:
            for opened in Path(f"/proc/{pid}/fd").iterdir():
                # It may have closed it meanwhile.
                with suppress(FileNotFoundError):
                    if ".part-" in os.readlink(opened):
                        os.kill(pid, signal.SIGKILL)
                        return


@pytest.mark.filterwarnings("default")
def test_killed_worker_loses_and_doubles_nothing(
    client: Client,
    catalog: Container,
    denoiser: Denoiser,
    raw_folder: Path,
    frames_folder: Path,
    write_run: Callable[..., str],
    serial: Callable[..., Any],
) -> None:
    big = np.tile(scan()[2:FAILS], (4, 2, 2))
    raw = catalog["raw"][write_run(catalog["raw"], raw_folder, {"det": big})]
    work = Work.planned(catalog["denoised"], activity="replay", denoiser=denoiser, symmetry="1")
    pids = list(client.run(os.getpid).values())
    victim = threading.Thread(target=kill_one_that_writes, args=(pids,))
    victim.start()
    made = replay_with(work, stored_run(raw), scheduler=client)
    victim.join()
    assert_same(made, serial(raw, symmetry="1"))
    np.testing.assert_array_equal(column(made, "seq_num"), np.arange(1, len(big) + 1))
    assert made.metadata["stop"]["provenance"]["complete"]
    assert len(set(client.run(os.getpid).values()) & set(pids)) == 1
    # A complete run leaves nothing of those who died.
    assert [
        path.suffix for path in Path(catalog["denoised"].metadata[FRAMES_FOLDER]).glob(f"{made.start['uid']}*")
    ] == [".h5"]


def test_worker_that_cannot_see_the_files_reads_through_tiled(
    client: Client,
    catalog: Container,
    denoiser: Denoiser,
    frames_folder: Path,
    write_run: Callable[..., str],
    serial: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server's own working folder is where the files are: the same path leads nowhere in a worker."""
    here, detector = frames_folder / "here", tmp_path / "detector"
    here.symlink_to("/proc/self/cwd")
    detector.mkdir()
    monkeypatch.chdir(detector)
    raw = catalog["raw"][write_run(catalog["raw"], here, {"det": scan()})]
    (file,) = here.glob("*.h5")
    assert client.run(os.path.exists, str(file)) == dict.fromkeys(client.nthreads(), False)
    made = replay(raw, into=catalog["denoised"], denoiser=denoiser, scheduler=client)
    assert_same(made, serial(raw))


def test_worker_that_sees_the_files_asks_no_server(
    client: Client, catalog: Container, denoiser: Denoiser, raw: Any, serial: Callable[..., Any]
) -> None:
    """Control of the above."""

    def refuse() -> None:
        StoredFrames.kept = StoredFrames.read
        StoredFrames.read = None

    def allow() -> None:
        StoredFrames.read = StoredFrames.kept

    client.run(refuse)
    try:
        assert_same(replay(raw, into=catalog["denoised"], denoiser=denoiser, scheduler=client), serial(raw))
    finally:
        client.run(allow)


@pytest.mark.parametrize("resumed_by", ["cluster", "process"])
def test_interrupted_replay_can_be_continued(
    client: Client,
    catalog: Container,
    denoiser: Denoiser,
    raw: Any,
    frames_folder: Path,
    serial: Callable[..., Any],
    resumed_by: str,
) -> None:
    """Ctrl-C cancels what waits; rows that were written, and partitions that were finished, are not denoised again."""
    work = Work.planned(catalog["denoised"], activity="replay", denoiser=denoiser)
    written: list[str | None] = []

    def interrupt(reason: str | None) -> None:
        written.append(reason)
        if len(written) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replay_with(work, stored_run(raw), finished_frame=interrupt, scheduler=client)
    wait_for_stragglers(client)
    assert not denoised_for(catalog, raw).metadata.get("stop")
    assert parts(catalog) != []
    done: list[str | None] = []
    replay_with(
        work, stored_run(raw), finished_frame=done.append, scheduler=client if resumed_by == "cluster" else None
    )
    assert len(done) == FRAMES
    made = denoised_for(catalog, raw)
    assert_same(made, serial(raw))
    assert parts(catalog) == []


def test_finished_partitions_are_taken_over(
    client: Client, catalog: Container, denoiser: Denoiser, raw: Any, frames_folder: Path, serial: Callable[..., Any]
) -> None:
    """If all partitions are finished, even workers with a broken denoiser give the run; otherwise they do not."""
    whole = slice(FAILS + 1, FAILS + 5)
    work = Work.planned(catalog["denoised"], activity="replay", denoiser=denoiser, rows=whole)

    written: list[str | None] = []

    def interrupt(reason: str | None) -> None:
        written.append(reason)
        if len(written) < 2:
            return
        # The first is being copied; wait for the other.
        while len([path for path in parts(catalog) if path.name.count(".") == 2]) < 2:
            time.sleep(0.02)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replay_with(work, stored_run(raw), finished_frame=interrupt, scheduler=client)

    def broken() -> None:
        Denoiser.kept = Denoiser.__call__
        Denoiser.__call__ = None

    def mended() -> None:
        Denoiser.__call__ = Denoiser.kept

    client.run(broken)
    try:
        made = replay_with(work, stored_run(raw), scheduler=client)
        other = replay(raw, into=catalog["denoised"], denoiser=denoiser, symmetry="1", scheduler=client)
    finally:
        client.run(mended)
    assert_same(made, serial(raw, rows=whole))
    assert np.isnan(column(other, "det")).all()
    # Failed frames are done when the cause is mended.
    again = replay(raw, into=catalog["denoised"], denoiser=denoiser, symmetry="1", scheduler=client)
    assert_same(again, serial(raw, symmetry="1"))


def test_a_model_that_workers_lack_gives_the_remedy(
    client: Client, catalog: Container, denoiser: Denoiser, raw: Any
) -> None:
    net = copy.deepcopy(denoiser.model.net)
    next(net.parameters()).add_(0.01)
    model = Model(net, name="mine", version="1", sha256=hashlib.sha256(encode(net)).hexdigest())
    with pytest.raises(SymDenoiseError, match="symdenoise models import") as caught:
        replay(raw, into=catalog["denoised"], denoiser=Denoiser(model, threads=1), scheduler=client)
    assert "\n" not in str(caught.value)
    assert denoised_for(catalog, raw) is None


def test_what_keeps_a_worker_from_its_task_fails_the_replay(
    client: Client, catalog: Container, denoiser: Denoiser, raw: Any
) -> None:
    """In one line; the run can be replayed when the cause is fixed."""
    full = Place(free_bytes=2**62)
    with pytest.raises(SymDenoiseError, match=r"MiB free: writing stops below .*; free disk space") as caught:
        replay(raw, into=catalog["denoised"], denoiser=denoiser, directory=full, scheduler=client)
    assert "\n" not in str(caught.value)
    assert not denoised_for(catalog, raw).metadata.get("stop")
    made = replay(raw, into=catalog["denoised"], denoiser=denoiser, scheduler=client)
    assert made.metadata["stop"]["provenance"]["complete"]


def test_contradictory_arguments_are_refused(
    client: Client, catalog: Container, denoiser: Denoiser, raw: Any, tmp_path: Path
) -> None:
    with pytest.raises(SymDenoiseError, match="scheduler= without into="):
        replay(raw, denoiser=denoiser, scheduler=client)
    with pytest.raises(SymDenoiseError, match="not a client of a Dask cluster"):
        replay(raw, into=catalog["denoised"], denoiser=denoiser, scheduler="tcp://127.0.0.1:1")  # type: ignore[arg-type]
    with pytest.raises(SymDenoiseError, match="given as documents"):
        replay(list(raw.documents()), into=catalog["denoised"], denoiser=denoiser, scheduler=client)


def test_command(
    client: Client,
    catalog: Container,
    cluster: LocalCluster,
    raw: Any,
    serial: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`symdenoise replay --dask ADDRESS`; without --threads a worker takes its own share, here one."""
    monkeypatch.setenv("TILED_API_KEY", str(catalog.context.api_key))
    given = ["replay", catalog.uri, raw.start["uid"], "--rows", f"{FAILS + 1}:{FRAMES}"]
    with pytest.raises(SystemExit) as end:
        main([*given, "--dask", cluster.scheduler_address])
    assert (end.value.code, "1 of 1 runs replayed" in capsys.readouterr().out) == (0, True)
    (made,) = catalog["denoised"].values()
    assert_same(made, serial(raw, rows=slice(FAILS + 1, FRAMES)))


def test_command_without_a_scheduler(
    catalog: Container, raw: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILED_API_KEY", str(catalog.context.api_key))
    monkeypatch.setattr("bluesky_symdenoise.acquisition.cluster.client.ANSWER_S", 0.5)
    with pytest.raises(SystemExit) as end:
        main(["replay", catalog.uri, raw.start["uid"], "--dask", "tcp://127.0.0.1:9"])
    assert end.value.code
    assert "it does not answer" in capsys.readouterr().err
