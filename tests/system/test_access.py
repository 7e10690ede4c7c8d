"""Two users of two proposals on one server, and a service that denoises for both: each sees only their own runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from facility import TiledProcess, scan, threaded, tiled_process, worker
from tiled.client.container import Container
from tiled.client.utils import ClientError
from typer.testing import CliRunner

import bluesky_symdenoise
from bluesky_symdenoise import SymDenoiseError, denoised_for, replay
from bluesky_symdenoise.catalog.server.doctor import examine
from bluesky_symdenoise.catalog.server.finding import Finding
from bluesky_symdenoise.catalog.server.serve import config_path
from bluesky_symdenoise.catalog.store.containers import prepare
from bluesky_symdenoise.cli import app
from bluesky_symdenoise.denoiser.infer import Denoiser

pytestmark = [pytest.mark.server, pytest.mark.process]

EXAMPLE = Path(__file__).parents[2] / "examples" / "access_control"
PASSWORDS = {f"{name.upper()}_PASSWORD": f"{name}Secret1" for name in ("alice", "bob", "operator")}
PROPOSALS = {"alice": "proposal-1", "bob": "proposal-2"}


def access_controlled() -> dict[str, Any]:
    """The configuration, with what stands in its comments about several proposals merged into it."""
    text = config_path().read_text()
    base = yaml.safe_load(text)
    comments = text.split("# --- Several proposals")[1].splitlines()
    first = comments.index("# authentication:")
    added = yaml.safe_load("\n".join(line.removeprefix("# ") for line in comments[first:]))
    return base | added | {"catalog": base["catalog"] | added["catalog"]}


@dataclass(frozen=True)
class Facility:
    """A served catalogue with a run of each user, raw and denoised, and everybody's API key."""

    server: TiledProcess
    service: str
    keys: dict[str, str]
    raw: dict[str, str]
    denoised: dict[str, str]
    frames: Path
    untagged: dict[str, Finding]

    def get(self, who: str, path: str, **parameters: str) -> httpx.Response:
        headers = {"Authorization": f"Apikey {self.keys[who]}"}
        return httpx.get(f"{self.server.url}{path}", headers=headers, params=parameters or None, timeout=60)

    def client(self, who: str) -> Container:
        return self.server.client(self.keys[who])


def logged_in(url: str, name: str) -> dict[str, str]:
    """The header of a user who has given a password."""
    credentials = {"username": name, "password": PASSWORDS[f"{name.upper()}_PASSWORD"], "grant_type": "password"}
    token = httpx.post(f"{url}/auth/provider/facility/token", data=credentials).raise_for_status().json()
    return {"Authorization": f"Bearer {token['access_token']}"}


def compile_tags(folder: Path, service: str, tags: Path = EXAMPLE / "tags.yml") -> None:
    """As the engineer does, with the script of the example."""
    subprocess.run(
        [sys.executable, str(EXAMPLE / "compile_tags.py"), str(tags), f"sqlite:///{folder}/symdenoise-catalog.db"],
        env=os.environ | {"SERVICE": service},
        check=True,
    )


def made_key(url: str, operator: dict[str, str], service: str, scopes: list[str]) -> str:
    made = httpx.post(
        f"{url}/auth/principal/{service}/apikey", headers=operator, json={"expires_in": None, "scopes": scopes}
    )
    return str(made.raise_for_status().json()["secret"])


def service_scopes() -> list[str]:
    return list(yaml.safe_load((EXAMPLE / "tags.yml").read_text())["roles"]["service"]["scopes"])


