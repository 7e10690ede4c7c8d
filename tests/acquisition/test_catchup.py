"""Missed raw runs are found and finished; intact rows of a dead writer are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401
import numpy as np
import pytest
from callback_runs import rings
from next_algorithm import next_algorithm
from tiled.client.container import Container

from bluesky_symdenoise import DenoiseCallback, DenoiserSettings
from bluesky_symdenoise.acquisition.past.replay import replay_with
from bluesky_symdenoise.acquisition.request.request import Work
from bluesky_symdenoise.acquisition.runs.stored import stored_run
from bluesky_symdenoise.acquisition.service.catchup import finish, tidy, unfinished
from bluesky_symdenoise.catalog.find.query import denoised_for
from bluesky_symdenoise.cli import main
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.errors import SymDenoiseError

pytestmark = pytest.mark.server

FRAMES = 3
Command = Callable[..., tuple[int, str]]


class _CutOff(Exception):  # noqa: N818
    """Stands for the death of the writer between two frames."""


@pytest.fixture
def command(catalog: Container, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """`symdenoise catch-up` with options; exit status and what it printed."""
    monkeypatch.setenv("TILED_API_KEY", str(catalog.context.api_key))

    def run(*options: str) -> tuple[int, str]:
        status = 0
        try:
            main(["catch-up", catalog.uri, "--threads", "1", *options])
        except SystemExit as end:
            status = int(end.code or 0)
        return status, capsys.readouterr().out

    return run


@pytest.fixture
def raw(catalog: Container, frames_folder: Path, write_run: Callable[..., str]) -> Callable[..., str]:
    """Function that writes a raw run of three frames."""
    return lambda **more: write_run(catalog["raw"], frames_folder, {"det": rings(FRAMES)}, **more)


def work_on(catalog: Container, **options: Any) -> Work:
    denoiser = options.pop("denoiser", None) or Denoiser.pretrained(threads=1)
    return Work.planned(catalog["denoised"], activity="catch-up", denoiser=denoiser, **options)


def cut_off(work: Work, run: Any, after: int) -> list[Path]:
    """Denoise a run up to some frame; the files that the dead writer leaves."""
    left = iter(range(after))

    def die(_: str | None) -> None:
        if next(left, None) is None:
            raise _CutOff

    with pytest.raises(_CutOff):
        replay_with(work, stored_run(run), finished_frame=die)
    return sorted(work.folder.glob(f"{work.recipe.derived_uid(run.start['uid'])}-*.h5"))


def pixels(catalog: Container, uid: str) -> tuple[np.ndarray, np.ndarray]:
    stream = denoised_for(catalog, uid)["primary"]
    return np.asarray(stream["det"].read()), np.asarray(stream["det_sigma"].read())


def counted(denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Number of calls of the network so far."""
    calls = 0
    original = Denoiser.__call__

    def call(self: Denoiser, *args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return original(self, *args, **options)

    monkeypatch.setattr(Denoiser, "__call__", call)
    while True:
        yield calls


class TestCommand:
    def test_finds_what_was_missed_once(self, catalog: Container, command: Command, raw: Callable[..., str]) -> None:
        uids = {raw(), raw()}
        status, said = command("--dry-run")
        assert status == 0
        assert "2 raw runs without" in said
        assert all(f"{uid}  not denoised" in said for uid in uids)
        assert len(catalog["denoised"]) == 0
        assert command()[1].endswith("2 of 2 runs caught up\n")
        assert command() == (0, "0 of 0 runs caught up\n")
        for uid in uids:
            assert denoised_for(catalog, uid).metadata["stop"]["provenance"]["complete"]

    @pytest.mark.process
    def test_same_recipe_as_the_callback(
        self, catalog: Container, command: Command, raw: Callable[..., str], tmp_path: Path
    ) -> None:
        """With the callback's arguments in a file, a run that the callback did needs nothing; without them it does."""
        uid = raw()
        mask = np.zeros((rings(1).shape[1:]), bool)
        mask[:4] = True
        np.save(tmp_path / "mask.npy", mask.astype(np.uint8)[np.newaxis])
        options = {"mask": mask, "symmetry": "2", "beam_center": (31.5, 31.5), "data_keys": ["det"]}
        with DenoiseCallback(catalog["denoised"], denoiser=DenoiserSettings(threads=1), nice=0, **options) as callback:
            for name, doc in catalog["raw"][uid].documents():
                callback(name, doc)
        settings = tmp_path / "settings.toml"
        settings.write_text('mask = "mask.npy"\nsymmetry = "2"\nbeam_center = [31.5, 31.5]\ndata_keys = ["det"]\n')
        assert command("--settings", str(settings)) == (0, "0 of 0 runs caught up\n")
        assert "1 of 1" in command("--symmetry", "2")[1]

    @pytest.mark.parametrize("said", ['sym = "2"\n', "[beamline]\ncentre = 3\n", "beamline = 3\n", "symmetry = \n"])
    def test_refuses_other_settings(self, command: Command, tmp_path: Path, said: str) -> None:
        settings = tmp_path / "settings.toml"
        settings.write_text(said)
        assert command("--settings", str(settings))[0] == 2

    def test_a_run_without_end_is_taken_only_when_it_is_old(
        self, catalog: Container, command: Command, frames_folder: Path, raw: Callable[..., str]
    ) -> None:
        """Its derived run is marked as failed, and holds the frames that exist."""
        uid = raw(start={"time": 1.7e9}, ended=False)
        assert command() == (0, "0 of 0 runs caught up\n")
        assert "without a stop document" in command("--dry-run")[1]
        assert "1 of 1" in command("--older-than", "1")[1]
        stop = denoised_for(catalog, uid).metadata["stop"]
        assert stop["exit_status"] == "fail"
        assert "no sign of life" in stop["reason"]
        assert stop["provenance"]["frames"] == FRAMES

    def test_failed_runs_are_reported(self, catalog: Container, command: Command, raw: Callable[..., str]) -> None:
        """Exit status 1, and the other runs are done; once the file is back, the run can be finished."""
        uid, other = raw(), raw()
        source = next(iter(catalog["raw"][uid]["primary"]["det"].data_sources())).assets[0].data_uri
        path = Path(source.removeprefix("file://localhost"))
        hidden = path.rename(path.with_suffix(".away"))
        status, said = command()
        assert status == 1
        assert "1 of 2 runs caught up" in said
        assert denoised_for(catalog, other).metadata["stop"]["provenance"]["failures"] == []
        hidden.rename(path)
        assert command()[0] == 0
        assert np.isfinite(pixels(catalog, uid)[0]).all()


class TestUpgraded:
    def test_runs_denoised_by_other_weights_are_left_alone(
        self, catalog: Container, command: Command, raw: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An upgrade denoises nothing again by itself; other settings and failed frames are something else."""
        uid = raw()
        assert command()[0] == 0
        next_algorithm(monkeypatch)
        assert command() == (0, "0 of 0 runs caught up\n")
        assert "not denoised" in command("--dry-run", "--symmetry", "1")[1]
        assert f"{uid}  not denoised" in command("--dry-run", "--redo-older")[1]
        catalog["denoised"].values().first().delete(recursive=True, external_only=False)
        assert "not denoised" in command("--dry-run")[1]


class TestTakenOver:
    def test_rows_of_a_dead_writer_are_kept(
        self, catalog: Container, raw: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Only missing frames are denoised, and the result is as if there had been no interruption."""
        uid, whole = raw(), raw()
        work = work_on(catalog, self_check="off")
        cut_off(work, catalog["raw"][uid], 1)
        calls = counted(work.denoiser, monkeypatch)
        next(calls)
        outcomes = [finish(item, work) for item in unfinished(catalog["raw"], work)]
        assert [(each.ok, each.frames) for each in outcomes] == [(True, FRAMES)] * 2
        assert next(calls) == 2 * FRAMES - 2
        for one, other in zip(pixels(catalog, uid), pixels(catalog, whole), strict=True):
            np.testing.assert_array_equal(one, other)
        tidy(work)
        assert [path.suffix for path in work.folder.iterdir() if path.is_file()] == [".h5", ".h5"]

    def test_damaged_rows_are_computed_again(self, catalog: Container, raw: Callable[..., str]) -> None:
        """A row with another checksum than it was entered with is computed again."""
        uid, whole = raw(), raw()
        work = work_on(catalog)
        (path,) = cut_off(work, catalog["raw"][uid], 1)
        with h5py.File(path, "r+") as file:
            file["entry/data/det"][0, ..., 0, 0] = 99
        for item in unfinished(catalog["raw"], work):
            finish(item, work)
        for one, other in zip(pixels(catalog, uid), pixels(catalog, whole), strict=True):
            np.testing.assert_array_equal(one, other)

    @pytest.mark.parametrize("damage", [b"", b"{", b"\x00" * 40, b"[]\n", b'{"file": 1}\n'])
    def test_rows_of_a_torn_journal_are_computed_again(
        self, catalog: Container, raw: Callable[..., str], damage: bytes
    ) -> None:
        uid = raw()
        work = work_on(catalog)
        cut_off(work, catalog["raw"][uid], 1)
        (journal,) = work.folder.glob("*.journal")
        said = journal.read_bytes()
        journal.write_bytes(said[: len(said) * 2 // 3] + damage)
        (outcome,) = [finish(item, work) for item in unfinished(catalog["raw"], work)]
        assert (outcome.ok, outcome.frames) == (True, FRAMES)

    def test_rows_of_another_environment_are_computed_again(
        self, catalog: Container, raw: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two threads give other bits than one."""
        uid = raw()
        cut_off(work_on(catalog), catalog["raw"][uid], 2)
        two = work_on(catalog, denoiser=Denoiser.pretrained(threads=2), self_check="off")
        calls = counted(two.denoiser, monkeypatch)
        next(calls)
        (outcome,) = [finish(item, two) for item in unfinished(catalog["raw"], two)]
        assert outcome.ok
        assert next(calls) == FRAMES

    def test_a_living_writer_is_left_alone(self, catalog: Container, raw: Callable[..., str]) -> None:
        uid = raw()
        work, outcomes = work_on(catalog), []

        def meanwhile(_: str | None) -> None:
            outcomes.extend(finish(item, work) for item in unfinished(catalog["raw"], work))

        replay_with(work, stored_run(catalog["raw"][uid]), finished_frame=meanwhile)
        assert {each.result for each in outcomes} == {"left alone: a living process writes it"}
        assert np.isfinite(pixels(catalog, uid)[0]).all()

    def test_documents_that_wait_are_not_written_twice(self, catalog: Container, raw: Callable[..., str]) -> None:
        """A run whose documents wait for the server is sent, not denoised again."""
        work = work_on(catalog)
        uid = raw()
        derived = work.recipe.derived_uid(uid)
        waiting = work.folder / "symdenoise-spool" / f"{derived}.jsonl"
        waiting.parent.mkdir(exist_ok=True)
        waiting.write_text('["start", {}]\n["stop", {}]\n')
        with pytest.raises(SymDenoiseError, match=r"waits in .*catch-up"):
            replay_with(work, stored_run(catalog["raw"][uid]))
        waiting.write_text('["start", {}]\n')
        assert replay_with(work, stored_run(catalog["raw"][uid])).start["uid"] == derived
        assert not waiting.exists()
