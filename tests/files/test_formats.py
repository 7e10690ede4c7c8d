"""Formats of raw files are registered once: one registration serves plain, live and lazily read frames."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from bluesky_tiled_plugins.writing.consolidators import CONSOLIDATOR_REGISTRY, MultipartRelatedConsolidator

from bluesky_symdenoise.acquisition.runs.counting import Count
from bluesky_symdenoise.acquisition.runs.frames import AnnouncedFrames
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files import formats, open_frames
from bluesky_symdenoise.files.format import Format, Part, sliced
from bluesky_symdenoise.files.formats import FORMATS, by_mimetype, of_file, stored_mimetypes
from bluesky_symdenoise.files.source import Source, stamp

MIMETYPE = "multipart/related;type=application/x-u16"
SHAPE = (5, 7)


def read(path: Path) -> np.ndarray:
    return np.fromfile(path, "<u2").reshape(SHAPE)


def parts(path: Path, dataset: str | None) -> list[Part]:
    return [Part(path, (1, *SHAPE), np.dtype("<u2"), lambda: nullcontext(sliced(read(path))))]


def joined(paths: Sequence[Path]) -> np.ndarray:
    return np.stack([read(path) for path in paths])


def stored(source: Source, row: int) -> np.ndarray:
    return np.stack([read(source.path(number)) for number in source.files(row)]).reshape(source.row_shape)


@pytest.fixture
def raw_u16(monkeypatch):
    """A detector's own format: 16-bit numbers and nothing else, a file for each frame."""

    class Consolidator(MultipartRelatedConsolidator):
        supported_mimetypes = {MIMETYPE}  # noqa: RUF012
        join_method = "concat"
        join_chunks = False

    new = Format(suffixes=(".u16",), mimetype=MIMETYPE, parts=parts, joined=joined, stored=stored)
    monkeypatch.setattr(formats, "FORMATS", (*FORMATS, new))
    monkeypatch.setitem(CONSOLIDATOR_REGISTRY, MIMETYPE, Consolidator)
    return new


@pytest.fixture
def frames(tmp_path):
    counts = np.random.default_rng(1).poisson(3, (4, *SHAPE)).astype("<u2")
    for number, frame in enumerate(counts):
        frame.tofile(tmp_path / f"img_{number:03d}.u16")
    return counts


def test_plain_files(raw_u16, frames, tmp_path):
    with open_frames(tmp_path / "*.u16") as stack:
        np.testing.assert_array_equal(stack[:], frames)


def test_a_running_scan(raw_u16, frames, tmp_path):
    descriptor = {"uid": "d", "data_keys": {"det": {"shape": [1, *SHAPE], "dtype": "array", "dtype_numpy": "<u2"}}}
    resource = {
        "uid": "r",
        "data_key": "det",
        "mimetype": MIMETYPE,
        "uri": f"file://localhost{tmp_path}/",
        "parameters": {"template": "img_{:03d}.u16", "chunk_shape": (1, *SHAPE)},
    }
    datum = {"indices": {"start": 0, "stop": 4}, "seq_nums": {"start": 1, "stop": 5}}
    announced = AnnouncedFrames(descriptor)
    announced.take(resource, datum, Count(first=0, other=0), descriptor=descriptor)
    got = [announced.read("det", seq_num).reshape(SHAPE) for seq_num in range(1, 5)]
    np.testing.assert_array_equal(got, frames)


def test_rows_that_are_denoised_on_read(raw_u16, frames, tmp_path):
    paths = tuple(sorted(tmp_path.glob("*.u16")))
    source = Source(
        mimetype=MIMETYPE,
        paths=paths,
        roots=(tmp_path.resolve(),) * len(paths),
        stamps=tuple(map(stamp, paths)),
        shape=(4, 1, *SHAPE),
        dtype=np.dtype("<u2"),
    )
    np.testing.assert_array_equal([source.read(row)[0] for row in range(4)], frames)
    assert MIMETYPE in stored_mimetypes()


def test_without_the_registration_nobody_reads_it(frames, tmp_path):
    path = next(tmp_path.glob("*.u16"))
    assert by_mimetype(MIMETYPE) is None
    assert MIMETYPE not in stored_mimetypes()
    assert of_file(path) not in FORMATS
    with pytest.raises(SymDenoiseError, match="cannot be read"):
        open_frames(path)
    source = Source(
        mimetype=MIMETYPE,
        paths=(path,),
        roots=(tmp_path.resolve(),),
        stamps=(stamp(path),),
        shape=(1, 1, *SHAPE),
        dtype=np.dtype("<u2"),
    )
    with pytest.raises(SymDenoiseError, match="the server does not read it"):
        source.read(0)
