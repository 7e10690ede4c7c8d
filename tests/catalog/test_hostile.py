"""Malicious requests to a server with lazy arrays are refused, and nothing outside its storage is read."""

from __future__ import annotations

import copy
import json
import logging
import os
import random
import traceback
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import h5py
import httpx
import numpy as np
import pytest
from raw_runs import write_run
from tiled.client.container import Container

from bluesky_symdenoise.acquisition.lazy.register import register
from bluesky_symdenoise.catalog.lazy.cache import FRAMES
from bluesky_symdenoise.catalog.server.serve import embedded_catalog
from bluesky_symdenoise.denoiser.infer import Denoiser

pytestmark = pytest.mark.server

SECRET = b"root:x:0:0:the secret"
#: Arrays with crafted data sources.
CRAFTED = 250
COUNTS = np.random.default_rng(0).poisson(2.0, (4, 32, 32)).astype(np.uint16)

#: Where Tiled itself answers 500, by exception and function: writing without a media type, an empty array as bytes, the
#: description of a node whose structure makes no sense, its own check of the storage.
TILED_500 = {
    "KeyError in router.py:put_array_full",
    "RuntimeError in adapter.py:_ensure_uri_within_readable_storage",
    "TypeError in array.py:as_buffer",
    "ValidationError in core.py:construct_resource",
    "ValueError in adapter.py:_ensure_uri_within_readable_storage",
}
#: And with these words, when it finds after reading that the array is not what the client expects.
TILED_SAYS = ("Internal server error", "The shape expected from the structure", "Block index out of range")

#: Values that a fuzzer puts where others belong.
ODD: list[Any] = [
    *(None, True, -1, 0, 1, 2**31, 2**63, 2**64, -(2**63), 1e308, 0.5, "", "\0", "../..", "/etc/passwd"),
    *("file:///etc/passwd", "a" * 5000, "<script>", "'; DROP TABLE nodes;--", [], {}, [[]], [1, 2], [None], ["x"]),
    *({"a": 1}, "1", "auto", "cpu", "cuda:99", [1e308, 1e308], [-5, 3], [2**62, 1], "application/x-hdf5"),
    *("multipart/related;type=image/tiff", "application/x-zarr"),
]
PARTS = [
    "0",
    "-1",
    "1",
    "9",
    "99999999999999999999",
    ":",
    "::",
    "::2",
    "::-1",
    "5:1",
    "...",
    "x",
    "",
    "1e3",
    "0:3:0",
    "None",
    "%00",
    "0x1",
]


