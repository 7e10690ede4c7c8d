"""An upgrade changes no stored run: a catalogue of before it, with an algorithm and weights that came after it."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
from earlier_catalogue import KEY, Earlier, earlier_catalogue
from facility import tiled_process
from next_algorithm import FACTOR, NEXT, next_algorithm, other_weights, upgraded_package
from raw_runs import step_scan
from tiled.client.container import Container

from bluesky_symdenoise import DenoiserSettings, SymDenoiseError, denoised_for, find, recompute, register, replay
from bluesky_symdenoise.acquisition.deliver.spool import spool_folder
from bluesky_symdenoise.acquisition.lazy.convert import evict, materialize
from bluesky_symdenoise.acquisition.lazy.register import made_with
from bluesky_symdenoise.acquisition.lazy.renew import delete_older, renew
from bluesky_symdenoise.acquisition.live.backlog import Head, RunFile, left_with_other_settings
from bluesky_symdenoise.acquisition.live.threaded import ThreadedDenoiseCallback
from bluesky_symdenoise.acquisition.past.replay import replay_with
from bluesky_symdenoise.acquisition.request.earlier import earlier_recipes
from bluesky_symdenoise.acquisition.request.request import Work
from bluesky_symdenoise.acquisition.runs.documents import packed
from bluesky_symdenoise.acquisition.runs.stored import TiledRun, stored_run
from bluesky_symdenoise.acquisition.service.catchup import finish_left
from bluesky_symdenoise.acquisition.service.health import Health
from bluesky_symdenoise.acquisition.service.watch import Watch
from bluesky_symdenoise.catalog.lazy import models as served
from bluesky_symdenoise.catalog.store.containers import prepare
from bluesky_symdenoise.cli import main
from bluesky_symdenoise.denoiser import registry, released
from bluesky_symdenoise.denoiser.identity import ALGORITHM
from bluesky_symdenoise.denoiser.infer import Denoiser
from bluesky_symdenoise.denoiser.weights import import_model
from bluesky_symdenoise.denoiser.wheel import import_wheel
from bluesky_symdenoise.recipe import Recipe

pytestmark = [pytest.mark.server, pytest.mark.process]

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Earlier]:
    """The catalogue of an earlier version, on the day after an upgrade."""
    home = tmp_path / "earlier"
    home.mkdir()
    with earlier_catalogue(home) as found:
        next_algorithm(monkeypatch)
        yield found


@pytest.fixture
def command(earlier: Earlier, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """`symdenoise` on the catalogue; exit status and what it printed."""
    monkeypatch.setenv("TILED_API_KEY", KEY)
    monkeypatch.setenv("COLUMNS", "300")

    def run(name: str, *options: str) -> tuple[int, str]:
        status = 0
        try:
            main([name, earlier.client.uri, *options])
        except SystemExit as end:
            status = int(end.code or 0)
        return status, capsys.readouterr().out

    return run


def image(run: Any) -> np.ndarray:
    return np.asarray(run["primary"]["det"].read())


def every(earlier: Earlier, kind: str) -> list[Any]:
    return denoised_for(earlier.client, earlier.raw[kind], latest=False)


def algorithm(run: Any) -> str:
    return str(run.start["provenance"]["recipe"]["algorithm"])


def test_stored_and_lazy_runs_read_as_before(earlier: Earlier) -> None:
    for kind in ("computed", "lazy"):
        (run,) = every(earlier, kind)
        uid, total = earlier.sums[kind]
        assert run.start["uid"] == uid
        assert np.nansum(image(run)) == pytest.approx(total, rel=1e-4)


def test_a_frame_is_recomputed_by_its_own_algorithm(earlier: Earlier) -> None:
    (run,) = every(earlier, "computed")
    again = recompute(run, 1)
    np.testing.assert_allclose(np.asarray(again["intensity"]).squeeze(), image(run)[1].squeeze(), rtol=1e-3)
    with pytest.raises(SymDenoiseError, match=f"algorithm {NEXT}.* with .* and algorithm 6.*give a denoiser of these"):
        recompute(run, 1, denoiser=Denoiser.pretrained(threads=1))


def test_new_work_has_the_new_algorithm_unless_the_old_one_is_asked_for(earlier: Earlier) -> None:
    """Replayed beside the older run; with its algorithm it is that run."""
    raw, denoised = earlier.client["raw"][earlier.raw["computed"]], earlier.client["denoised"]
    (before,) = every(earlier, "computed")
    new = replay(raw, into=denoised, denoiser=Denoiser.pretrained(threads=1), symmetry="1")
    assert algorithm(new) == NEXT
    np.testing.assert_allclose(image(new), image(before) * FACTOR, rtol=0.2)
    np.testing.assert_array_equal(np.asarray(recompute(new, 1)["intensity"]), image(new)[1])
    same = replay(raw, into=denoised, denoiser=Denoiser.pretrained(threads=1, algorithm="6"), symmetry="1")
    assert same.start["uid"] == before.start["uid"]
    assert [run.start["uid"] for run in every(earlier, "computed")] == [new.start["uid"], before.start["uid"]]


def test_live_runs_have_the_new_algorithm(earlier: Earlier, tmp_path: Path) -> None:
    counts = np.random.default_rng(0).poisson(3, (2, 32, 40)).astype(np.uint16)
    documents = list(step_scan(tmp_path / "live", counts))
    uids = {}
    for asked in (None, "6"):
        denoiser = Denoiser.pretrained(threads=1, algorithm=asked)
        with ThreadedDenoiseCallback(earlier.client["denoised"], denoiser=denoiser, symmetry="1") as live:
            for name, doc in documents:
                live(name, doc)
        uids[asked] = denoised_for(earlier.client, documents[0][1]["uid"])
    assert [algorithm(run) for run in uids.values()] == [NEXT, "6"]
    np.testing.assert_allclose(image(uids[None]), image(uids["6"]) * FACTOR, rtol=0.2)


def test_catch_up_leaves_complete_runs_alone_and_finishes_begun_ones_as_they_were_begun(
    earlier: Earlier, command: Command
) -> None:
    """Stored or lazy; with --redo-older they are made again beside."""
    complete = {kind: every(earlier, kind)[0].start["uid"] for kind in ("computed", "lazy")}
    status, said = command("catch-up", "--threads", "1", "--symmetry", "1", "--dry-run")
    assert status == 0
    assert "begun with algorithm 6" in said
    assert not any(earlier.raw[kind] in said for kind in complete)
    assert command("catch-up", "--threads", "1", "--symmetry", "1")[0] == 0
    for kind in ("interrupted", "spooled", "left_on_disk"):
        (run,) = every(earlier, kind)
        assert algorithm(run) == "6"
        assert run.metadata["stop"]["provenance"]["complete"], kind
        assert np.isfinite(image(run)).all(), kind
    for kind, uid in complete.items():
        assert [run.start["uid"] for run in every(earlier, kind)] == [uid]
    assert "0 of 0" in command("catch-up", "--threads", "1", "--symmetry", "1")[1]

    said = command("catch-up", "--threads", "1", "--symmetry", "1", "--redo-older")[1]
    assert "4 of 4 runs caught up" in said
    for kind, uid in complete.items():
        newest, before = every(earlier, kind)
        assert (algorithm(newest), before.start["uid"]) == (NEXT, uid)


def test_other_settings_are_no_upgrade(earlier: Earlier, command: Command) -> None:
    said = command("catch-up", "--threads", "1", "--symmetry", "2", "--dry-run")[1]
    assert all(f"{earlier.raw[kind]}  not denoised" in said for kind in ("computed", "lazy"))


def test_register_leaves_a_lazy_run_alone_until_it_is_asked_to_renew_it(earlier: Earlier, command: Command) -> None:
    raw = earlier.raw["lazy"]
    (before,) = every(earlier, "lazy")
    read = image(before)
    status, said = command("register", raw, "--symmetry", "1", "--threads", "1")
    assert (status, len(every(earlier, "lazy"))) == (0, 1)
    assert f"left alone, has {before.start['uid']} (algorithm 6" in said
    assert "--renew" in said

    status, said = command("register", raw, "--renew", "--threads", "1")
    assert status == 0
    newest, older = every(earlier, "lazy")
    assert (algorithm(newest), algorithm(older)) == (NEXT, "6")
    assert f"{newest.start['uid']} is registered (algorithm {NEXT}" in said
    assert f"newer than {older.start['uid']} (algorithm 6" in said
    assert "which stays" in said
    np.testing.assert_allclose(image(newest), read * FACTOR, rtol=0.2)
    np.testing.assert_array_equal(image(older), read)
    assert next(iter(find(earlier.client).values())).start["uid"] == newest.start["uid"]

    assert "was registered before" in command("register", raw, "--renew")[1]
    assert len(every(earlier, "lazy")) == 2
    status, said = command("register", "--renew", "--delete-older")
    assert (status, "which is deleted" in said) == (0, True)
    assert [run.start["uid"] for run in every(earlier, "lazy")] == [newest.start["uid"]]
    assert "0 of 0" not in said
    assert command("register", "--renew") == (0, "1 of 1 lazy runs are up to date or renewed\n")


@pytest.mark.parametrize("options", [["--renew", "--symmetry", "2"], [], ["--delete-older", "00000000"]])
def test_register_refuses_what_does_not_go_together(earlier: Earlier, command: Command, options: list[str]) -> None:
    assert command("register", *options)[0] == 2


def doctor(command: Command) -> dict[str, dict[str, str]]:
    found = json.loads(command("doctor", "--json")[1])
    return {each["check"]: each for each in found}


def as_if_made_with(earlier: Earlier, algorithm: str, *, package: str, **more: Any) -> None:
    """Have the complete runs name another algorithm and version."""
    for kind in ("computed", "lazy"):
        (run,) = every(earlier, kind)
        start = json.loads(json.dumps(dict(run.start)))
        start["provenance"]["recipe"] |= {"algorithm": algorithm, **more}
        start["provenance"]["wasAssociatedWith"]["version"] = package
        run.update_metadata({"start": start}, drop_revision=True)


def test_runs_of_development_versions_keep_their_pixels_and_lazy_ones_can_be_renewed(
    earlier: Earlier, command: Command
) -> None:
    as_if_made_with(earlier, "4", package="0.1.0")
    (stored,) = every(earlier, "computed")
    assert np.isfinite(image(stored)).all()
    with pytest.raises(
        SymDenoiseError, match="development version, whose code it does not have; use its stored pixels"
    ):
        recompute(stored, 1)
    (about,) = (each for check, each in doctor(command).items() if check.startswith("algorithm 4"))
    assert about["verdict"] == "problem"
    assert "`symdenoise register --renew` lazy ones" in about["remedy"]
    assert "install" not in about["remedy"], "no version computes it"
    assert command("register", "--renew")[0] == 0
    assert [algorithm(run) for run in every(earlier, "lazy")] == [NEXT, "4"]


class TestNewerPackage:
    """Recipes that a newer version of the package wrote."""

    @pytest.fixture
    def rewritten(self, earlier: Earlier) -> Earlier:
        """The runs of the earlier version, as if algorithm 9 of version 7.0 had made them."""
        as_if_made_with(earlier, "9", package="7.0", sharpness=3)
        return earlier

    def test_they_are_refused_with_value_rule_and_remedy(self, rewritten: Earlier) -> None:
        run = denoised_for(rewritten.client, rewritten.raw["computed"])
        with pytest.raises(SymDenoiseError) as caught:
            recompute(run, 1)
        known = ", ".join(released.RELEASED)
        said = f"algorithm '9': this version computes algorithms {known}; install version 7.0"
        assert str(caught.value).startswith(said)

    def test_doctor_counts_them(self, rewritten: Earlier, command: Command) -> None:
        found = doctor(command)
        (about,) = (each for check, each in found.items() if check.startswith("algorithm 9"))
        assert about["verdict"] == "problem"
        assert about["said"].startswith("2 runs, 1 of them lazy: ")
        assert about["remedy"].startswith("install version 7.0 of bluesky-symdenoise, or a newer one")
        assert found["recipes"]["said"].startswith("1 of 3 runs can be computed again")

    def test_renewal_refuses_them(self, rewritten: Earlier, command: Command) -> None:
        status, said = command("register", "--renew")
        assert status == 1
        assert "it is not older than algorithm" in said


def test_doctor_says_which_weights_are_missing(
    earlier: Earlier, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert doctor(command)["recipes"]["said"].startswith("3 of 3 runs can be computed again")
    monkeypatch.setattr("bluesky_symdenoise.catalog.server.recipes.found_by_sha256", lambda *_, **__: None)
    found = doctor(command)
    (about,) = (each for check, each in found.items() if check.startswith("algorithm 6, weights aa2184f2becc"))
    assert "model 'fast' version 5 with sha256 aa2184f2becc" in about["said"]
    assert "symdenoise models import bluesky_symdenoise-0.1.0" in about["remedy"]


def counts() -> np.ndarray:
    frames = np.random.default_rng(0).poisson(3, (3, 40, 48)).astype(np.uint16)
    frames.flags.writeable = False
    return frames


def work_on(catalog: Container, **options: Any) -> Work:
    denoiser = Denoiser.pretrained(device="cpu", threads=1, **options)
    return Work.planned(catalog["denoised"], activity="catch-up", denoiser=denoiser, symmetry="1")


class _CutOffError(Exception):
    """Stands for the death of the writer between two frames."""


def cut_off(work: Work, run: Any) -> None:
    """Denoise the first frame of a run, and die."""

    def die(_: str | None) -> None:
        raise _CutOffError

    with pytest.raises(_CutOffError):
        replay_with(work, stored_run(run), finished_frame=die)


class Following:
    """A document source that gives the documents of one stored run, and then nothing more until it is stopped."""

    def __init__(self, run: Any, stop: threading.Event) -> None:
        self._run, self._stop, self.frames = run, stop, TiledRun(run).frames

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]] | None]:
        yield from self._run.documents()
        yield None
        self._stop.set()
        yield None

    def waiting(self) -> int:
        return 0

    def settled(self, uid: str) -> None:
        assert uid == self._run.start["uid"]

    def close(self) -> None:
        """Nothing is open."""


class TestBegun:
    """A derived run that an earlier version began is finished as it was begun, and there are never two halves."""

    @pytest.fixture
    def raw(self, catalog: Container, frames_folder: Path, write_run: Callable[..., str]) -> Callable[[], Any]:
        return lambda: catalog["raw"][write_run(catalog["raw"], frames_folder, {"det": counts()})]

    def whole(self, catalog: Container, raw: Any) -> Any:
        (run,) = denoised_for(catalog, raw, latest=False)
        assert algorithm(run) == ALGORITHM
        assert run.metadata["stop"]["provenance"]["complete"]
        assert np.isfinite(image(run)).all()
        return run

    def test_watch_goes_on(self, catalog: Container, raw: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
        """Live, and in the sweep; what is complete, stored or lazy, it leaves alone."""
        live, swept, complete, lazy = raw(), raw(), raw(), raw()
        work = work_on(catalog)
        cut_off(work, live)
        cut_off(work, swept)
        replay_with(work, stored_run(complete))
        registered = register(lazy, catalog["denoised"], denoiser=work.denoiser, symmetry="1")
        next_algorithm(monkeypatch)
        stop = threading.Event()
        Watch(work_on(catalog), Following(live, stop), catalog["raw"], health=Health(), stop=stop).run()
        for each in (live, swept, complete):
            self.whole(catalog, each)
        assert self.whole(catalog, lazy).start["uid"] == registered.start["uid"]

    def test_documents_that_a_callback_left_are_finished(
        self, catalog: Container, raw: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run, work = raw(), work_on(catalog)
        head = Head(
            raw_uid=run.start["uid"],
            derived_uid=work.recipe.derived_uid(run.start["uid"]),
            recipe_sha256=work.recipe.sha256,
            container=str(work.container.uri),
        )
        documents = list(run.documents())
        file = RunFile.begin(spool_folder(work.folder), head)
        for number, (name, doc) in enumerate(documents):
            file.append(number, packed(name, doc))
        file.close()
        next_algorithm(monkeypatch)
        after = work_on(catalog)
        assert list(left_with_other_settings(after, but=earlier_recipes(after))) == []
        assert [each.result for each in finish_left(after)] == ["complete"]
        self.whole(catalog, run)
        assert not file.path.exists()

    def test_pixels_come_and_go_with_their_own_algorithm(
        self, catalog: Container, raw: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = replay_with(work_on(catalog), stored_run(raw()))
        read = image(run)
        next_algorithm(monkeypatch)
        for convert in (evict, materialize):
            convert(catalog["denoised"][run.start["uid"]])
            np.testing.assert_array_equal(image(catalog["denoised"][run.start["uid"]]), read)

    def test_the_option_goes_on_with_an_earlier_algorithm(
        self, catalog: Container, raw: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = raw()
        next_algorithm(monkeypatch)
        monkeypatch.setenv("TILED_API_KEY", str(catalog.context.api_key))
        options = ["--algorithm", ALGORITHM, "--symmetry", "1", "--threads", "1"]
        with pytest.raises(SystemExit) as end:
            main(["replay", catalog.uri, run.start["uid"], *options])
        assert not end.value.code
        self.whole(catalog, run)


class TestWeights:
    """Runs of weights that the package no longer has."""

    @pytest.fixture(autouse=True)
    def own_models(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(registry.MODELS_VARIABLE, str(tmp_path / "models"))

    @pytest.fixture
    def before(
        self, catalog: Container, frames_folder: Path, write_run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> tuple[Any, Any]:
        """A stored and a lazy run that were made before the package got other weights of the same name."""
        runs = []
        for make in (replay, register):
            raw = catalog["raw"][write_run(catalog["raw"], frames_folder, {"det": counts()})]
            denoiser = Denoiser.pretrained(device="cpu", threads=1)
            runs.append(make(raw, into=catalog["denoised"], denoiser=denoiser, symmetry="1"))
        return runs[0], runs[1]

    def upgraded(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Another version of the package: the wheel of the version before."""
        shipped, wheel = registry.entry("fast").weights.parent, folder / "bluesky_symdenoise-0.1.0-py3-none-any.whl"
        with ZipFile(wheel, "w") as archive:
            for suffix in (".safetensors", ".json", ".md"):
                name = f"bluesky_symdenoise/denoiser/models/fast{suffix}"
                archive.writestr(name, (shipped / f"fast{suffix}").read_bytes())
            archive.writestr("bluesky_symdenoise/__init__.py", "raise SystemExit('executed')")
        upgraded_package(monkeypatch, folder / "package")
        served._denoiser.cache_clear()
        served._model.cache_clear()
        return wheel

    def test_the_message_says_where_they_are_and_the_wheel_brings_them(
        self,
        before: tuple[Any, Any],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        stored, lazy = before
        read = image(stored)
        wheel = self.upgraded(tmp_path, monkeypatch)
        said = (
            r"model 'fast' version 5 with sha256 aa2184f2becc: neither the package nor .* has it on this computer; "
            r"`symdenoise models import bluesky_symdenoise-0\.1\.0-py3-none-any\.whl`"
        )
        with pytest.raises(SymDenoiseError, match=said):
            recompute(stored, 1)
        assert re.search(said, json.loads(status_of(lazy)[1])["detail"])

        with pytest.raises(SystemExit) as end:
            main(["models", "import", str(wheel)])
        assert not end.value.code
        assert capsys.readouterr().out.startswith("fast-5: aa2184f2becc")
        np.testing.assert_array_equal(np.asarray(recompute(stored, 1)["intensity"]), read[1])
        np.testing.assert_array_equal(image(lazy), read)
        assert import_wheel(wheel)[0].name == "fast-5", "once more changes nothing"

    def test_weights_that_somebody_exported_do_as_well(
        self, catalog: Container, frames_folder: Path, write_run: Callable[..., str], tmp_path: Path
    ) -> None:
        """Weights of the same name and version 4 beside those of the package."""
        path = other_weights(tmp_path / "exported")
        assert import_model(path).name == "fast-4"
        raw = catalog["raw"][write_run(catalog["raw"], frames_folder, {"det": counts()})]
        denoiser = Denoiser.pretrained("fast-4", device="cpu", threads=1)
        lazy = register(raw, into=catalog["denoised"], denoiser=denoiser, symmetry="1")
        read = image(lazy)
        registry.remove("fast-4")
        with pytest.raises(SymDenoiseError, match=r"model 'fast-4' version 4 .*models import FILE.*export fast-4"):
            recompute(lazy, 1)
        import_model(path)
        np.testing.assert_array_equal(np.asarray(recompute(lazy, 1)["intensity"]), read[1])

    def test_lazy_runs_are_renewed_with_the_present_weights(
        self, catalog: Container, before: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stored, lazy = before
        self.upgraded(tmp_path, monkeypatch)
        renewed = renew(lazy)
        assert (renewed.made, renewed.older) == (True, lazy)
        assert renewed.newer.start["provenance"]["model"]["version"] == "6"
        assert np.isfinite(image(renewed.newer)).all()
        assert str(renewed).endswith(f"it is newer than {lazy.start['uid']} ({made_with(lazy)}), which stays")
        with pytest.raises(SymDenoiseError, match="not lazy"):
            renew(stored)
        assert lazy.start["uid"] in catalog["denoised"]

    def test_a_run_keeps_its_settings(
        self, catalog: Container, frames_folder: Path, write_run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Mask and exposure too, which the command cannot be given."""
        raw = catalog["raw"][write_run(catalog["raw"], frames_folder, {"det": counts()})]
        mask = np.zeros((40, 48), bool)
        mask[:3] = True
        settings: dict[str, Any] = {
            "mask": mask,
            "exposure": np.linspace(0.5, 1, 48) * np.ones((40, 1)),
            "symmetry": "2",
            "beam_center": (19.5, 23.5),
            "data_keys": ["det"],
            "noise": "poisson",
        }
        older = register(raw, catalog["denoised"], denoiser=work_on(catalog).denoiser, **settings)
        next_algorithm(monkeypatch)
        renewed = renew(older)
        files = sorted(frames_folder.glob("*.h5"))
        kept = [path.rename(path.with_suffix(".away")) for path in files]
        with pytest.raises(SymDenoiseError, match="the server cannot read it"):
            delete_older(renewed)
        for path, away in zip(files, kept, strict=True):
            away.rename(path)
        newer = delete_older(renewed).newer
        assert newer.start["provenance"]["recipe"] == older.start["provenance"]["recipe"] | {"algorithm": NEXT}
        assert [run.start["uid"] for run in denoised_for(catalog, raw, latest=False)] == [newer.start["uid"]]
        assert np.isfinite(image(newer)).any()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn"])
def test_what_is_no_wheel_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.whl"
    path.write_bytes(content)
    with pytest.raises(SymDenoiseError, match="it cannot be read"):
        import_wheel(path)
    with ZipFile(path, "w") as archive:
        archive.writestr("empty.py", "")
    with pytest.raises(SymDenoiseError, match="it has no model"):
        import_wheel(path)


def test_registering_beside_an_older_run_says_which_is_newer(
    catalog: Container,
    frames_folder: Path,
    write_run: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Registration in Python does what it is asked for; another model is no upgrade."""
    raw = catalog["raw"][write_run(catalog["raw"], frames_folder, {"det": counts()})]
    older = register(raw, catalog["denoised"], denoiser=work_on(catalog).denoiser, symmetry="1")
    register(raw, catalog["denoised"], denoiser=work_on(catalog).denoiser, symmetry="2", beam_center=(19.5, 23.5))
    assert not caplog.text
    next_algorithm(monkeypatch)
    newer = register(raw, catalog["denoised"], denoiser=work_on(catalog).denoiser, symmetry="1")
    assert f"{newer.start['uid']} ({made_with(newer)}) is newer than {older.start['uid']} (" in caplog.text
    assert f"algorithm {NEXT}" in newer._repr_html_()
    assert denoised_for(catalog, raw).start["uid"] == newer.start["uid"]


def test_a_server_of_before_the_upgrade_refuses_new_lazy_runs_and_nothing_is_left(
    tmp_path: Path, write_run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with tiled_process(tmp_path / "server") as server:
        client, folder = server.client(), server.folder / "symdenoise-data" / "frames"
        folder.mkdir(parents=True)
        prepare(client, frames=folder)
        raw = client["raw"][write_run(client["raw"], folder, {"det": counts()})]
        next_algorithm(monkeypatch)
        with pytest.raises(SymDenoiseError, match="install this version of bluesky-symdenoise on the server, too"):
            register(raw, client["denoised"], denoiser=work_on(client).denoiser, symmetry="1")
        assert len(client["denoised"]) == 0
        today = Denoiser.pretrained(device="cpu", threads=1, algorithm=ALGORITHM)
        assert np.isfinite(image(register(raw, client["denoised"], denoiser=today, symmetry="1"))).all()


def test_a_recipe_with_fields_of_a_newer_version_is_refused() -> None:
    with pytest.raises(SymDenoiseError, match="this version does not know what that changes"):
        Recipe.from_dict(Recipe(model_sha256="0" * 64, algorithm=ALGORITHM).to_dict() | {"sharpness": 3})


def status_of(run: Any) -> tuple[int, str]:
    array = run["primary"]["det"]
    answer = array.context.http_client.get(array.item["links"]["full"], params={"slice": "1"})
    return answer.status_code, answer.text


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("9", "algorithm '9': this version computes .*; install the version that made the recipe"),
        ("4", "this one is of a development version, whose code it does not have"),
    ],
)
def test_an_algorithm_that_this_version_does_not_have_is_refused(asked: str, said: str) -> None:
    with pytest.raises(SymDenoiseError, match=said):
        DenoiserSettings(algorithm=asked)
    with pytest.raises(SymDenoiseError, match=said):
        Denoiser.pretrained(threads=1, algorithm=asked)


def test_new_work_is_done_with_the_last_released_algorithm() -> None:
    assert (
        released.RELEASED[-1] == ALGORITHM == DenoiserSettings().algorithm == Denoiser.pretrained(threads=1).algorithm
    )
    assert DenoiserSettings(algorithm="6").load()(counts()[0]).attrs["algorithm"] == "6"
    assert len(set(released.RELEASED)) == len(released.RELEASED)


def test_shipped_weights_are_listed() -> None:
    """So that a later version can say where they are."""
    for name in registry.available():
        found = registry.entry(name)
        listed = released.SHIPPED[found.sha256]
        assert (listed.name, listed.version) == (name, found.record["version"])
