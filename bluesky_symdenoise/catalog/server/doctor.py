"""Diagnosis of what may go wrong between this computer and a Tiled server, before a scan."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import httpx
from packaging.version import Version
from tiled.utils import parse
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from bluesky_symdenoise.catalog.find.query import SPEC
from bluesky_symdenoise.catalog.server.finding import Finding
from bluesky_symdenoise.catalog.server.probe import try_out
from bluesky_symdenoise.catalog.server.recipes import recipes
from bluesky_symdenoise.catalog.server.serve import config_path
from bluesky_symdenoise.catalog.store.containers import CATALOGUE, FRAMES_FOLDER
from bluesky_symdenoise.denoiser.weights import load_model
from bluesky_symdenoise.errors import SymDenoiseError

#: Scopes that an API key needs for denoising, and for deleting the doctor's probe nodes.
WRITING = frozenset({"read:metadata", "read:data", "write:metadata", "write:data", "create:node", "register"})
DELETING = frozenset({"delete:node", "delete:revision"})
_PATIENCE_S = 10.0
_SKEW_S = 30.0
#: How many of the newest runs are examined.
_RUNS = 100


def examine(uri: str, *, api_key: str | None, directory: str | Path | None = None) -> Iterator[Finding]:
    """Check a server and this installation, and yield one finding after the other.

    Test data written to the server and to the folder of frames are removed again, and nothing is written where the key
    could not remove it.

    Parameters
    ----------
    uri
        ``http://host:port``, with or without ``/api/v1``.
    api_key
        Key that denoising uses.
    directory
        Folder of denoised frames, where the container does not name it.

    Raises
    ------
    SymDenoiseError
        If `uri` is not the address of a server.
    """
    yield from _installation()
    headers = {"Authorization": f"Apikey {api_key}"} if api_key else {}
    try:
        # Open a new connection for each request: Tiled closes it after an internal error, and the next request must
        # not fail.
        limits = httpx.Limits(max_keepalive_connections=0)
        with httpx.Client(
            base_url=_api(uri), headers=headers, timeout=_PATIENCE_S, trust_env=False, limits=limits
        ) as http:
            yield from _ServerChecks(http, directory=directory).findings()
    except httpx.TransportError as error:
        yield Finding(
            "server",
            "problem",
            f"{uri} cannot be reached ({str(error) or type(error).__name__})",
            "start it, or check host, port and firewall",
        )
    except httpx.HTTPStatusError as error:
        yield Finding(
            "server",
            "problem",
            f"{error.request.url.path} is answered with {error.response.status_code}",
            "see the server's log",
        )


def _api(uri: str) -> str:
    try:
        url = httpx.URL(uri)
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host:
        raise SymDenoiseError(uri, rule="it is not the address of a Tiled server", remedy="give http://HOST:PORT")
    return str(url.copy_with(path=f"{url.path.partition('/api/v1')[0].rstrip('/')}/api/v1/", query=None))


def _installation() -> Iterator[Finding]:
    try:
        model = load_model()
        yield Finding("model", "OK", f"{model.name} {model.version} loads, sha256 {model.sha256[:12]}")
    except SymDenoiseError as error:
        yield Finding("model", "problem", f"{error.value}: {error.rule}", error.remedy)
    registered = [point for point in entry_points(group="tiled.special_client") if point.name == SPEC]
    if registered:
        yield Finding("client class", "OK", f"Tiled gives runs of the spec {SPEC} the class {registered[0].value}")
    else:
        yield Finding(
            "client class", "problem", f"none is registered for {SPEC}", "install bluesky-symdenoise with pip"
        )


class _ServerChecks:
    def __init__(self, http: httpx.Client, *, directory: str | Path | None) -> None:
        self._http, self._directory = http, directory
        self._scopes: frozenset[str] | None = None

    def findings(self) -> Iterator[Finding]:
        begun = time.time()
        answer = self._http.get("")
        if not answer.is_success or "library_version" not in answer.text:
            yield Finding(
                "server",
                "problem",
                f"{self._http.base_url} answers {answer.status_code}, not as Tiled does",
                "check the URL",
            )
            return
        about = answer.json()
        yield self._version(about["library_version"])
        yield _clock(answer, begun=begun, ended=time.time())
        root = self._http.get("metadata/")
        if not root.is_success and "Authorization" not in self._http.headers:
            yield Finding("key", "problem", "TILED_API_KEY is not set", "set it to a key of this server")
            return
        if not root.is_success:
            yield Finding(
                "key",
                "problem",
                f"the server does not know this key, or it may not read ({root.status_code})",
                "put a valid key into TILED_API_KEY; with an access policy, top_level_access_tags must let it in",
            )
            return
        if not about["authentication"]["required"]:
            yield Finding(
                "anonymous",
                "warning",
                "anybody may read without a key",
                "set authentication.allow_anonymous_access: false",
            )
        yield self._key_scopes(about)
        yield from _exporters(about["formats"])
        specs = root.json()["data"]["attributes"]["specs"]
        if any(spec["name"] == CATALOGUE[0] for spec in specs):
            yield Finding(
                "root",
                "problem",
                f"it has the spec {CATALOGUE[0]}: clients then find neither `raw` nor `denoised` in it",
                "take it out of `specs` of the catalog in the server's configuration; only the two containers carry it",
            )
        containers = {}
        for name in ("raw", "denoised"):
            found, finding = self._container(name)
            containers[name] = found
            yield finding
        if containers["denoised"] is None:
            return
        yield from self._streaming()
        yield from self._derived_runs()
        yield from recipes(self._http)
        yield from self._tables()
        yield from self._probes(containers["denoised"])

    def _version(self, served: str) -> Finding:
        here = version("tiled")
        said = f"Tiled {served} there, {here} here"
        if Version(served) < Version("0.2.20"):
            return Finding("server", "problem", f"{said}; 0.2.20 or newer is needed", "upgrade the server")
        if Version(served).release[:2] != Version(here).release[:2]:
            return Finding("server", "warning", said, "install the same minor version on both sides")
        return Finding("server", "OK", said)

    def _key_scopes(self, about: dict[str, Any]) -> Finding:
        if not about["authentication"]["providers"]:
            self._scopes = WRITING | DELETING
            return Finding("scopes", "OK", "the server has one key, and it may do all that denoising needs")
        key, who = self._http.get("auth/apikey"), self._http.get("auth/whoami")
        if not (key.is_success and who.is_success):
            return Finding(
                "scopes",
                "problem",
                "the server does not say what this key may do",
                "use an API key, made for a service",
            )
        granted = {scope for role in who.json()["roles"] for scope in role["scopes"]}
        limits = set(key.json()["scopes"])
        self._scopes = frozenset(granted if "inherit" in limits else granted & limits)
        missing = sorted(WRITING - self._scopes)
        if missing:
            return Finding(
                "scopes",
                "problem",
                f"the key lacks {', '.join(missing)}",
                "reading alone needs none of them; for denoising make a service's key with them: `register` is not in "
                "Tiled's role user, but in admin or a role of your own",
            )
        if "admin:apikeys" in self._scopes:
            return Finding(
                "scopes",
                "warning",
                "the key is an administrator's, and no access policy binds it",
                f"make one that is limited to {' '.join(sorted(WRITING | DELETING))}",
            )
        if missing := sorted(DELETING - self._scopes):
            return Finding(
                "scopes",
                "warning",
                f"the key lacks {', '.join(missing)}: a replay cannot replace a run that failed",
                "make a key with them",
            )
        return Finding("scopes", "OK", "the key has all that denoising needs")

    def _container(self, name: str) -> tuple[dict[str, Any] | None, Finding]:
        answer = self._http.get(f"metadata/{name}")
        if not answer.is_success:
            return None, Finding(
                name,
                "problem",
                "there is none, or this key may not see it",
                "with the service's key run `symdenoise prepare`, on a server with an access policy with "
                "--access-tag TAG, a tag that shows the container to all who look for runs",
            )
        attributes = answer.json()["data"]["attributes"]
        if {"name": CATALOGUE[0], "version": CATALOGUE[1]} not in attributes["specs"]:
            return attributes, Finding(
                name,
                "problem",
                f"it lacks the spec {' '.join(CATALOGUE)}",
                "if it is empty, delete it and run `symdenoise prepare`; otherwise give it the spec by hand",
            )
        tags = attributes["access_tags"]
        # A node written without tags gets a tag of the user who made it; nobody else can see it then.
        if tags and all(tag.startswith(("user:", "service:")) for tag in tags):
            return attributes, Finding(
                name,
                "warning",
                f"no one else sees it: its only access tag is {', '.join(tags)}",
                "run `symdenoise prepare` with --access-tag TAG, a tag that shows it to all who look for runs",
            )
        return attributes, Finding(name, "OK", "is a catalogue of Bluesky runs")

    def _newest(self, container: str, **parameters: str) -> list[dict[str, Any]]:
        found = self._http.get(
            f"search/{container}", params={"page[limit]": str(_RUNS), "sort": "-", **parameters}
        ).raise_for_status()
        return list(found.json()["data"])

    def _derived_runs(self) -> Iterator[Finding]:
        runs = self._newest("denoised")
        without = [run["id"] for run in runs if SPEC not in {spec["name"] for spec in run["attributes"]["specs"]}]
        if without:
            yield Finding(
                "specs",
                "warning",
                f"{len(without)} of the {len(runs)} newest runs in `denoised` lack the spec {SPEC}: {without[0]}",
                "move them elsewhere if they are not denoised runs, otherwise replay them",
            )
        else:
            yield Finding("specs", "OK", f"the {len(runs)} newest runs in `denoised` have the spec {SPEC}")

    def _tables(self) -> Iterator[Finding]:
        for run in self._newest("raw")[:1] + self._newest("denoised")[:1]:
            container = run["attributes"]["ancestors"][0]
            path = f"metadata/{container}/{run['id']}/primary/internal"
            answer = self._http.get(path, params={"include_data_sources": "true"})
            if not answer.is_success:
                continue
            sources = answer.json()["data"]["attributes"].get("data_sources") or []
            if any(asset["data_uri"].startswith("sqlite") for source in sources for asset in source["assets"]):
                yield Finding(
                    "tables",
                    "warning",
                    "the runs' scalars are in SQLite, which lets one client write at a time",
                    "use PostgreSQL in TILED_CATALOG_WRITABLE_STORAGE where several detectors or workers write",
                )
                return

    def _streaming(self) -> Iterator[Finding]:
        url = self._http.base_url.join("stream/single/denoised").copy_with(
            scheme="wss" if self._http.base_url.scheme == "https" else "ws"
        )
        headers = {"Authorization": self._http.headers.get("Authorization", "")}
        try:
            with connect(str(url), additional_headers=headers, open_timeout=_PATIENCE_S, proxy=None):
                yield Finding("streaming", "OK", "live subscribers are served")
        except (OSError, WebSocketException) as error:
            yield Finding(
                "streaming",
                "warning",
                f"live subscribers are not served ({error})",
                "set streaming_cache, or TILED_STREAMING_CACHE_URI, for the server; DenoiseCallback needs none",
            )

    def _probes(self, denoised: dict[str, Any]) -> Iterator[Finding]:
        folder = self._directory or denoised["metadata"].get(FRAMES_FOLDER)
        if folder is None:
            yield Finding(
                "frames",
                "problem",
                "nothing names the folder of denoised frames",
                "run `symdenoise prepare --frames DIR`, or give --directory here and directory=... to DenoiseCallback",
            )
            return
        if self._scopes is None or not self._scopes >= WRITING | DELETING:
            yield Finding(
                "frames",
                "warning",
                "not tried, as this key could not register a file and remove it again",
                f"use a key with {' '.join(sorted(WRITING | DELETING))}",
            )
            return
        tags = sorted({tag for run in self._newest("raw") for tag in run["attributes"]["access_tags"]})
        yield from try_out(self._http, Path(folder), tags=tags)


def _exporters(formats: dict[str, list[str]]) -> Iterator[Finding]:
    ours: dict[str, dict[str, str]] = parse(config_path())["media_types"]
    missing = [
        f"{media} of {family}"
        for family, types in ours.items()
        for media in types
        if media not in formats.get(family, ())
    ]
    if missing:
        yield Finding(
            "exporters",
            "problem",
            f"the server does not export {', '.join(missing)}",
            "take over media_types from tiled_config.yml, and install bluesky-symdenoise on the server",
        )
    else:
        yield Finding("exporters", "OK", "the server exports all that tiled_config.yml names")


def _clock(answer: httpx.Response, *, begun: float, ended: float) -> Finding:
    stamp = answer.headers.get("date")
    if stamp is None:
        return Finding("clock", "warning", "the server sends no date", "check that the clocks agree")
    there = parsedate_to_datetime(stamp).timestamp()
    # The server's date has a resolution of one second.
    skew = max(0.0, begun - (there + 1), there - ended)
    if skew > _SKEW_S:
        now = datetime.fromtimestamp(there, UTC).isoformat()
        return Finding(
            "clock", "warning", f"the server's clock is {skew:.0f} s off (it says {now})", "synchronise both by NTP"
        )
    return Finding("clock", "OK", f"agrees within {skew + 1:.0f} s")
