"""Random unusual runs: each row shows the right image or is NaN with a reason."""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tiled.client.utils
from bluesky_tiled_plugins import TiledWriter
from hypothesis import HealthCheck, Phase, event, given, settings
from strange_runs import Derived, Run, Shown, Shows, StrangeRun, judged, made, runs
from tiled.client.container import Container
from tiled.utils import path_from_uri

from bluesky_symdenoise.acquisition.live.callback import DenoiseCallback
from bluesky_symdenoise.acquisition.live.engine import Engine
from bluesky_symdenoise.acquisition.live.threaded import ThreadedDenoiseCallback
from bluesky_symdenoise.acquisition.past.replay import replay
from bluesky_symdenoise.acquisition.request.request import Work
from bluesky_symdenoise.acquisition.runs import counting
from bluesky_symdenoise.acquisition.runs import frames as frames_module
from bluesky_symdenoise.catalog.find.query import denoised_for
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.denoiser.settings import DenoiserSettings
from bluesky_symdenoise.derived.columns import denoised_images
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.neighbours.lent import Used

pytestmark = pytest.mark.server

Document = dict[str, Any]
Documents = list[tuple[str, Document]]

#: How many runs are drawn; by default always the same ones.
EXAMPLES = int(os.environ.get("SYMDENOISE_STRANGE_RUNS", "100"))


def drawn(share: float = 1.0) -> Any:
    """Settings for so large a share of the examples."""
    return settings(
        max_examples=max(1, round(EXAMPLES * share)),
        deadline=None,
        derandomize="SYMDENOISE_STRANGE_RUNS" not in os.environ,
        suppress_health_check=[HealthCheck.too_slow],
        # To explain a failure takes longer than to find and shrink it.
        phases=[phase for phase in Phase if phase is not Phase.explain],
    )


