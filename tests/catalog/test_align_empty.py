"""`aligned` where a stream has no rows: scans that ended before their first frame, rows that are not written yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from bluesky_tiled_plugins import TiledWriter
from event_model import compose_run
from raw_runs import written
from tiled.client.container import Container

from bluesky_symdenoise import SymDenoiseError, aligned, denoised_for, replay
from bluesky_symdenoise.acquisition.live.threaded import ThreadedDenoiseCallback
from bluesky_symdenoise.denoiser.infer import Denoiser

pytestmark = pytest.mark.server

SHAPE = (1, 48, 64)
Documents = Iterator[tuple[str, dict[str, Any]]]

#: What was written of a stream before the scan ended.
DESCRIPTOR, RESOURCE, NO_FRAMES = "a descriptor", "a descriptor and a resource", "frames 0 to 0"


def documents(
    folder: Path,
    frames: int = 0,
    *,
    until: str | None = None,
    keys: tuple[str, ...] = ("det",),
    start: dict[str, Any] | None = None,
    stream: str = "primary",
    events: bool = True,
    announced: bool = True,
    dtype: str = "<u2",
) -> Documents:
    """Documents of a step scan of `frames` frames; of one that stopped before the first, with what came until then."""
    run = compose_run(metadata=dict(start or {}))
    yield "start", run.start_doc
    image = {"source": "test", "dtype": "array", "dtype_numpy": dtype, "shape": list(SHAPE), "external": "STREAM:"}
    scalars = {
        "motor": {"source": "test", "dtype": "number", "shape": []},
        "shutter": {"source": "test", "dtype": "string", "shape": []},
    }
    described = dict.fromkeys(keys, image) | (scalars if events else {})
    opened = run.compose_descriptor(name=stream, data_keys=described)
    yield "descriptor", opened.descriptor_doc
    path = folder / f"{run.start_doc['uid']}.h5"
    folder.mkdir(exist_ok=True)
    resources = []
    with h5py.File(path, "w") as file:
        for key in keys:
            stack = np.ones((frames, *SHAPE), dtype)
            file.create_dataset(key, data=stack, maxshape=(None, *SHAPE), chunks=(1, *SHAPE))
            resource = run.compose_stream_resource(
                mimetype="application/x-hdf5",
                uri=f"file://localhost{path}",
                data_key=key,
                parameters={"dataset": key, "chunk_shape": (1, *SHAPE)},
            )
            resources.append(resource)
    if announced and until != DESCRIPTOR:
        for resource in resources:
            yield "stream_resource", resource.stream_resource_doc
            if frames or until == NO_FRAMES:
                rows = {"start": 0, "stop": frames}, {"start": 1, "stop": frames + 1}
                yield "stream_datum", resource.compose_stream_datum(*rows, opened.descriptor_doc)
    if events:
        for row in range(frames):
            data = {"motor": float(row), "shutter": "open"}
            event = opened.compose_event(
                data=data, timestamps=dict.fromkeys(data, 0.0), seq_num=row + 1, time=1e9 + row
            )
            yield "event", event
    yield "stop", run.compose_stop()


@pytest.fixture
def raw(client: Container, home: Path) -> Callable[..., Any]:
    """Function that writes a raw run."""
    return lambda *args, **options: written(client, documents(home / "frames", *args, **options))


@pytest.fixture
def derive(client: Container, home: Path) -> Callable[..., Any]:
    """Function that writes a run as if it were derived from a raw one."""

    def write(raw: Any, *args: Any, **options: Any) -> Any:
        writer, uid = TiledWriter(client["denoised"]), ""
        options = {"keys": ("det", "det_sigma"), "start": {"raw_uid": raw.start["uid"]}, "dtype": "<f4"} | options
        for name, doc in documents(home / "frames", *args, **options):
            uid = doc["uid"] if name == "start" else uid
            writer(name, doc)
        return client["denoised"][uid]

    return write


@pytest.mark.parametrize("until", [DESCRIPTOR, RESOURCE, NO_FRAMES])
@pytest.mark.parametrize("events", [True, False])
def test_a_scan_that_ended_before_its_first_frame_has_the_columns_and_no_rows(raw, derive, until, events):
    scan = raw(until=until, events=events)
    both = aligned(scan, derive(scan, until=until, events=events))
    assert (both.det - both.det_denoised).shape == (0, *SHAPE)
    assert (both.det_denoised / both.det_sigma).shape == (0, *SHAPE)
    if until != NO_FRAMES:
        assert {"motor", "shutter"} <= set(both.data_vars) or not events
    assert both.det.dtype == np.uint16
    assert both.attrs["raw_uid"] == scan.start["uid"]
    assert "time" not in both.coords


def test_each_way_in_which_a_scan_has_no_rows_meets_each_other(raw, derive):
    """The raw writer and ours may have registered different columns."""
    for scan in (raw(until=DESCRIPTOR), raw(until=NO_FRAMES)):
        for until in (DESCRIPTOR, NO_FRAMES):
            assert aligned(scan, derive(scan, until=until)).sizes["time"] == 0


@pytest.mark.parametrize("events", [True, False])
def test_a_run_whose_rows_are_not_there_is_named_in_one_line(raw, derive, events):
    scan, nothing = raw(3, events=events), raw(events=events)
    lacking = derive(scan, events=events)
    with pytest.raises(
        SymDenoiseError, match=rf"'primary' of run {lacking.start['uid']}: it has no rows.* has 3;"
    ) as told:
        aligned(scan, lacking)
    assert "\n" not in str(told.value)
    with pytest.raises(SymDenoiseError, match=rf"'primary' of run {nothing.start['uid']}: it has no rows.* has 2;"):
        aligned(nothing, derive(nothing, 2, events=events))


def test_a_stream_that_one_run_lacks_is_named_whether_the_other_has_rows_or_not(raw, derive):
    for rows in (0, 2):
        scan = raw(rows)
        other = derive(scan, rows, stream="baseline")
        with pytest.raises(SymDenoiseError, match=rf"'primary': run {other.start['uid']}.*choose among baseline"):
            aligned(scan, other)
        with pytest.raises(SymDenoiseError, match=rf"'baseline': run {scan.start['uid']}.*choose among primary"):
            aligned(scan, other, stream="baseline")


def test_a_run_of_nothing_has_no_stream(client, derive):
    run = compose_run()
    scan = written(client, [("start", run.start_doc), ("stop", run.compose_stop())])
    with pytest.raises(SymDenoiseError, match=rf"'primary': run {scan.start['uid']}.*no stream at all"):
        aligned(scan, derive(scan, 2))


def test_denoised_images_keep_their_name_where_no_raw_frame_was_announced(raw, derive):
    """Control: otherwise the denoised image would be found under the raw name."""
    scan = raw(2, announced=False)
    both = aligned(scan, derive(scan, 2))
    assert "det" not in both
    assert (both.det_denoised / both.det_sigma).shape == (2, *SHAPE)
    whole = raw(2)
    assert {"det", "det_denoised"} <= set(aligned(whole, derive(whole, 2)))


def test_lazy_images_of_no_rows_stay_small(client, raw, derive):
    scan = raw()
    derived = derive(scan)
    lazy = client.new_variation(structure_clients="dask")
    both = aligned(lazy["raw"][scan.start["uid"]], lazy["denoised"][derived.start["uid"]])
    assert both.nbytes == 0


@pytest.mark.parametrize("until", [DESCRIPTOR, RESOURCE, NO_FRAMES])
def test_such_a_scan_is_denoised_live_and_again_to_a_run_without_rows(
    client: Container, home: Path, denoiser: Denoiser, until: str
) -> None:
    asked: dict[str, Any] = {"denoiser": denoiser, "directory": home / "denoised"}
    with ThreadedDenoiseCallback(client["denoised"], symmetry="1", **asked) as callback:
        scan = written(client, documents(home / "frames", until=until, events=False), callback)
        status = callback.close(timeout=60)
    assert (status.errors, [said for _, said in status.runs]) == ((), ["0 frames denoised"])
    live = denoised_for(client, scan.start["uid"])
    again = replay(scan, into=client["denoised"], symmetry="2", **asked)
    for run in (live, again):
        both = aligned(scan, run)
        assert (both.det - both.det_denoised).shape == (0, *SHAPE)
        assert both.det_counts_in.shape == (0,)
        assert run.quality.empty


def taken(client: Container, denoiser: Denoiser, frames: np.ndarray) -> Any:
    """The raw run of a step scan whose frames (n, y, x) are inside its events; it is denoised as well."""
    run = compose_run()
    key = {"source": "test", "dtype": "array", "dtype_numpy": "<u2", "shape": list(frames.shape[1:])}
    stream = run.compose_descriptor(name="primary", data_keys={"det": key})
    documents = [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]
    for number, image in enumerate(frames):
        event = stream.compose_event(data={"det": image.tolist()}, timestamps={"det": 0.0}, seq_num=number + 1)
        documents.append(("event", event))
    documents.append(("stop", run.compose_stop()))
    writer = TiledWriter(client["raw"], batch_size=1)
    with ThreadedDenoiseCallback(client["denoised"], denoiser=denoiser, symmetry="1") as callback:
        for name, doc in documents:
            writer(name, doc)
            callback(name, doc)
    return client["raw"][run.start_doc["uid"]]


def test_square_frames_inside_events_have_dimensions_of_their_own(client: Container, denoiser: Denoiser) -> None:
    """Tiled gives dimensions of equal length one name, with which xarray cannot work."""
    raw = taken(client, denoiser, np.random.default_rng(0).poisson(2.0, (3, 32, 32)).astype(np.uint16))
    for both in (aligned(raw, denoised_for(client, raw.start["uid"])), replay(raw, denoiser=denoiser, symmetry="1")):
        assert both.det.dims == both.det_denoised.dims
        assert len(set(both.det.dims)) == 3
        assert abs(float((both.det - both.det_denoised).mean())) < 0.1


def test_frames_that_a_killed_writer_wrote_without_their_events(
    client: Container, denoiser: Denoiser, caplog: pytest.LogCaptureFixture
) -> None:
    raw = taken(client, denoiser, np.ones((2, 24, 32), np.uint16) * np.uint16([[[1]], [[2]]]))
    raw["primary"]["det"].patch(np.zeros((1, 24, 32), np.uint16), offset=(2, 0, 0), extend=True)
    raw = client["raw"][raw.start["uid"]]
    both = aligned(raw, denoised_for(client, raw.start["uid"]))
    assert dict(both.sizes)["time"] == 2
    np.testing.assert_array_equal(both.det.values[:, 0, 0], [1, 2])
    assert "the first 2 are given" in caplog.text