@pytest.fixture(scope="module")
def facility(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facility]:
    home = tmp_path_factory.mktemp("facility")
    with tiled_process(home, access_controlled(), **PASSWORDS) as server:
        operator = logged_in(server.url, "operator")
        made = httpx.post(f"{server.url}/auth/principal", params={"role": "admin"}, headers=operator)
        service = str(made.raise_for_status().json()["uuid"])
        compile_tags(home, service)
        keys = {"service": made_key(server.url, operator, service, service_scopes())}
        for name in PROPOSALS:
            new = httpx.post(
                f"{server.url}/auth/apikey",
                headers=logged_in(server.url, name),
                json={"expires_in": None, "scopes": None},
            )
            keys[name] = str(new.raise_for_status().json()["secret"])
        frames = home / "symdenoise-data" / "frames"
        root = server.client(keys["service"])
        # Once without a tag, as one does it at first.
        prepare(root, frames=frames)
        untagged = {each.check: each for each in examine(server.url, api_key=keys["service"])}
        prepare(root, frames=frames, access_tags=["everyone"])
        raw, denoised = {}, {}
        for name, proposal in PROPOSALS.items():
            start = {"tiled_access_tags": [proposal], "sample": f"secret of {name}"}
            raw[name], status = scan(root["raw"], root["denoised"], frames, start=start)
            assert status.ok, status
            (denoised[name],) = (uid for uid, run in root["denoised"].items() if run.start["raw_uid"] == raw[name])
        yield Facility(server, service, keys, raw, denoised, frames, untagged)


OTHER = {"alice": "bob", "bob": "alice"}


class TestTwoProposals:
    """Everything over HTTP; what is refused to one is always given to the other, so the refusal means something."""

    @pytest.mark.parametrize("who", PROPOSALS)
    def test_lists_show_ones_own_runs_only(self, facility: Facility, who: str) -> None:
        for container, own in (("raw", facility.raw), ("denoised", facility.denoised)):
            for path in (f"/search/{container}", f"/metadata/{container}"):
                answer = facility.get(who, path, fields="metadata") if "search" in path else facility.get(who, path)
                assert answer.status_code == 200
                assert own[OTHER[who]] not in answer.text
                assert f"secret of {OTHER[who]}" not in answer.text
            assert list(facility.client(who)[container]) == [own[who]]

    @pytest.mark.parametrize("who", PROPOSALS)
    def test_searches_find_ones_own_runs_only(self, facility: Facility, who: str) -> None:
        for name in PROPOSALS:
            for text, key, value in (
                ("", "start.sample", f"secret of {name}"),
                (f"secret of {name}", "", ""),
                ("", "start.raw_uid", facility.raw[name]),
            ):
                query = (
                    {"filter[fulltext][condition][text]": text}
                    if text
                    else {"filter[eq][condition][key]": key, "filter[eq][condition][value]": f'"{value}"'}
                )
                answer = facility.get(who, "/search/denoised", **query)
                assert answer.status_code == 200
                found = [node["id"] for node in answer.json()["data"]]
                assert found == ([facility.denoised[name]] if name == who else [])
        distinct = facility.get(who, "/distinct/denoised", metadata="start.sample", counts="true")
        assert f"secret of {OTHER[who]}" not in distinct.text

    @pytest.mark.parametrize(
        "path",
        [
            "/metadata/{container}/{uid}",
            "/metadata/{container}/{uid}/primary/det",
            "/search/{container}/{uid}",
            "/array/full/{container}/{uid}/primary/det",
            "/array/full/{container}/{uid}/primary/det?format=image/png&slice=0,0",
            "/array/block/{container}/{uid}/primary/det?block=0,0,0,0",
            "/container/full/{container}/{uid}?format=application/json-seq",
            "/container/full/{container}/{uid}/primary?format=application/json",
            "/asset/bytes/{container}/{uid}/primary/det?id={asset}",
            "/revisions/{container}/{uid}",
        ],
    )
    @pytest.mark.parametrize("container", ["raw", "denoised"])
    def test_reads_and_exports_ones_own_runs_only(self, facility: Facility, container: str, path: str) -> None:
        own = facility.raw if container == "raw" else facility.denoised
        for name in PROPOSALS:
            array = facility.client("service")[container][own[name]].base["primary"].base["det"]
            asset = array.data_sources()[0].assets[0].id
            target = path.format(container=container, uid=own[name], asset=asset)
            given, refused = facility.get(name, target), facility.get(OTHER[name], target)
            assert given.status_code == 200, given.text
            assert refused.status_code == 404
            assert f"secret of {name}" not in refused.text

    def test_another_runs_file_cannot_be_read_through_ones_own(self, facility: Facility) -> None:
        """The number of the other's asset, asked for at one's own node."""
        array = facility.client("service")["raw"][facility.raw["bob"]].base["primary"].base["det"]
        asset = array.data_sources()[0].assets[0].id
        own = f"/asset/bytes/raw/{facility.raw['alice']}/primary/det"
        assert facility.get("alice", own, id=str(asset)).status_code == 404

    @pytest.mark.parametrize("who", ["alice", "bob"])
    def test_users_can_register_nothing(self, facility: Facility, who: str) -> None:
        """The scope `register` would let them name the other's file."""
        client = facility.client(who)
        with pytest.raises(ClientError) as refused:
            client["raw"].create_container("mine", access_tags=[PROPOSALS[who]])
        assert refused.value.response.status_code == 403

    def test_nobody_reads_without_a_key(self, facility: Facility) -> None:
        for path in ("/metadata/raw", "/search/denoised"):
            assert httpx.get(f"{facility.server.url}{path}").status_code == 401