class Unchanged(Denoiser):
    """Gives each frame as it is, so that every pixel says where it was."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._engine.posteriors = self._unchanged  # type: ignore[method-assign]

    @staticmethod
    def _unchanged(frames: Any, *_: Any) -> Any:
        counts = np.stack([frame.counts for frame in frames]).astype(np.float32)
        return np.stack([counts, np.full_like(counts, 1e-3)], axis=1), [Used()] * len(frames)


class Collecting(ThreadedDenoiseCallback):
    """Keeps the documents of derived runs in place of a server."""

    def __init__(self, client: Container, denoiser: Denoiser) -> None:
        super().__init__(client, denoiser=denoiser, symmetry="1")
        #: By the uid of the raw run.
        self.derived: dict[str, Documents] = {}
        work = Work.planned(client, activity="callback", denoiser=denoiser, symmetry="1")
        self._engine = Engine(work, self, outlet=lambda *_: self._collect())

    def _collect(self) -> Callable[[str, Document], None]:
        documents: Documents = []

        def take(name: str, doc: Document) -> None:
            documents.append((name, doc))
            if name == "start":
                self.derived[doc["raw_uid"]] = documents

        return take


def from_documents(documents: Documents) -> Derived:
    """The derived run that these documents describe, its frames read from their files."""
    of: dict[str, list[Document]] = {}
    for name, doc in documents:
        of.setdefault(name, []).append(doc)
    resources = {doc["uid"]: doc for doc in of.get("stream_resource", [])}
    streams = {doc["uid"]: doc["name"] for doc in of.get("descriptor", [])}
    numbers: dict[str, list[int]] = {name: [] for name in streams.values()}
    times: dict[str, list[float]] = {name: [] for name in streams.values()}
    columns: dict[tuple[str, str], list[Any]] = {}
    for doc in of.get("stream_datum", []):
        resource = resources[doc["stream_resource"]]
        with h5py.File(path_from_uri(resource["uri"])) as file:
            rows = file[resource["parameters"]["dataset"]][doc["indices"]["start"] : doc["indices"]["stop"]]
        columns.setdefault((streams[doc["descriptor"]], resource["data_key"]), []).extend(rows)
    for doc in of.get("event", []):
        name = streams[doc["descriptor"]]
        times[name].append(doc["time"])
        for key, value in doc["data"].items():
            columns.setdefault((name, key), []).append(value)
    shown = {}
    for descriptor in of.get("descriptor", []):
        name = descriptor["name"]
        for key in descriptor["data_keys"]:
            if f"{key}_sigma" in descriptor["data_keys"] and f"{key}_symmetry" in descriptor["data_keys"]:
                pairs = zip(columns.get((name, f"{key}_counts_in"), []), columns.get((name, key), []), strict=True)
                shown[name, key] = [Shown(float(counts), image) for counts, image in pairs]
                numbers[name] = [
                    number
                    for doc in of.get("stream_datum", [])
                    if resources[doc["stream_resource"]]["data_key"] == key and streams[doc["descriptor"]] == name
                    for number in range(doc["seq_nums"]["start"], doc["seq_nums"]["stop"])
                ]
    return Derived(numbers=numbers, times=times, shown=shown, start=of["start"][0], stop=of.get("stop", [{}])[0])


def from_tiled(run: Any) -> Derived:
    """A derived run as Tiled gives it."""
    numbers: dict[str, list[int]] = {}
    times: dict[str, list[float]] = {}
    shown = {}
    stop = run.metadata.get("stop") or {}
    for name in run if stop else ():
        columns = set(run[name])
        for key in denoised_images(columns):
            counts, images = run[name][f"{key}_counts_in"].read(), run[name][key].read()
            shown[name, key] = [Shown(float(each), image) for each, image in zip(counts, images, strict=True)]
            of_events = run[name]["seq_num"].read() if "seq_num" in columns else range(1, 1 + len(counts))
            numbers[name] = [int(number) for number in of_events]
        times[name] = run[name]["time"].read().tolist() if "time" in columns else []
    return Derived(numbers=numbers, times=times, shown=shown, start=dict(run.start), stop=stop)


def as_denoised(denoiser: Denoiser) -> Shows:
    """Whether an image is what this denoiser makes of the counts that were meant, but for the rounding when stored."""

    def shows(image: np.ndarray, meant: np.ndarray) -> bool:
        made = denoiser(meant.astype(np.float64), symmetry="1")
        return bool((np.abs(image - made["intensity"].values) <= made["sigma"].values / 8).all())

    return shows


@contextmanager
def read_aloud() -> Iterator[list[str]]:
    """What is logged meanwhile."""
    lines: list[str] = []

    class Listening(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler, log = Listening(), logging.getLogger("bluesky_symdenoise")
    log.addHandler(handler)
    try:
        yield lines
    finally:
        log.removeHandler(handler)


@pytest.fixture(scope="module", autouse=True)
def impatient() -> Iterator[None]:
    """All files are there before their documents: none is waited for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames_module, "PATIENCE_S", 0.02)
        patch.setattr(counting, "SETTLE_S", 0.02)
        patch.setattr(tiled.client.utils, "TILED_RETRY_ATTEMPTS", 2)
        yield


@pytest.fixture(scope="module")
def unchanged(denoiser: Denoiser) -> Denoiser:
    return Unchanged(denoiser.model, threads=1)


@pytest.fixture(scope="module")
def files(home: Path) -> Path:
    return home / "frames"


def counted(found: Counter[str]) -> None:
    """Let hypothesis say how often what came of an example."""
    for what in found or ["nothing to denoise"]:
        event(what)


def one_after_the_other(*given: StrangeRun) -> Iterator[tuple[str, Document]]:
    """The documents of runs."""
    return itertools.chain.from_iterable(run.documents for run in given)


def in_turn(*given: StrangeRun) -> Iterator[tuple[str, Document]]:
    """A document of each run in turn, as long as there are."""
    for each in itertools.zip_longest(*(run.documents for run in given)):
        yield from (document for document in each if document is not None)


class TestLive:
    """Through the callback, with no server in the way."""

    @given(plan=runs())
    @drawn()
    def test_each_row_shows_what_was_meant_or_says_why_not(
        self, plan: Run, client: Container, unchanged: Denoiser, files: Path
    ) -> None:
        """The run after it, or at the same time, is not affected."""
        with read_aloud() as said, made(plan, files) as strange, made(Run(), files) as usual:
            with Collecting(client["denoised"], unchanged) as callback:
                for name, doc in (in_turn if plan.beside else one_after_the_other)(strange, usual):
                    callback(name, doc)
            status = callback.close()
            said += [*status.errors, *(line for _, line in status.runs)]
            for run in (strange, usual):
                derived = callback.derived.get(run.uid)
                found = judged(run, None if derived is None else from_documents(derived), said)
                if run is strange:
                    counted(found)
            assert found == {"row right": 2}


