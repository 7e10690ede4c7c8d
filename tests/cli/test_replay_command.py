"""`symdenoise replay` on a served catalogue: which runs, what it prints, and what its exit status says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from past_runs import FRAMES, scan
from tiled.client.container import Container

from bluesky_symdenoise import denoised_for
from bluesky_symdenoise.cli import main
from bluesky_symdenoise.denoiser.infer import Denoiser

pytestmark = pytest.mark.server

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def command(catalog: Container, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """`symdenoise replay` with options; exit status and what it printed."""
    monkeypatch.setenv("TILED_API_KEY", str(catalog.context.api_key))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*options: str) -> tuple[int, str]:
        status = 0
        try:
            main(["replay", catalog.uri, "--threads", "1", "--symmetry", "1", *options])
        except SystemExit as end:
            status = int(end.code or 0)
        said = capsys.readouterr()
        return status, said.out + said.err

    return run


@pytest.fixture
def raw(catalog: Container, frames_folder: Path, write_run: Callable[..., str]) -> Callable[..., str]:
    """Function that writes a raw run."""
    return lambda **start: write_run(catalog["raw"], frames_folder, {"det": scan()}, start=start)


def test_named_runs(catalog: Container, command: Command, raw: Callable[..., str]) -> None:
    """By uid, its first characters, or scan id; a second time there is nothing to do."""
    uids = [raw(), raw(), raw(scan_id=7)]
    other = raw()
    named = (uids[0], uids[1][:8], "7")
    status, said = command(*named, "--dry-run")
    assert (status, said.count(f"{FRAMES} images, about")) == (0, 3)
    assert len(catalog["denoised"]) == 0
    status, said = command(*named)
    assert status == 0
    assert "3 of 3 runs replayed" in said
    assert all(uid[:8] in said for uid in uids)
    made = {uid: denoised_for(catalog, uid) for uid in uids}
    assert denoised_for(catalog, other) is None
    status, said = command(*named)
    assert (status, said.count("complete")) == (0, 6)
    assert command(uids[0], "--force")[0] == 0
    assert denoised_for(catalog, uids[0]).start["time"] > made[uids[0]].start["time"]
    assert denoised_for(catalog, uids[1]).start["time"] == made[uids[1]].start["time"]


def test_runs_that_are_searched_for(catalog: Container, command: Command, raw: Callable[..., str]) -> None:
    wanted = raw(plan_name="scan", sample={"name": "agbh"}, exposure=3)
    for other in ({"plan_name": "count"}, {"plan_name": "scan", "time": 1.0e9}, {"plan_name": "scan", "exposure": 4}):
        raw(**{"sample": {"name": "agbh"}, "exposure": 3} | other)
    options = ("--plan", "scan", "--query", "sample.name=agbh", "--query", "exposure=3", "--since", "2020-01-01")
    status, said = command(*options)
    assert (status, "1 of 1 runs replayed" in said) == (0, True)
    assert denoised_for(catalog, wanted) is not None
    assert len(catalog["denoised"]) == 1
    status, said = command("--plan", "grid_scan", "--query", "exposure=5")
    assert (status, "--plan grid_scan, --query exposure=5: no finished run of 4 in 'raw' fits" in said) == (2, True)


def test_what_a_run_lacks_is_named_beside_what_it_has(command: Command, raw: Callable[..., str]) -> None:
    uid = raw()
    assert "no image fits streams=['nope']; there is primary/det" in command(uid, "--stream", "nope")[1]
    status, said = command(uid, "--rows", "0,50")
    assert (status, f"stream 'primary' has {FRAMES}" in said) == (1, True)


def test_failures_are_printed(catalog: Container, command: Command, raw: Callable[..., str], tmp_path: Path) -> None:
    """Exit status 1, and the other runs are done."""
    good = raw()
    torn = tmp_path / "cut.jsonl"
    torn.write_text(
        json.dumps({"name": "start", "doc": dict(catalog["raw"][good].start, uid="0" * 8 + good[8:])}) + "\n"
    )
    status, said = command(str(torn), good)
    assert status == 1
    assert "no stop document" in said
    assert "1 of 2 runs replayed" in said
    assert denoised_for(catalog, good) is not None


def test_a_missing_run_does_not_stop_the_others(catalog: Container, command: Command, raw: Callable[..., str]) -> None:
    """It is named as failed; where none is there, nothing is done."""
    good = raw()
    status, said = command("nosuchuid", good, "--dry-run")
    assert (status, "1 of 2 runs can be replayed" in said, "'nosuchuid'" in said) == (1, True, True)
    status, said = command(good, "nosuchuid")
    assert (status, "1 of 2 runs replayed" in said) == (1, True)
    (line,) = [line for line in said.splitlines() if "nosuchuid" in line]
    assert "no run or more than one" in line
    assert denoised_for(catalog, good) is not None
    status, said = command("nosuchuid", "norsuchone")
    assert (status, "raw run" in said) == (2, False)
    assert len(said.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ((), "named or searched for"),
        (("abc", "--plan", "scan"), "named or searched for"),
        (("--query", "sample"), "KEY=VALUE"),
        (("--plan", "scan", "--rows", "a:b"), "FIRST:STOP"),
        (("00000000-0000-0000-0000-000000000000",), "no run or more than one"),
        (("missing.jsonl",), "cannot be read"),
    ],
)
def test_contradictory_arguments_are_refused(command: Command, options: tuple[str, ...], match: str) -> None:
    status, said = command(*options)
    assert status in (1, 2)
    assert match in said


def test_some_rows(catalog: Container, command: Command, raw: Callable[..., str]) -> None:
    uid = raw()
    assert command(uid, "--rows", "0:4:2")[0] == 0
    assert denoised_for(catalog, uid) is None
    (part,) = catalog["denoised"].values()
    assert part["primary"]["det"].shape[0] == 2


def test_ctrl_c_and_the_same_command_again(
    catalog: Container, command: Command, raw: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    off = ("--self-check", "off")
    uids, original, asked = [raw(), raw()], Denoiser.__call__, []

    def interrupted(self: Denoiser, *args: object, **options: object) -> object:
        asked.append(1)
        if len(asked) == FRAMES + 2:
            raise KeyboardInterrupt
        return original(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Denoiser, "__call__", interrupted)
    status, said = command(*uids, *off)
    assert (status, f"interrupted in run {uids[1]}" in said, "raw run" in said) == (130, True, True)
    # Of a command that finished none there is no table.
    asked[:] = [1] * (FRAMES + 1)
    status, said = command(uids[1], *off)
    assert (status, said.splitlines()[-1].startswith("interrupted"), "raw run" in said) == (130, True, False)
    status, said = command(uids[1], "--dry-run")
    assert (status, f"1 of {FRAMES} images finished" in said) == (0, True)
    asked[:] = [1] * (FRAMES + 2)
    status, said = command(*uids, *off)
    assert (status, "2 of 2" in said) == (0, True)
    # The frame that was interrupted, and the empty one before it, which decides nothing, are asked for again.
    assert len(asked) == 2 * FRAMES + 2