class TestReportPagesInMemory:
    """Rights are asked for with each request, before a page is looked for in the server's memory."""

    @staticmethod
    def page(facility: Facility, who: str, uid: str) -> httpx.Response:
        return facility.get(who, f"/container/full/denoised/{uid}", format="text/html;frames=0")

    @pytest.mark.parametrize("who", PROPOSALS)
    def test_are_shown_to_their_proposal_only(self, facility: Facility, who: str) -> None:
        uid = facility.denoised[who]
        first, again = self.page(facility, who, uid), self.page(facility, who, uid)
        assert first.status_code == 200
        assert f"secret of {who}" in first.text
        assert again.content == first.content
        refused = self.page(facility, OTHER[who], uid)
        assert refused.status_code == 404
        assert f"secret of {who}" not in refused.text
        nobodys = httpx.get(f"{facility.server.url}/container/full/denoised/{uid}?format=text/html;frames=0")
        assert nobodys.status_code == 401

    def test_show_raw_frames_to_those_only_who_may_read_the_raw_run(self, facility: Facility) -> None:
        """Of a derived run that both may read, each gets a page with what that user may see."""
        root = facility.client("service")
        uid = facility.denoised["alice"]
        run = root["denoised"][uid].base
        stream = run["primary"].base
        nodes = [run, stream, *(stream[name] for name in stream)]

        def give(*tags: str) -> None:
            for node in nodes:
                node.update_metadata(access_tags=list(tags))

        def without_raw(who: str) -> bool:
            page = self.page(facility, who, uid)
            assert page.status_code == 200
            return "The raw frames are not shown" in page.text

        give("proposal-1", "proposal-2")
        try:
            for _ in range(2):
                assert [without_raw(who) for who in ("alice", "bob")] == [False, True]
        finally:
            give("proposal-1")
        assert self.page(facility, "bob", uid).status_code == 404, "it was in memory, and was taken from bob since"
        assert not without_raw("alice")