class Tracebacks(logging.Handler):
    """Exceptions that the server logged: for each its type, and the package and function that raised it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, int] = {}
        self.ours: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if not record.exc_info or record.exc_info[1] is None or record.name == "bluesky_symdenoise":
            return
        error = record.exc_info[1]
        frames = traceback.extract_tb(error.__traceback__)
        if any("/bluesky_symdenoise/" in frame.filename for frame in frames):
            self.ours.append("".join(traceback.format_exception(error)))
        where = [frame for frame in frames if "/tiled/" in frame.filename]
        name = (
            f"{type(error).__name__} in {Path(where[-1].filename).name}:{where[-1].name}"
            if where
            else type(error).__name__
        )
        self.seen[name] = self.seen.get(name, 0) + 1


class Server:
    """A served lazy run, and raw HTTP to it."""

    def __init__(self, client: Container, home: Path) -> None:
        self.home, self.frames = home, home / "catalog" / "frames"
        uid = write_run(client["raw"], self.frames, {"det": COUNTS})
        made = register(client["raw"][uid], client["denoised"], denoiser=Denoiser.pretrained(device="cpu", threads=1))
        array = made["primary"]["det"]
        source = array.data_sources()[0]
        self.parameters: dict[str, Any] = json.loads(json.dumps(source.parameters))
        self.structure: dict[str, Any] = json.loads(json.dumps(source.structure))
        self.assets = [{k: v for k, v in vars(a).items() if k not in ("id", "size")} for a in source.assets]
        self.api = str(client.context.api_uri)
        self.http = httpx.Client(
            headers={"Authorization": f"Apikey {client.context.api_key}"}, timeout=60, trust_env=False
        )
        self.nodes = 0
        node = self.create()
        assert node is not None
        self.good = node

    def create(self, **changed: Any) -> str | None:
        """Register an array with something changed; its name, or None if Tiled refuses."""
        self.nodes += 1
        name = f"n{self.nodes}"
        source = {
            "structure_family": "array",
            "structure": self.structure,
            "mimetype": "application/x-symdenoise",
            "parameters": self.parameters,
            "assets": self.assets,
            "management": "external",
        }
        body = {
            "id": name, "structure_family": "array", "metadata": {}, "specs": [], "data_sources": [source | changed],
        }  # fmt: skip
        try:
            answer = self.http.post(f"{self.api}register/", content=json.dumps(body))
        except httpx.HTTPError:
            return None
        return name if answer.status_code == 200 else None

    def read(self, name: str, **params: str) -> httpx.Response:
        return self.http.get(f"{self.api}array/full/{name}", params=params)

    def asset(self, path: Path | str, **changed: Any) -> list[dict[str, Any]]:
        uri = path if isinstance(path, str) else f"file://localhost{path}"
        return [self.assets[0] | {"data_uri": uri} | changed]

    def altered(self, path: Path | str, **parameters: Any) -> str | None:
        """Register another file as the source, with its true stamp."""
        status = os.stat(path) if isinstance(path, Path) else None
        stamps = [[status.st_mtime_ns, status.st_size]] if status else self.parameters["stamps"]
        return self.create(parameters=self.parameters | {"stamps": stamps} | parameters, assets=self.asset(path))


@pytest.fixture(scope="module")
def server(home: Path, request: pytest.FixtureRequest) -> Any:
    (home / "outside").mkdir()
    with embedded_catalog(home / "catalog") as client:
        server = Server(client, home)
        with closing(server.http):
            yield server


def computed() -> float:
    total: float = FRAMES.labels("computed")._value.get()
    return total


def refused(answer: httpx.Response) -> str:
    """The one line of a refusal of ours."""
    assert answer.status_code in (400, 422), (answer.status_code, answer.text[:300])
    said: str = answer.json()["detail"]
    assert "\n" not in said
    assert SECRET.decode() not in answer.text
    return said


def test_the_untouched_registration_is_read(server: Server) -> None:
    """Control: without the changes below, the registration is accepted."""
    answer = server.read(server.good, slice="1", format="application/octet-stream")
    assert answer.status_code == 200
    assert np.isfinite(np.frombuffer(answer.content, np.float32)).all()


class TestPlaces:
    """Files outside the readable storage."""

    @pytest.fixture
    def secret(self, server: Server) -> Path:
        path = server.home / "outside" / "secret.h5"
        if not path.exists():
            with h5py.File(path, "w") as file:
                file.create_dataset("det", data=COUNTS[:, np.newaxis])
        return path

    def test_uris_of_other_places_and_schemes(self, server: Server, secret: Path) -> None:
        inside = server.assets[0]["data_uri"]
        for uri in (
            f"{server.frames}/../../outside/secret.h5",
            "http://127.0.0.1:9/x.h5",
            "https://example.org/x.h5",
            "s3://bucket/x.h5",
            "sqlite:////etc/passwd",
            "data:,x",
            "relative.h5",
            "",
            "file:",
            inside.replace("file://", "FILE://"),
            inside + "%00",
        ):
            name = server.altered(uri if ":" in uri or not uri.startswith("/") else f"file://localhost{uri}")
            if name is not None:
                assert server.read(name, slice="1").status_code != 200, uri
        name = server.altered(secret)
        assert name is not None
        answer = server.read(name, slice="1")
        assert answer.status_code == 500, "Tiled's own check comes first"
        for role in (None, "data_uris", "mask"):
            name = server.create(
                assets=[server.assets[0] | {"data_uri": f"file://localhost{secret}", "parameter": role}]
            )
            if name is not None:
                assert server.read(name, slice="1").status_code != 200

    def test_links(self, server: Server, secret: Path) -> None:
        link = server.frames / "link.h5"
        link.symlink_to(secret)
        (server.frames / "folder").symlink_to(secret.parent)
        for path in (link, server.frames / "folder" / "secret.h5"):
            name = server.altered(path)
            assert name is not None
            assert "outside the server's readable storage" in refused(server.read(name, slice="1"))

    def test_references_inside_hdf5(self, server: Server, secret: Path) -> None:
        plain = server.home / "outside" / "plain.txt"
        plain.write_bytes(SECRET * 500)
        for kind in ("external link", "virtual", "virtual in virtual", "raw bytes"):
            path = server.frames / f"{kind.replace(' ', '')}.h5"
            with h5py.File(path, "w") as file:
                if kind == "external link":
                    file["det"] = h5py.ExternalLink(str(secret), "det")
                elif kind == "raw bytes":
                    file.create_dataset("det", (4, 1, 32, 32), "u2", external=[(str(plain), 0, 8192)])
                else:
                    of = secret if kind == "virtual" else server.frames / "virtual.h5"
                    layout = h5py.VirtualLayout((4, 1, 32, 32), "u2")
                    layout[:] = h5py.VirtualSource(str(of), "det", (4, 1, 32, 32))
                    file.create_virtual_dataset("det", layout)
            name = server.altered(path)
            assert name is not None
            before = computed()
            said = refused(server.read(name, slice="1"))
            assert "outside the server's readable storage" in said or "not HDF5" in said, (kind, said)
            assert computed() == before


class TestSizes:
    """Small files that expand to large data."""

    def bomb(self, path: Path, kind: str) -> None:
        with h5py.File(path, "w") as file:
            if kind == "chunk":
                file.create_dataset(
                    "det",
                    (4, 1, 32, 32),
                    "u2",
                    chunks=(2**18, 1, 32, 32),
                    maxshape=(None, 1, 32, 32),
                    compression="gzip",
                )
                return
            if kind == "shape":
                file.create_dataset("det", (4, 1, 2**15, 2**15), "u2", chunks=(1, 1, 2**10, 2**10), compression="gzip")
                return
            made = file.create_dataset("det", (4, 1, 32, 32), "u2", chunks=(1, 1, 32, 32), compression="gzip")
            zeros = zlib.compressobj(9)
            raw = b"".join(zeros.compress(bytes(2**24)) for _ in range(32)) + zeros.flush()
            made.id.write_direct_chunk((1, 0, 0, 0), raw)

    @pytest.mark.parametrize("kind", ["chunk", "shape", "deflate"])
    def test_bombs_in_hdf5(self, server: Server, kind: str) -> None:
        path = server.frames / f"{kind}.h5"
        self.bomb(path, kind)
        name = server.altered(path)
        assert name is not None
        before = computed()
        said = refused(server.read(name, slice="1"))
        assert {"chunk": "a chunk has at most", "shape": "at most", "deflate": "a compressed block of"}[kind] in said
        assert computed() == before

    def test_filters_that_cannot_be_foreseen(self, server: Server) -> None:
        import hdf5plugin

        path = server.frames / "blosc2.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset("det", data=COUNTS[:, np.newaxis], chunks=(1, 1, 32, 32), **hdf5plugin.Blosc2())
        name = server.altered(path)
        assert name is not None
        assert "cannot be known beforehand" in refused(server.read(name, slice="1"))

    @pytest.mark.parametrize("plugin", ["Bitshuffle", "Blosc", "LZ4", "Zstd", None])
    def test_frames_as_detectors_compress_them_are_read(self, server: Server, plugin: str | None) -> None:
        """Control."""
        import hdf5plugin

        path = server.frames / f"{plugin}.h5"
        with h5py.File(path, "w") as file:
            options = getattr(hdf5plugin, plugin)() if plugin else {"compression": "lzf", "shuffle": True}
            file.create_dataset("det", data=COUNTS[:, np.newaxis], chunks=(1, 1, 32, 32), **options)
        name = server.altered(path)
        assert name is not None
        assert server.read(name, slice="1").status_code == 200

    def test_oversized_shapes(self, server: Server) -> None:
        for shape in ([10**9, 1, 32, 32], [4, 1, 10**5, 10**5], [4, 10**6, 32, 32], [2**62, 1, 32, 32]):
            structure = server.structure | {"shape": shape, "chunks": [[size] for size in shape]}
            name = server.create(structure=structure, parameters=server.parameters | {"shape": shape})
            if name is not None:
                before = computed()
                refused(server.read(name))
                assert computed() == before


def test_a_model_that_is_not_the_registered_one_is_refused(server: Server) -> None:
    recipe = server.parameters["recipe"]
    for parameters in (
        {"model": "/etc/passwd"},
        {"model": "../models/fast"},
        {"recipe": recipe | {"model_sha256": "0" * 64}},
        {"recipe": recipe | {"algorithm": "0"}},
        {"recipe": recipe | {"algorithm": "9", "sharpness": 3}},
        {"recipe": recipe | {"algorithm": ["6"]}},
        {"recipe": recipe | {"sharpness": 3}},
        {"recipe": {}},
    ):
        name = server.create(parameters=server.parameters | parameters)
        assert name is not None
        before = computed()
        refused(server.read(name, slice="1"))
        assert computed() == before


def test_a_model_is_found_by_its_sha256_whatever_it_is_called(server: Server) -> None:
    name, honest = (server.create(parameters=server.parameters | {"model": called}) for called in ("other", "fast"))
    assert name is not None
    assert honest is not None
    answer = server.read(name, slice="1")
    assert (answer.status_code, answer.content) == (200, server.read(honest, slice="1").content)


def fuzzed(rng: random.Random, server: Server) -> dict[str, Any]:
    """A data source with one to three values replaced."""
    source = copy.deepcopy({"parameters": server.parameters, "assets": server.assets, "structure": server.structure})
    for _ in range(rng.randint(1, 3)):
        part = rng.choices(["parameters", "recipe", "asset", "structure"], [8, 4, 2, 2])[0]
        target = {
            "parameters": source["parameters"],
            "recipe": source["parameters"].get("recipe"),
            "asset": source["assets"][0],
            "structure": source["structure"],
        }[part]
        if isinstance(target, dict) and target:
            key = rng.choice([*target, "unknown"])
            if rng.random() < 0.1:
                target.pop(key, None)
            else:
                target[key] = rng.choice(ODD)
    return source


def test_two_thousand_hostile_requests_get_no_500_of_ours_and_nothing_from_outside(server: Server) -> None:
    """Crafted data sources, then reads of them and of a good array with malformed slices, blocks and formats."""
    rng = random.Random(5)
    (server.home / "outside" / "passwd").write_bytes(SECRET)
    counted: dict[int, int] = {}
    foreign: list[str] = []

    def ask(method: str, url: str, **options: Any) -> None:
        for _ in range(5):
            try:
                answer = server.http.request(method, url, **options)
                break
            except httpx.InvalidURL:
                return
            except (httpx.ReadError, httpx.RemoteProtocolError):
                # After a 500 of its own the server closes a connection, which the next request may meet.
                continue
        else:
            raise AssertionError(f"no answer to {method} {url} {options}")
        counted[answer.status_code] = counted.get(answer.status_code, 0) + 1
        assert SECRET not in answer.content
        if answer.status_code >= 500:
            foreign.append(f"{method} {url} {options}: {answer.text[:300]}")

    names = [name for name in (server.create(**fuzzed(rng, server)) for _ in range(CRAFTED)) if name is not None]
    requests: list[tuple[str, str, dict[str, Any]]] = []
    for name in names:
        for slice_ in ("1", ",".join(rng.choices(PARTS, k=rng.randint(1, 4)))):
            requests.append(("GET", f"{server.api}array/full/{name}", {"params": {"slice": slice_}}))
        requests.append(("GET", f"{server.api}metadata/{name}", {}))
    while len(requests) < 1500:
        kind = rng.choice(["full", "block"])
        params = {"slice": ",".join(rng.choices(PARTS, k=rng.randint(0, 6)))}
        if kind == "block":
            params["block"] = ",".join(rng.choices(PARTS, k=rng.randint(1, 5)))
        if rng.random() < 0.3:
            params["format"] = rng.choice(
                ["text/csv", "application/json", "image/png", "x/y", "", "../..", "application/octet-stream"]
            )
        if rng.random() < 0.2:
            params["expected_shape"] = rng.choice(["1,1", "scalar", "x", "99999999999999999999999", "32,32"])
        requests.append(("GET", f"{server.api}array/{kind}/{server.good}", {"params": params}))
    for _ in range(300):
        method = rng.choice(["PUT", "POST", "PATCH", "DELETE", "OPTIONS", "GET"])
        route = rng.choice(["array/full", "array/block", "asset/bytes", "asset/manifest", "node/full", "table/full"])
        body = rng.randbytes(rng.randint(0, 64))
        if method in ("PUT", "POST", "PATCH", "DELETE"):
            route = "array/full"  # What Tiled writes and deletes is not ours to break.
        requests.append(
            (
                method,
                f"{server.api}{route}/{server.good}",
                {"content": body, "params": {"id": rng.choice(["0", "1", "x", "99"])}},
            )
        )
    rng.shuffle(requests)
    tracebacks = Tracebacks()
    logging.getLogger().addHandler(tracebacks)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda request: ask(request[0], request[1], **request[2]), requests))
    finally:
        logging.getLogger().removeHandler(tracebacks)
    print(f"{CRAFTED + len(requests)} requests, answers {dict(sorted(counted.items()))}, {len(names)} crafted arrays")
    print("Tiled's own:", dict(sorted(tracebacks.seen.items())))
    assert CRAFTED + len(requests) >= 2000
    assert not tracebacks.ours, tracebacks.ours[0]
    unknown = set(tracebacks.seen) - TILED_500
    assert not unknown, (unknown, foreign[:3])
    assert not [line for line in foreign if not any(words in line for words in TILED_SAYS)]
    assert server.read(server.good, slice="1").status_code == 200, "the server lives"
