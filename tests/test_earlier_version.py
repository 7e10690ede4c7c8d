"""A catalogue that an earlier version wrote, before the modules moved: everything in it is found, read and finished."""

from __future__ import annotations

import json
import sqlite3
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiled.client.container import Container

from bluesky_symdenoise import denoised_for, embedded_catalog, recompute
from bluesky_symdenoise.cli import main
from bluesky_symdenoise.denoiser.infer import Denoiser

pytestmark = [pytest.mark.server, pytest.mark.process]

ARCHIVE = Path(__file__).parent / "data" / "catalogue-0.1.0.tar.gz"


@dataclass(frozen=True)
class Earlier:
    """The catalogue with its server; `raw` are uids of raw runs by what was done with them."""

    client: Container
    raw: dict[str, str]
    sums: dict[str, tuple[str, float]]


def _moved(folder: Path, old: str, new: str) -> None:
    """Have all that names the folder name the one where it is now."""
    for path in (folder / "denoised").rglob("*.jsonl"):
        path.write_text(path.read_text().replace(old, new))
    with sqlite3.connect(folder / "catalog.db") as database:
        tables = [name for (name,) in database.execute("select name from sqlite_master where type = 'table'")]
        for table in tables:
            triggers = database.execute(
                "select name, sql from sqlite_master where type = 'trigger' and tbl_name = ?", [table]
            ).fetchall()
            for name, _ in triggers:
                database.execute(f'drop trigger "{name}"')
            for column in database.execute(f'pragma table_info("{table}")').fetchall():
                if not column[5]:
                    database.execute(
                        f'update "{table}" set "{column[1]}" = replace("{column[1]}", ?, ?) '
                        f'where typeof("{column[1]}") = \'text\' and instr("{column[1]}", ?)',
                        [old, new, old],
                    )
            for _, sql in triggers:
                database.execute(sql)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Earlier]:
    home = tmp_path_factory.mktemp("earlier")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(home, filter="data")
    (folder,) = home.iterdir()
    about = json.loads((folder / "about.json").read_text())
    _moved(folder, about["home"], str(folder))
    with embedded_catalog(folder, api_key=about["key"]) as client:
        yield Earlier(client, about["raw"], about["sums"])


def _image(run: Any) -> np.ndarray:
    return np.asarray(run["primary"]["det"].read())


@pytest.mark.parametrize("kind", ["computed", "lazy"])
def test_derived_run_is_found_and_read(kind: str, earlier: Earlier) -> None:
    run = denoised_for(earlier.client, earlier.raw[kind])
    assert run is not None
    uid, total = earlier.sums[kind]
    assert run.start["uid"] == uid
    # Bits of a computed frame are those of a processor; a stored one is as it was.
    assert np.nansum(_image(run)) == pytest.approx(total, rel=0 if kind == "computed" else 1e-4)


def test_frame_is_recomputed(earlier: Earlier) -> None:
    run = denoised_for(earlier.client, earlier.raw["computed"])
    again = recompute(run, 1)
    np.testing.assert_allclose(np.asarray(again["intensity"]).squeeze(), _image(run)[1].squeeze(), rtol=1e-3)


def test_what_was_interrupted_spooled_or_left_is_finished(
    earlier: Earlier, denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One half-written, one that the server was away for, one whose documents a killed process left."""
    monkeypatch.setenv("TILED_API_KEY", "5ec2e7")
    with pytest.raises(SystemExit) as end:
        main(["catch-up", earlier.client.uri, "--threads", "1", "--symmetry", "1"])
    assert not end.value.code, capsys.readouterr()
    for kind in ("interrupted", "spooled", "left_on_disk"):
        run = denoised_for(earlier.client, earlier.raw[kind])
        assert run is not None, kind
        assert run.metadata["stop"]["provenance"]["complete"], kind
        assert np.isfinite(_image(run)).all(), kind
