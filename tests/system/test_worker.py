"""The callback's worker process: what happens to a scan and its derived run when worker, server or disk fail."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from callback_runs import column, composed, derived_of, fed, images_of, outcome, rings, write
from safetensors.numpy import save
from tiled.client import from_uri
from tiled.client.container import Container

from bluesky_symdenoise.acquisition.deliver.delivery import send_spooled
from bluesky_symdenoise.acquisition.deliver.spool import FOLDER
from bluesky_symdenoise.acquisition.live.callback import DenoiseCallback
from bluesky_symdenoise.acquisition.live.process import StartedDenoiser
from bluesky_symdenoise.acquisition.live.status import Status
from bluesky_symdenoise.acquisition.live.threaded import ThreadedDenoiseCallback
from bluesky_symdenoise.acquisition.request.place import Place
from bluesky_symdenoise.acquisition.request.request import Work
from bluesky_symdenoise.catalog.find.query import denoised_for
from bluesky_symdenoise.catalog.server.serve import embedded_catalog
from bluesky_symdenoise.catalog.store.marks import IMAGE_SPEC
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.denoiser.settings import DenoiserSettings
from bluesky_symdenoise.errors import SymDenoiseError

pytestmark = pytest.mark.server

ONE = DenoiserSettings(threads=1)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("worker")


@pytest.fixture(scope="module")
def client(home: Path) -> Iterator[Container]:
    with embedded_catalog(home) as client:
        yield client


@pytest.fixture
def raw_folder(tmp_path: Path) -> Path:
    """A folder apart from that of the catalogue in `tmp_path`."""
    folder = tmp_path / "raw"
    folder.mkdir()
    return folder


def callback_on(client: Container, **options: Any) -> DenoiseCallback:
    return DenoiseCallback(client["denoised"], denoiser=ONE, **({"symmetry": "1", "nice": 0} | options))


def threaded_on(client: Container, *, directory: Path | Place) -> ThreadedDenoiseCallback:
    """What says where files go is the same for both callbacks, and this one starts at once."""
    denoiser = Denoiser.pretrained(threads=1)
    return ThreadedDenoiseCallback(client["denoised"], denoiser=denoiser, directory=directory, symmetry="1")


def wait(callback: DenoiseCallback, until: Any, seconds: float = 120) -> Status:
    deadline = time.monotonic() + seconds
    while not until(status := callback.status()):
        assert time.monotonic() < deadline, status
        time.sleep(0.05)
    return status


def same_as_in_process(run: Any, frames: np.ndarray, *, symmetry: str = "1") -> None:
    """The derived run holds, rounded, what the denoiser gives for each frame, in order and once."""
    denoiser = Denoiser.pretrained(threads=1)
    images, sigma = images_of(run), images_of(run, "det_sigma")
    assert len(images) == len(frames)
    for frame, image, error in zip(frames, images, sigma, strict=True):
        expected = denoiser(frame, symmetry=symmetry)
        assert (np.abs(image - expected["intensity"].values) <= expected["sigma"].values / 8).all()
        np.testing.assert_allclose(error / expected["sigma"].values, 1, atol=0.3)
    np.testing.assert_array_equal(column(run, "seq_num"), np.arange(1, len(frames) + 1))


def left_in_spool(home: Path) -> list[Path]:
    return sorted((home / "denoised" / FOLDER).iterdir())


@pytest.mark.process
def test_process_of_the_run_engine_imports_no_torch(home: Path, client: Container, tmp_path: Path) -> None:
    """Also with the callback attached; and the worker is started from a script that has no __main__ guard."""
    write(rings(2), tmp_path / "raw.h5")
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import sys
from tiled.client import from_uri
from bluesky_symdenoise import DenoiseCallback, DenoiserSettings
client = from_uri({client.uri!r}, api_key={client.context.api_key!r}, trust_env=False)
with DenoiseCallback(client["denoised"], denoiser=DenoiserSettings(threads=1)) as callback:
    status = callback.status()
assert status.ok, status
print("torch" in sys.modules)
"""
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=240, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "False\n"