class TestThroughTiled:
    """The raw run and the derived one in a catalogue, live and replayed."""

    @given(plan=runs())
    @drawn(0.08)
    def test_live_and_replayed(
        self, plan: Run, client: Container, denoiser: Denoiser, unchanged: Denoiser, files: Path
    ) -> None:
        """A live row shows the right image, and a replayed row the image in Tiled; otherwise each has a reason."""
        writer, refused = TiledWriter(client["raw"], batch_size=1), ""
        with read_aloud() as said, made(plan, files) as strange:
            with ThreadedDenoiseCallback(client["denoised"], denoiser=denoiser, symmetry="1") as callback:
                for name, doc in strange.documents:
                    if not refused:
                        refused = refusal(writer, name, doc)
                    callback(name, doc)
            said += [*callback.close().errors, *(line for _, line in callback.status().runs)]
            derived = denoised_for(client, strange.uid)
            counted(judged(strange, None if derived is None else from_tiled(derived), said, as_denoised(denoiser)))
            if refused:
                event(f"Tiled refused the raw run: {refused}")
            else:
                event(replayed(strange, client, unchanged))


def refusal(writer: TiledWriter, name: str, doc: Document) -> str:
    """What keeps Tiled's own writer from taking a document."""
    try:
        writer(name, doc)
    except Exception as error:
        return f"{name}, {type(error).__name__}"
    return ""


def replayed(run: StrangeRun, client: Container, denoiser: Denoiser) -> str:
    """Replay a run, with another recipe than live, and say in how far that was possible."""
    raw = client["raw"][run.uid]
    try:
        again = replay(
            raw, into=client["denoised"], denoiser=denoiser, symmetry="1", beam_center=(1.0, 1.0), progress=False
        )
    except SymDenoiseError as caught:
        error = caught
    else:
        error = None
    if error is not None:
        usable = [
            pair
            for pair, camera in run.cameras.items()
            if run.meant[pair[0]] and not camera.may_be_left_out and not set(pair) & set(run.odd_names)
        ]
        assert not usable, f"{usable} cannot be replayed: {error}"
        return "no replay: nothing to denoise"
    found = from_tiled(again)
    for (stream, key), shown in found.shown.items():
        missing = [np.isnan(each.image).all() and np.isnan(each.counts) for each in shown]
        assert found.failures(stream, key) == sum(missing), f"{stream}/{key}: reasons"
        for row, (each, is_missing) in enumerate(zip(shown, missing, strict=True)):
            if not is_missing:
                # By itself, for Tiled may be unable to read another one.
                image = np.asarray(raw[stream][key][row])
                assert each.image.shape[-2:] == image.shape[-2:], f"{stream}/{key}, row {row}: {each.image.shape}"
                assert np.array_equal(each.image.ravel(), image.ravel()), f"{stream}/{key}, row {row}: not as in Tiled"
    return "replayed"


def outcome(callback: DenoiseCallback, run: StrangeRun) -> list[str]:
    """Wait until something has come of a run, or is said to be none that Tiled takes, and say what."""
    deadline = time.monotonic() + 60
    while True:
        status = callback.status()
        refused = [line for line in status.errors if "waits in" in line and any(name in line for name in run.odd_names)]
        if run.uid in dict(status.runs) or refused:
            return [*status.errors, *(line for uid, line in status.runs if uid == run.uid)]
        assert time.monotonic() < deadline, f"nothing came of the run: {status}"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def callback(client: Container) -> Iterator[DenoiseCallback]:
    with DenoiseCallback(client["denoised"], denoiser=DenoiserSettings(threads=1), symmetry="1") as callback:
        yield callback
        assert callback.status().restarts == 0


@pytest.mark.process
class TestThroughAnotherProcess:
    """One callback with a worker takes all runs."""

    @given(plan=runs(sure=True))
    @drawn(0.12)
    def test_each_row_shows_what_was_meant_or_says_why_not(
        self, plan: Run, callback: DenoiseCallback, client: Container, denoiser: Denoiser, files: Path
    ) -> None:
        with read_aloud() as said, made(plan, files) as strange:
            for name, doc in strange.documents:
                callback(name, doc)
            said += outcome(callback, strange)
            derived = denoised_for(client, strange.uid)
            counted(judged(strange, None if derived is None else from_tiled(derived), said, as_denoised(denoiser)))
