"""Rows that lend photons to each other, denoised by the workers of a Dask cluster as one process would."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client, LocalCluster
from tiled.client.container import Container
from tiled.structures.core import Spec

from bluesky_symdenoise.acquisition.cluster import distributed
from bluesky_symdenoise.acquisition.past.replay import replay
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.files.source import Source

pytestmark = pytest.mark.server

ROWS, SIZE = 12, 48
#: A map of 3 lines that run back and forth.
SNAKE: dict[str, Any] = {
    "shape": [3, 4],
    "snaking": [False, True],
    "num_points": ROWS,
    "hints": {"dimensions": [[["y"], "primary"], [["x"], "primary"]]},
}


def frames() -> np.ndarray:
    """Frames (n, y, x) of a ring, of which the first is dark and one has no good pixel."""
    y, x = (axis - 23.5 for axis in np.ogrid[:SIZE, :SIZE])
    rate = 0.2 + 2 * np.exp(-((np.hypot(y, x) - 14) ** 2) / 40)
    counts = np.random.default_rng(8).poisson(rate, (ROWS, SIZE, SIZE)).astype(np.uint32)
    counts[0], counts[7] = 0, np.iinfo(np.uint32).max
    counts.flags.writeable = False
    return counts


@pytest.fixture(scope="module")
def cluster() -> Iterator[Client]:
    """Client of two workers in this process, of which the reads can be counted."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as local,
        Client(local, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture
def serial(catalog: Container, denoiser: Denoiser, frames_folder: Path) -> Callable[..., Any]:
    """Function that replays a run without a cluster, into a catalogue of its own."""
    into = catalog.create_container("reference", specs=[Spec("CatalogOfBlueskyRuns", "3.0")])
    folder = frames_folder / "reference"
    folder.mkdir()
    return lambda run, **given: replay(run, into=into, denoiser=denoiser, directory=folder, **given)


@pytest.mark.parametrize("start", [{}, SNAKE], ids=["series", "snake"])
@pytest.mark.parametrize(
    "given",
    [
        {"borrow": "both", "borrow_reach": 2},
        {"borrow": "past", "borrow_reach": 3},
        {"borrow": "both", "borrow_reach": 2, "rows": slice(1, None, 3)},
    ],
    ids=["both", "past", "some rows"],
)
def test_is_bit_for_bit_what_one_process_writes(
    cluster: Client,
    catalog: Container,
    denoiser: Denoiser,
    frames_folder: Path,
    write_run: Callable[..., str],
    serial: Callable[..., Any],
    start: dict[str, Any],
    given: dict[str, Any],
) -> None:
    raw = catalog["raw"][write_run(catalog["raw"], frames_folder, {"det": frames()}, start=start)]
    given = {"symmetry": "1", **given}
    made = replay(raw, into=catalog["denoised"], denoiser=denoiser, scheduler=cluster, **given)
    alone = serial(raw, **given)
    assert made.start["uid"] == alone.start["uid"]
    names = [name for name in alone["primary"] if name != "det_ms" and not name.startswith("ts_")]
    assert {"det", "det_sigma", "det_borrowed", "det_borrowed_from"} <= set(names)
    left, right = made["primary"].read(names), alone["primary"].read(names)
    for name in names:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)
    assert float(left["det_borrowed"].max()) > 0
    assert any(left["det_borrowed_from"].values != "")


def test_workers_read_the_rows_around_a_partition_once(
    cluster: Client,
    catalog: Container,
    denoiser: Denoiser,
    frames_folder: Path,
    write_run: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Partitions of four rows and a reach of one: each reads its own, one before and one after."""
    counted: Counter[int] = Counter()
    plain = Source.read

    def counting(self: Source, row: int) -> Any:
        counted[row] += 1
        return plain(self, row)

    raw = catalog["raw"][write_run(catalog["raw"], frames_folder, {"det": frames()})]
    monkeypatch.setattr(Source, "read", counting)
    monkeypatch.setattr(distributed, "ROWS", 1)
    replay(
        raw, into=catalog["denoised"], denoiser=denoiser, scheduler=cluster, symmetry="1", borrow="both", borrow_reach=1
    )
    # The last row is also compared with the server's.
    checked = Counter({ROWS - 1: counted[ROWS - 1] - 1})
    assert counted - checked == Counter([*range(5), *range(3, 9), *range(7, ROWS)])
