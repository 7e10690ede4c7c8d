"""The self-check of a run: the same live and replayed, in the stop document, and never at the cost of a row."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bluesky.plans as bp
import numpy as np
import pytest
from bluesky import RunEngine
from bluesky_tiled_plugins import TiledWriter
from callback_runs import CENTER, rings
from ophyd_async.core import StaticPathProvider, UUIDFilenameProvider, init_devices
from raw_runs import step_scan, written
from tiled.client.container import Container

from bluesky_symdenoise.acquisition.lazy.register import register
from bluesky_symdenoise.acquisition.live.threaded import ThreadedDenoiseCallback as DenoiseCallback
from bluesky_symdenoise.acquisition.past.replay import replay
from bluesky_symdenoise.acquisition.past.self_check import self_check
from bluesky_symdenoise.acquisition.play import PlayDetector
from bluesky_symdenoise.catalog.find.query import denoised_for, find
from bluesky_symdenoise.cli import main
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.selfcheck.values import SelfCheck

pytestmark = pytest.mark.server

REQUEST: dict[str, Any] = {"symmetry": "2mm", "beam_center": CENTER}


def stored(run: Any) -> Any:
    return run.metadata["stop"]["provenance"].get("self_check")


@pytest.fixture(scope="module")
def live(engine: RunEngine, home: Path, client: Container, denoiser: Denoiser) -> Any:
    """The derived run of a scan of three frames, made while a RunEngine took it."""
    with init_devices():
        det = PlayDetector(rings(), StaticPathProvider(UUIDFilenameProvider(), home / "frames"), name="det")
    callback = DenoiseCallback(client["denoised"], denoiser=denoiser, **REQUEST)
    tokens = [engine.subscribe(each) for each in (TiledWriter(client["raw"]), callback)]
    result = engine(bp.count([det], num=3))
    for token in tokens:
        engine.unsubscribe(token)
    callback.close(timeout=60)
    return denoised_for(client, result.run_start_uids[0])


def test_a_live_run_says_what_the_denoiser_was_worth(live: Any, client: Container) -> None:
    (image,) = live.self_check
    assert image.name == "primary/det"
    assert image.of_rows == 3
    assert len(image.rows) == 1
    assert image.flux.value == pytest.approx(1, abs=4 * image.flux.error)
    assert image.gains["raw counts"].value > 3 * image.gains["raw counts"].error
    assert json.loads(json.dumps(stored(live))) == live.self_check.to_dict()
    assert live.start["uid"] in find(client, self_check=live.self_check.verdict)
    assert live.start["uid"] not in find(client, self_check="not computed")
    assert "self-check" in live._repr_html_()


def test_live_equals_replay_and_what_is_computed_on_request(live: Any, client: Container, denoiser: Denoiser) -> None:
    assert self_check(live, denoiser=denoiser).to_dict() == stored(live)
    replayed = replay(live.raw, into=client["denoised"], denoiser=denoiser, force=True, progress=False, **REQUEST)
    assert replayed.start["uid"] == live.start["uid"]
    assert stored(replayed) == stored(live)


def test_another_recipe_holds_out_other_photons(live: Any, client: Container, denoiser: Denoiser) -> None:
    other = replay(live.raw, into=client["denoised"], denoiser=denoiser, progress=False, symmetry="1")
    assert stored(other)["images"][0]["flux"] != stored(live)["images"][0]["flux"]
    assert stored(other)["images"][0]["residual"]["p"] is None


@pytest.fixture
def acquired(client: Container, home: Path) -> Callable[..., Any]:
    return lambda frames: written(client, step_scan(home / "frames", frames), lambda *_: None)


def test_a_lazy_run_computes_it_on_request(acquired: Callable[..., Any], client: Container, denoiser: Denoiser) -> None:
    lazy = register(acquired(rings()), client["denoised"], denoiser=denoiser)
    assert stored(lazy) is None
    assert "computed when they are read" in lazy.self_check.reason
    (image,) = self_check(lazy, denoiser=denoiser)
    assert image.compared
    whole = replay(lazy.raw, denoiser=denoiser, into=client["denoised"], force=True, progress=False)
    assert stored(whole)["images"][0] == image.to_plain()


def test_frames_without_counts_are_not_testable(
    acquired: Callable[..., Any], client: Container, denoiser: Denoiser
) -> None:
    dark = replay(acquired(np.zeros_like(rings())), into=client["denoised"], denoiser=denoiser, progress=False)
    (image,) = dark.self_check
    assert image.verdict == "not testable"
    assert image.reasons == ("no frame with counts was denoised",)


def test_an_error_of_the_check_costs_no_row(
    acquired: Callable[..., Any], client: Container, denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise ValueError("sums are lost")

    monkeypatch.setattr("bluesky_symdenoise.acquisition.derive.checks.summarised", broken)
    run = replay(acquired(rings()), into=client["denoised"], denoiser=denoiser, progress=False)
    assert run.provenance["outcome"]["failures"] == []
    (image,) = run.self_check
    assert (image.verdict, image.reasons) == ("not testable", ("sums are lost",))


def test_the_methods_paragraph_names_what_was_done(live: Any) -> None:
    said = live.methods
    for part in ("point group 2mm", live.start["provenance"]["model"]["sha256"][:16], "held out at random", "±"):
        assert part in said
    assert isinstance(live.self_check, SelfCheck)
    assert "primary/det: " in str(live.self_check)


def test_the_command_prints_it_the_paragraph_and_json(
    live: Any, client: Container, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TILED_API_KEY", str(client.context.api_key))
    uid = live.start["uid"]

    def printed(*options: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["self-check", client.uri, uid, *options])
        assert ended.value.code == 0
        return capsys.readouterr().out

    assert str(live.self_check) in printed()
    assert printed("--methods").strip() == live.methods
    assert json.loads(printed("--json", "--anew")) == {"uid": uid, **stored(live)}


def test_frames_that_borrow_are_compared_with_the_frame_alone(
    acquired: Callable[..., Any], client: Container, denoiser: Denoiser
) -> None:
    raw = acquired(rings(6))
    run = replay(raw, into=client["denoised"], denoiser=denoiser, progress=False, borrow="both", borrow_reach=2)
    (image,) = run.self_check
    assert image.compared, image.reasons
    assert "the frame alone" in image.gains
    assert self_check(run, denoiser=denoiser).to_dict() == stored(run)
    assert "up to 2 neighbouring frames before and after it" in run.methods


def test_switched_off_the_run_is_the_same_without_it(live: Any, client: Container, denoiser: Denoiser) -> None:
    before = np.asarray(live["primary"]["det"].read())
    again = replay(
        live.raw, into=client["denoised"], denoiser=denoiser, force=True, progress=False, self_check="off", **REQUEST
    )
    assert again.start["uid"] == live.start["uid"]
    assert stored(again) is None
    assert again.self_check.verdict == "not computed"
    np.testing.assert_array_equal(np.asarray(again["primary"]["det"].read()), before)
    with pytest.raises(SymDenoiseError, match="self_check='never'"):
        replay(live.raw, into=client["denoised"], self_check="never")