@pytest.mark.process
def test_key_is_not_on_the_command_line_and_the_worker_is_nice(client: Container) -> None:
    with callback_on(client, nice=7) as callback:
        command = Path(f"/proc/{callback.worker_pid}/cmdline").read_bytes().decode()
        assert client.context.api_key not in command
        assert client.context.api_key not in Path(f"/proc/{callback.worker_pid}/environ").read_bytes().decode()
        callback.wait_until_ready()
        ours, its = (os.getpriority(os.PRIO_PROCESS, pid) for pid in (0, callback.worker_pid))
        assert its == min(19, ours + 7)


@pytest.mark.process
class TestStart:
    """The callback takes documents before its worker has loaded the denoiser."""

    def test_documents_of_a_worker_that_dies_while_it_loads_go_to_the_next(
        self, home: Path, client: Container, tmp_path: Path
    ) -> None:
        frames = rings(3)
        callback = callback_on(client)
        os.kill(callback.worker_pid, signal.SIGKILL)
        documents = composed(frames, write(frames, tmp_path / "raw.h5"))
        done = fed(callback, documents)
        assert (done.status.frames, done.status.failed, done.status.restarts) == (3, 0, 1), done.status
        same_as_in_process(derived_of(client, done), frames)
        assert left_in_spool(home) == []

    def test_one_that_never_starts_is_said_and_the_documents_stay_on_disk(
        self, home: Path, client: Container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        frames = rings(2)
        documents = composed(frames, write(frames, tmp_path / "raw.h5"))
        with monkeypatch.context() as patched:
            patched.setattr("bluesky_symdenoise.acquisition.live.process._START", "raise SystemExit(3)")
            callback = callback_on(client)
            for name, doc in documents:
                callback(name, doc)
            status = wait(callback, lambda status: bool(status.errors))
            assert "cannot be started any more (status 3)" in status.errors[0]
            assert "catch-up" in status.errors[0]
            with pytest.raises(SymDenoiseError, match="ended before it was ready"):
                callback.wait_until_ready()
            callback.close()
        assert left_in_spool(home)
        with callback_on(client) as callback:
            wait(callback, lambda _: not list((home / "denoised" / FOLDER).glob("*.documents")))
        same_as_in_process(derived_of(client, _Documents(documents)), frames)

    def test_denoiser_may_be_started_before_there_is_a_client(self, client: Container, tmp_path: Path) -> None:
        frames = rings(2)
        documents = composed(frames, write(frames, tmp_path / "raw.h5"))
        with StartedDenoiser(ONE) as started:
            callback = DenoiseCallback(client["denoised"], denoiser=started, symmetry="1")
            with pytest.raises(SymDenoiseError, match="one callback"):
                DenoiseCallback(client["denoised"], denoiser=started, symmetry="1")
        same_as_in_process(derived_of(client, fed(callback, documents)), frames)

    def test_denoiser_that_no_callback_took_is_ended(self) -> None:
        with StartedDenoiser(ONE) as started:
            process = started._process
            assert process is not None
            assert Path(f"/proc/{process.pid}").exists()
        assert process.wait() == -signal.SIGKILL

    def test_refusal_leaves_no_process(
        self, client: Container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        started: list[StartedDenoiser] = []

        class Noted(StartedDenoiser):
            def close(self) -> None:
                started.append(self)
                process = self._process
                super().close()
                assert process is not None
                assert process.wait() == -signal.SIGKILL

        monkeypatch.setattr("bluesky_symdenoise.acquisition.live.callback.StartedDenoiser", Noted)
        with pytest.raises(SymDenoiseError, match="frames='http'"):
            callback_on(client, directory=tmp_path / "mine")
        assert len(started) == 1


@pytest.mark.process
class TestCrash:
    """A worker that dies loses nothing."""

    def test_all_open_runs_go_on_in_a_new_worker(self, home: Path, client: Container, tmp_path: Path) -> None:
        """One with its images in a file, one with images inside its events, which nobody could read again."""
        frames = rings(6)
        runs = composed(frames, write(frames, tmp_path / "raw.h5")), inline(frames)
        callback = callback_on(client)

        def hand(*parts: slice) -> None:
            for documents, part in zip(runs, parts, strict=True):
                for name, doc in documents[part]:
                    callback(name, doc)

        hand(slice(8), slice(4))
        wait(callback, lambda status: status.frames >= 3)
        os.kill(callback.worker_pid, signal.SIGKILL)
        hand(slice(8, None), slice(4, None))
        status = callback.close(timeout=240)
        assert (status.frames, status.failed, status.waiting, status.restarts) == (12, 0, 0, 1), status
        assert status.ok
        for documents in runs:
            run = derived_of(client, _Documents(documents))
            same_as_in_process(run, frames)
            assert outcome(run)["complete"]
        assert left_in_spool(home) == []

    def test_worker_that_hangs_keeps_no_document_from_the_disk(self, home: Path, client: Container) -> None:
        """As if its file system hangs: documents received meanwhile survive the end of both processes."""
        frames = np.random.default_rng(5).poisson(2.0, (12, 256, 256)).astype(np.uint16)
        callback = callback_on(client)
        os.kill(callback.worker_pid, signal.SIGSTOP)
        try:
            begun = time.monotonic()
            documents = inline(frames)
            for name, doc in documents:
                callback(name, doc)
            spool = home / "denoised" / "symdenoise-spool"
            while sum(path.stat().st_size for path in spool.glob("*.documents")) < frames.nbytes:
                assert time.monotonic() - begun < 60
                time.sleep(0.05)
        finally:
            os.kill(callback.worker_pid, signal.SIGCONT)
        assert callback.close(timeout=120).ok
        assert outcome(derived_of(client, _Documents(documents)))["complete"]

    def test_worker_that_dies_again_and_again_is_given_up_with_the_remedy(
        self, client: Container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("bluesky_symdenoise.acquisition.live.feeder.RESTARTS", 1)
        documents = composed(rings(2), write(rings(2), tmp_path / "raw.h5"))
        callback = callback_on(client)
        callback.wait_until_ready()
        for name, doc in documents[:-1]:
            callback(name, doc)
        killed = None
        for restarts in range(2):
            # A restart is counted before there is a process again.
            wait(
                callback,
                lambda status, n=restarts, k=killed: status.restarts == n and callback.worker_pid not in (None, k),
            )
            killed = callback.worker_pid
            os.kill(killed, signal.SIGKILL)
        wait(callback, lambda status: status.restarts == 2)
        callback(*documents[-1])
        status = callback.close(timeout=240)
        (line,) = status.errors
        assert "SIGKILL" in line
        assert "catch-up" in line
        assert status.waiting == 0


class _Documents:
    """As `Scan`, for `derived_of`."""

    def __init__(self, documents: list[tuple[str, dict[str, Any]]]) -> None:
        self.uid = str(documents[0][1]["uid"])


def inline(frames: np.ndarray) -> list[tuple[str, dict[str, Any]]]:
    """Documents of a run with its images inside the events."""
    from event_model import compose_run

    run = compose_run()
    key = {"source": "test", "dtype": "array", "dtype_numpy": frames.dtype.str, "shape": list(frames.shape[1:])}
    descriptor = run.compose_descriptor(name="primary", data_keys={"det": key})
    events = [
        ("event", dict(descriptor.compose_event(data={"det": 0}, timestamps={"det": 0.0}), data={"det": frame}))
        for frame in frames
    ]
    return [("start", run.start_doc), ("descriptor", descriptor.descriptor_doc), *events, ("stop", run.compose_stop())]


@pytest.mark.process
class TestServerAway:
    """While Tiled is away, frames and documents are kept on disk; later they are sent once."""

    def test_run_taken_while_it_was_away_is_there_when_it_is_back(self, tmp_path: Path, raw_folder: Path) -> None:
        home, frames = tmp_path / "home", rings(4)
        documents = composed(frames, write(frames, raw_folder / "raw.h5"))
        with embedded_catalog(home, api_key="secret") as served:
            port = int(served.uri.split(":")[2].split("/")[0])
            client = from_uri(served.uri, api_key="secret", trust_env=False)
            callback = callback_on(client)
            for name, doc in documents[:6]:
                callback(name, doc)
            wait(callback, lambda status: status.frames >= 1)
        for name, doc in documents[6:]:
            callback(name, doc)
        status = wait(callback, lambda status: status.frames == 4 and status.errors)
        assert "waits in" in status.errors[0]
        with embedded_catalog(home, port=port, api_key="secret") as back:
            wait(callback, lambda status: status.runs)
            status = callback.close(timeout=120)
            assert status.ok, status
            run = derived_of(back, _Documents(documents))
            same_as_in_process(run, frames)
            assert run.metadata["stop"]["exit_status"] == "success"
            assert outcome(run)["symmetry"] == {"1": ["primary/det"]}
            for name in ("det", "det_sigma"):
                assert [spec.name for spec in run.base["primary"].base[name].specs] == [IMAGE_SPEC]
            assert left_in_spool(home) == []
        client.context.http_client.close()

    def test_what_a_closed_callback_left_is_sent_later_and_once(self, tmp_path: Path, raw_folder: Path) -> None:
        home, frames = tmp_path / "home", rings(2)
        documents = composed(frames, write(frames, raw_folder / "raw.h5"))
        with embedded_catalog(home, api_key="secret") as served:
            client = from_uri(served.uri, api_key="secret", trust_env=False)
            callback = callback_on(client)
        done = fed(callback, documents)
        assert done.status.frames == 2
        (line,) = done.status.errors
        assert "catch-up" in line
        assert not done.status.ok
        client.context.http_client.close()
        with embedded_catalog(home, api_key="secret") as back:
            assert denoised_for(back, done.uid) is None
            work = Work.planned(back["denoised"], activity="catch-up", denoiser=ONE, symmetry="1")
            (sent,) = send_spooled(work)
            assert (sent.raw_uid, sent.frames, sent.failed) == (done.uid, 2, 0)
            assert send_spooled(work) == []
            same_as_in_process(derived_of(back, done), frames)

    def test_next_callback_sends_it_at_its_start(self, tmp_path: Path, raw_folder: Path) -> None:
        home = tmp_path / "home"
        documents = composed(rings(1), write(rings(1), raw_folder / "raw.h5"))
        with embedded_catalog(home, api_key="secret") as served:
            client = from_uri(served.uri, api_key="secret", trust_env=False)
            callback = callback_on(client)
        done = fed(callback, documents)
        client.context.http_client.close()
        with embedded_catalog(home, api_key="secret") as back, callback_on(back) as callback:
            assert wait(callback, lambda status: status.runs).runs[0][0] == done.uid
            assert derived_of(back, done).metadata["stop"]


@pytest.mark.process
class TestFramesOverHttp:
    def test_reads_the_same_where_the_server_sees_no_file(
        self, client: Container, tmp_path: Path, raw_folder: Path
    ) -> None:
        frames = rings(3)
        callback = callback_on(client, directory=tmp_path / "mine", frames="http")
        done = fed(callback, composed(frames, write(frames, raw_folder / "raw.h5")))
        assert done.status.ok, done.status
        shutil.rmtree(tmp_path / "mine")
        run = derived_of(client, done)
        same_as_in_process(run, frames)
        assert run["primary"].read()["det"].shape == (3, 1, *frames.shape[1:])

    def test_folder_that_the_server_cannot_read_is_refused_at_the_start(
        self, client: Container, tmp_path: Path
    ) -> None:
        with pytest.raises(SymDenoiseError, match="frames='http'"):
            callback_on(client, directory=tmp_path / "mine")
        assert not any(key.startswith("symdenoise-probe") for key in client["denoised"])


@pytest.mark.process
class TestSlowDenoiser:
    def test_drop_leaves_nan_rows_with_the_reason(
        self, client: Container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("bluesky_symdenoise.acquisition.live.callback.DROP_AFTER_S", 0.0)
        done = fed(callback_on(client, slow="drop"), composed(rings(2), write(rings(2), tmp_path / "raw.h5")))
        assert (done.status.frames, done.status.failed) == (0, 2)
        run = derived_of(client, done)
        assert np.isnan(images_of(run)).all()
        (failure,) = outcome(run)["failures"]
        assert failure["frames"] == 2
        assert "dropped" in failure["reason"]

    def test_block_holds_the_scan_until_the_denoiser_follows(
        self, client: Container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("bluesky_symdenoise.acquisition.live.callback.BLOCK_ABOVE", 0)
        documents = composed(rings(2), write(rings(2), tmp_path / "raw.h5"))
        with callback_on(client, slow="block") as callback:
            for name, doc in documents:
                callback(name, doc)
                if name == "event":
                    assert callback.status().frames == doc["seq_num"]


class TestPlace:
    """Where the files of derived runs go."""

    def test_folder_is_named_after_the_start_document(self, home: Path, client: Container, tmp_path: Path) -> None:
        place = Place(home / "denoised" / "{cycle}" / "{proposal.id}", mode=0o640)
        documents = composed(
            rings(1),
            write(rings(1), tmp_path / "raw.h5"),
            start={"cycle": "2026-3", "proposal": {"id": "../../etc"}},
        )
        done = fed(threaded_on(client, directory=place), documents)
        assert done.status.ok, done.status
        (path,) = (home / "denoised" / "2026-3").rglob("*.h5")
        assert path.parent == home / "denoised" / "2026-3" / "_._.._etc"
        assert path.stat().st_mode & 0o777 == 0o640
        assert path.parent.stat().st_mode & 0o777 == 0o750

    def test_start_document_without_the_key_is_said_and_the_run_is_there(
        self, home: Path, client: Container, tmp_path: Path
    ) -> None:
        documents = composed(rings(1), write(rings(1), tmp_path / "raw.h5"))
        done = fed(threaded_on(client, directory=home / "denoised" / "{cycle}"), documents)
        (line,) = done.status.errors
        assert "'cycle'" in line
        assert done.status.frames == 1
        assert list((home / "denoised" / "unsorted").glob("*.h5"))

    @pytest.mark.parametrize("template", ["/data/{a.__class__.b}/{", "/data/{a!r}", "{cycle}", "/data/{a}/../.."])
    def test_malformed_template_is_refused(self, template: str) -> None:
        with pytest.raises(SymDenoiseError):
            Place(template)

    def test_unknown_group_is_refused(self) -> None:
        with pytest.raises(SymDenoiseError, match="group"):
            Place("/data", group="no-such-group")

    @pytest.mark.parametrize("below", ["", "deeper"])
    def test_nothing_is_written_into_a_raw_folder(self, home: Path, client: Container, below: str) -> None:
        raw = home / "frames" / f"raw{below}"
        raw.mkdir()
        documents = composed(rings(1), write(rings(1), raw / "raw.h5"))
        done = fed(threaded_on(client, directory=raw / below), documents)
        assert "raw files" in done.status.errors[0]
        assert done.status.frames == 0
        assert [path.name for path in raw.rglob("*.h5")] == ["raw.h5"]
        stop = derived_of(client, done).metadata["stop"]
        assert "raw files" in stop["reason"]
        assert not stop["provenance"]["complete"]

    def test_writing_stops_where_the_disk_is_too_full(self, home: Path, client: Container, tmp_path: Path) -> None:
        place = Place(home / "denoised", free_bytes=2**62)
        done = fed(threaded_on(client, directory=place), composed(rings(1), write(rings(1), tmp_path / "raw.h5")))
        assert "writing stops below" in done.status.errors[0]
        stop = derived_of(client, done).metadata["stop"]
        assert stop["exit_status"] == "fail"
        assert not stop["provenance"]["complete"]


class TestConstructor:
    def test_denoiser_object_belongs_to_the_threaded_callback(self, client: Container) -> None:
        with pytest.raises(SymDenoiseError, match="ThreadedDenoiseCallback"):
            DenoiseCallback(client["denoised"], denoiser=Denoiser.pretrained())  # type: ignore[arg-type]

    @pytest.mark.process
    def test_device_that_is_not_there_is_refused_at_once(self, client: Container) -> None:
        with pytest.raises(SymDenoiseError, match="cuda"):
            DenoiseCallback(client["denoised"], denoiser=DenoiserSettings(device="cuda:7", threads=1))

    @pytest.mark.process
    def test_file_that_is_no_model_is_refused_at_once(self, client: Container, tmp_path: Path) -> None:
        """Its record fits, so that only the worker sees it."""
        content = save({"weight": np.zeros(3, np.float32)}, metadata={"architecture": "{}"})
        path = tmp_path / "other.safetensors"
        path.write_bytes(content)
        record = {"name": "other", "version": "1", "sha256": hashlib.sha256(content).hexdigest()}
        path.with_suffix(".json").write_text(json.dumps(record))
        with pytest.raises(SymDenoiseError, match="not a model of this package"):
            DenoiseCallback(client["denoised"], denoiser=DenoiserSettings(str(path), threads=1))

    def test_unknown_model_is_refused_at_once(self, client: Container) -> None:
        with pytest.raises(SymDenoiseError, match="no-such-model"):
            DenoiseCallback(client["denoised"], denoiser=DenoiserSettings("no-such-model"))
