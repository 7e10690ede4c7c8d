"""A small file that is registered on a server to test it, and removed again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import h5py
import httpx
import numpy as np

from bluesky_symdenoise.catalog.lazy.parameters import MIMETYPE
from bluesky_symdenoise.catalog.server.finding import Finding
from bluesky_symdenoise.errors import SymDenoiseError


def try_out(http: httpx.Client, folder: Path, *, tags: Sequence[str]) -> Iterator[Finding]:
    """Test whether the server reads files written here, whether its key may apply tags, and computing on read.

    Parameters
    ----------
    http
        With the server's API as base and a key that may register and delete.
    folder
        Folder of denoised frames.
    tags
        Access tags of the raw runs.

    Raises
    ------
    SymDenoiseError
        If the node that was made cannot be removed again.
    """
    path = folder / f"symdenoise-doctor-{uuid4().hex}.h5"
    try:
        path.touch()
    except OSError as error:
        said = f"this computer has no folder {folder}"
        remedy = f"make it, `mkdir -p {folder}`, if this computer denoises; otherwise run `symdenoise doctor` there"
        if folder.is_dir():
            said = f"this computer cannot write to {folder} ({error.strerror})"
            remedy = "give it write permission for the user who denoises"
        yield Finding("frames", "problem", said, remedy)
        yield _lazy_not_tried()
        return
    try:
        with h5py.File(path, "w") as file:
            file["frame"] = np.arange(4.0)
        with _Probe(http, path) as probe:
            frames = probe.frames()
            yield frames
            if probe.made:
                yield from _tags(probe, tags)
        # A server that cannot read the file answers 500, whether it has our adapter or not.
        yield _lazy(http, path) if frames.verdict == "OK" else _lazy_not_tried()
    finally:
        path.unlink()


def _lazy_not_tried() -> Finding:
    return Finding("lazy runs", "warning", "not tried, as the server cannot read our files", "fix `frames` first")


def _tags(probe: _Probe, tags: Sequence[str]) -> Iterator[Finding]:
    if not tags:
        return
    refused = [tag for tag in tags if not probe.may_apply(tag)]
    if refused:
        yield Finding(
            "access tags",
            "problem",
            f"this key's principal may not apply {', '.join(refused)}, which raw runs carry",
            "make it an owner of these tags (tag_owners), and let each grant it the scopes for writing",
        )
    else:
        yield Finding("access tags", "OK", f"may be applied: {', '.join(tags)}")


def _lazy(http: httpx.Client, path: Path) -> Finding:
    with _Probe(http, path, mimetype=MIMETYPE) as probe:
        # Our adapter answers 422 because the parameters of this probe are incomplete.
        if not probe.made or probe.read().status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
            return Finding(
                "lazy runs",
                "problem",
                f"not served: the server has no adapter for {MIMETYPE}",
                "install bluesky-symdenoise on the server and take over adapters_by_mimetype from tiled_config.yml",
            )
        return Finding("lazy runs", "OK", f"the server has an adapter for {MIMETYPE}")


class _Probe:
    """A temporary node of one small file in `denoised`; it is removed at the end."""

    def __init__(self, http: httpx.Client, path: Path, *, mimetype: str = "application/x-hdf5") -> None:
        self._http, self._path, self._mimetype = http, path, mimetype
        self._key = path.stem + ("-lazy" if mimetype == MIMETYPE else "")
        self.made = False
        self._refusal = ""

    def __enter__(self) -> _Probe:
        structure = {
            "data_type": {"endianness": "little", "kind": "f", "itemsize": 8},
            "chunks": [[4]],
            "shape": [4],
            "dims": None,
            "resizable": False,
        }
        source = {
            "structure_family": "array",
            "structure": structure,
            "mimetype": self._mimetype,
            "parameters": {"dataset": "frame"},
            "management": "external",
            "assets": [
                {
                    "data_uri": f"file://localhost{self._path.as_posix()}",
                    "is_directory": False,
                    "parameter": "data_uris",
                    "num": 0,
                }
            ],
        }
        answer = self._http.post("register/denoised", json=self._node() | {"data_sources": [source]})
        self.made = answer.is_success
        self._refusal = f"{answer.status_code}: {_detail(answer)}"
        return self

    def __exit__(self, *_: object) -> None:
        if self.made:
            removed = self._http.delete(f"metadata/denoised/{self._key}")
            if not removed.is_success:
                raise SymDenoiseError(
                    f"denoised/{self._key}",
                    rule=f"it was made to try the server and cannot be removed ({_detail(removed)})",
                    remedy="delete it by hand",
                )

    def _node(self, **more: Any) -> dict[str, Any]:
        return {"id": self._key, "structure_family": "array", "metadata": {}, "specs": [], **more}

    def read(self) -> httpx.Response:
        return self._http.get(f"array/full/denoised/{self._key}", headers={"Accept": "application/octet-stream"})

    def frames(self) -> Finding:
        if not self.made:
            return Finding(
                "frames",
                "problem",
                f"a file in {self._path.parent} cannot be registered ({self._refusal})",
                "give the key's principal the scopes for this container, by a tag that the container has",
            )
        answer = self.read()
        if answer.is_success and answer.content == np.arange(4.0).tobytes():
            return Finding("frames", "OK", f"{self._path.parent} is written here and read by the server")
        return Finding(
            "frames",
            "problem",
            f"the server cannot read {self._path.parent} ({answer.status_code})",
            "add it to readable_storage (TILED_CATALOG_READABLE_STORAGE) and restart the server",
        )

    def may_apply(self, tag: str) -> bool:
        # Tiled checks the access policy before it rejects a name that is in use, so this request never creates a node.
        answer = self._http.post(
            "metadata/denoised",
            json={
                "id": self._key,
                "structure_family": "container",
                "metadata": {},
                "access_tags": [tag],
                "data_sources": [],
                "specs": [],
            },
        )
        return answer.status_code == httpx.codes.CONFLICT


def _detail(answer: httpx.Response) -> str:
    try:
        return " ".join(str(answer.json()["detail"]).split())
    except (ValueError, KeyError, TypeError):
        return answer.reason_phrase