class TestTheServiceThatDenoises:
    """The service writes no run that it may not give the tags of the raw run."""

    def test_the_derived_run_carries_the_raw_runs_tags(self, facility: Facility) -> None:
        root = facility.client("service")
        for name, proposal in PROPOSALS.items():
            for container, own in (("raw", facility.raw), ("denoised", facility.denoised)):
                run = root[container][own[name]]
                assert list(run.access_tags) == [proposal]
                assert list(run.base["primary"].base["det"].access_tags) == [proposal]

    def test_a_replay_carries_them_too(self, facility: Facility) -> None:
        root = facility.client("service")
        run = replay(
            root["raw"][facility.raw["alice"]],
            into=root["denoised"],
            denoiser=Denoiser.pretrained(threads=1),
            symmetry="1",
            streams=["primary"],
        )
        try:
            assert list(run.access_tags) == ["proposal-1"]
            assert run.start["uid"] not in facility.client("bob")["denoised"]
            assert np.isfinite(facility.client("alice")["denoised"][run.start["uid"]]["primary"].read()["det"]).all()
        finally:
            root["denoised"][run.start["uid"]].delete(recursive=True, external_only=False)

    def test_a_run_without_tags_is_the_services_alone(self, facility: Facility) -> None:
        root = facility.client("service")
        uid, status = scan(root["raw"], root["denoised"], facility.frames)
        assert status.ok, status

        def made_again() -> Any:
            return replay(
                root["raw"][uid],
                into=root["denoised"],
                denoiser=Denoiser.pretrained(threads=1),
                symmetry="1",
                force=True,
            )

        try:
            assert list(denoised_for(root, uid).access_tags) == [f"service:{facility.service}"]
            with pytest.raises(SymDenoiseError, match="does not let this client put them on a run"):
                made_again()
            root["raw"][uid].update_metadata(access_tags=["proposal-1"])
            assert list(made_again().access_tags) == ["proposal-1"]
        finally:
            for run in (*denoised_for(root, uid, latest=False), root["raw"][uid]):
                run.delete(recursive=True, external_only=False)

    @pytest.fixture
    def no_owner_of_2(self, facility: Facility, tmp_path: Path) -> Iterator[None]:
        """The service reads the runs of proposal 2 and may write, but owns its tag no more."""
        tags = yaml.safe_load((EXAMPLE / "tags.yml").read_text())
        tags["tag_owners"]["proposal-2"]["users"] = [{"name": "bob"}]
        changed = tmp_path / "tags.yml"
        changed.write_text(yaml.safe_dump(tags))
        compile_tags(facility.server.folder, facility.service, changed)
        yield
        compile_tags(facility.server.folder, facility.service)

    @pytest.mark.usefixtures("no_owner_of_2")
    def test_a_tag_that_it_does_not_own_stops_it_and_is_named(self, facility: Facility) -> None:
        root = facility.client("service")
        before, files = set(root["denoised"]), set(facility.frames.iterdir())
        denoiser = Denoiser.pretrained(threads=1)
        with pytest.raises(SymDenoiseError, match=r"proposal-2: .*not an owner") as refused:
            replay(
                root["raw"][facility.raw["bob"]],
                into=root["denoised"],
                denoiser=denoiser,
                symmetry="1",
                streams=["primary"],
            )
        assert "\n" not in str(refused.value)
        assert set(root["denoised"]) == before
        assert set(facility.frames.iterdir()) == files

    @pytest.mark.usefixtures("no_owner_of_2")
    def test_doctor_names_the_tag(self, facility: Facility) -> None:
        found = {finding.check: finding for finding in examine(facility.server.url, api_key=facility.keys["service"])}
        assert found["access tags"].verdict == "problem"
        assert "proposal-2" in found["access tags"].said
        assert "proposal-1" not in found["access tags"].said

    def test_doctor_names_containers_that_only_their_maker_sees(self, facility: Facility) -> None:
        for name in ("raw", "denoised"):
            found = facility.untagged[name]
            assert (found.verdict, facility.service in found.said) == ("warning", True)
            assert "--access-tag" in found.remedy
            assert facility.get("alice", f"/metadata/{name}").status_code == 200, "it has a tag since"

    def test_prepare_gives_containers_other_tags_or_says_why_not(
        self, facility: Facility, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TILED_API_KEY", facility.keys["service"])
        root = facility.client("service")

        def prepared(*tags: str) -> Any:
            options = [part for tag in tags for part in ("--access-tag", tag)]
            done = CliRunner().invoke(app, ["prepare", facility.server.url, "--frames", str(facility.frames), *options])
            assert list(root["raw"].access_tags) == list(root["denoised"].access_tags)
            return list(root["raw"].access_tags), done.exception

        try:
            assert prepared("proposal-1") == (["proposal-1"], None)
            assert facility.get("bob", "/metadata/raw").status_code == 404
            assert prepared() == (["proposal-1"], None), "nothing is asked for"
            tags, error = prepared("everyone", "nobodys")
            assert tags == ["proposal-1"]
            assert isinstance(error, SymDenoiseError)
            assert "nobodys" in error.rule
            assert "\n" not in str(error)
        finally:
            prepared("everyone")
        assert facility.get("bob", "/metadata/raw").status_code == 200

    def test_doctor_has_no_problem_with_the_sample(self, facility: Facility) -> None:
        before = set(facility.client("service")["denoised"])
        found = {finding.check: finding for finding in examine(facility.server.url, api_key=facility.keys["service"])}
        # Of the server: whether this package is installed or on the path is another matter.
        assert {check for check, finding in found.items() if finding.verdict == "problem"} <= {"client class"}
        assert found["access tags"].said == "may be applied: proposal-1, proposal-2"
        assert set(facility.client("service")["denoised"]) == before

    def test_doctor_says_what_a_users_key_lacks(self, facility: Facility) -> None:
        found = {finding.check: finding for finding in examine(facility.server.url, api_key=facility.keys["alice"])}
        assert found["scopes"].verdict == "problem"
        assert "register" in found["scopes"].said
        assert found["frames"].verdict == "warning", "nothing was tried"


@pytest.mark.skipif("register" not in bluesky_symdenoise.__all__, reason="this version computes no runs on read")
def test_runs_computed_on_read_are_ones_own_only(facility: Facility) -> None:
    root = facility.client("service")
    run = bluesky_symdenoise.register(root["raw"][facility.raw["alice"]], into=root["denoised"], symmetry="1")
    uid = run.start["uid"]
    try:
        assert list(run.access_tags) == ["proposal-1"]
        for path in ("/metadata/denoised/{uid}", "/array/full/denoised/{uid}/primary/det"):
            assert facility.get("alice", path.format(uid=uid)).status_code == 200
            assert facility.get("bob", path.format(uid=uid)).status_code == 404
    finally:
        root["denoised"][uid].delete(recursive=True, external_only=False)


class TestAServerWithoutAPolicy:
    """Such a server silently drops all tags."""

    def test_a_tag_for_the_containers_is_refused(self, catalog: Container, frames_folder: Path) -> None:
        with pytest.raises(SymDenoiseError, match=r"everyone of raw: .*no access policy"):
            prepare(catalog, frames=frames_folder, access_tags=["everyone"])

    @pytest.mark.parametrize("attach", [threaded, worker])
    def test_both_runs_are_without_tags(self, catalog: Container, frames_folder: Path, attach: Any) -> None:
        start = {"tiled_access_tags": ["proposal-1"]}
        uid, status = scan(catalog["raw"], catalog["denoised"], frames_folder, start=start, attach=attach)
        assert status.ok, status
        assert list(denoised_for(catalog, uid).access_tags) == []

    @pytest.mark.parametrize("attach", [threaded, worker])
    def test_a_run_whose_raw_run_is_elsewhere_is_not_written(
        self, catalog: Container, frames_folder: Path, attach: Any
    ) -> None:
        """The raw run may be restricted, while anybody could read the derived one."""
        start = {"tiled_access_tags": ["proposal-1"]}
        other = catalog.create_container("other")
        _, status = scan(other, catalog["denoised"], frames_folder, start=start, attach=attach)
        (error,) = status.errors
        assert "proposal-1 were asked for; it was deleted again" in error
        assert len(catalog["denoised"]) == 0
