"""Storage of models, by name and by sha256: those of the package and those that a user tuned or imported."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from platformdirs import user_data_path

from bluesky_symdenoise.denoiser.released import SHIPPED, where_weights_are
from bluesky_symdenoise.errors import SymDenoiseError

#: Environment variable with the folder of models, instead of the one in the user's data directory.
MODELS_VARIABLE = "SYMDENOISE_MODELS"

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
#: Strings that a search treats as the sha256 of a model, or its beginning.
SHA256_LIKE = re.compile(r"[0-9a-fA-F]{8,64}")
_SUFFIXES = (".safetensors", ".json", ".md")


@dataclass(frozen=True)
class Entry:
    """A model that can be loaded by name.

    Attributes
    ----------
    record
        Record of the model: name, version, sha256 and training; lineage and figures if it was tuned.
    weights
        The safetensors file; the record (.json) and the model card (.md) are beside it.
    shipped
        Whether it belongs to the package.
    """

    name: str
    record: Mapping[str, Any]
    weights: Any
    shipped: bool

    @property
    def sha256(self) -> str:
        """Sha256 of the weights."""
        return str(self.record["sha256"])

    @property
    def card(self) -> str:
        """Markdown of the model card; empty if there is none."""
        path = self.weights.parent / f"{self.name}.md"
        return str(path.read_text()) if path.is_file() else ""


def models_folder() -> Path:
    """Return the folder of a user's models: SYMDENOISE_MODELS, else a folder in the user's data directory."""
    given = os.environ.get(MODELS_VARIABLE)
    return Path(given).expanduser() if given else user_data_path("bluesky-symdenoise") / "models"


def available() -> list[str]:
    """Return the names of the models in the package."""
    return sorted(
        entry.name.removesuffix(".safetensors") for entry in _shipped().iterdir() if entry.name.endswith(".safetensors")
    )


def registered() -> list[str]:
    """Return the names of the user's own models."""
    folder = models_folder()
    if not folder.is_dir():
        return []
    return sorted(each.name for each in folder.iterdir() if _NAME.fullmatch(each.name) and _record_path(each).is_file())


def entry(name: str) -> Entry:
    """Return the model of this name; the package's come first.

    Raises
    ------
    SymDenoiseError
        If there is none, or its record cannot be read.
    """
    shipped = name in available()
    if not shipped and name not in registered():
        own = registered()
        raise SymDenoiseError(
            f"model {name!r}",
            rule=f"the package has {', '.join(available()) or 'none'}, {models_folder()} {', '.join(own) or 'none'}",
            remedy="choose one of these, `symdenoise models import` it, or give the path of a .safetensors file",
        )
    folder = _shipped() if shipped else models_folder() / name
    return Entry(name, _read_record(folder / f"{name}.json"), folder / f"{name}.safetensors", shipped)


def entry_by_sha256(name: str, sha256: str, *, version: str | None = None) -> Entry:
    """Return the model with these weights, whatever its name is here.

    Parameters
    ----------
    name, version
        Name and version of the model where it was used, for the message.

    Raises
    ------
    SymDenoiseError
        If this computer has none.
    """
    found = found_by_sha256(sha256, first=name)
    if found is not None:
        return found
    known = SHIPPED.get(sha256)
    said = f"model {name!r}" + (f" version {known.version if known else version}" if known or version else "")
    raise SymDenoiseError(
        f"{said} with sha256 {sha256[:12]}",
        rule=f"neither the package nor {models_folder()} has it on this computer",
        remedy=where_weights_are(sha256, name),
    )


def found_by_sha256(sha256: str, *, first: str = "") -> Entry | None:
    """Return the model with these weights, whatever its name is, or None; `first` is the name that is tried first."""
    for each in sorted([*available(), *registered()], key=lambda each: each != first):
        try:
            found = entry(each)
        except SymDenoiseError:
            continue  # Skip damaged records: `symdenoise models list` names them.
        if found.sha256 == sha256:
            return found
    return None


def checked_new_name(name: str) -> str:
    """Return the name if a model can be registered under it.

    Raises
    ------
    SymDenoiseError
        If it is not a plain name, looks like a sha256, or is in use.
    """
    if not _NAME.fullmatch(name) or SHA256_LIKE.fullmatch(name):
        raise SymDenoiseError(
            f"model name {name!r}",
            rule="it must be a letter and up to 63 letters, digits, - or _, and must not look like a sha256",
            remedy="choose another, such as saxs-2026",
        )
    if name in available():
        raise SymDenoiseError(
            f"model name {name!r}", rule="the package has a model of this name", remedy="choose another"
        )
    if name in registered():
        raise SymDenoiseError(
            f"model name {name!r}",
            rule=f"{models_folder()} has a model of this name, and runs may refer to it",
            remedy=f"choose another, or `symdenoise models remove {name}` first",
        )
    return name


def add(name: str, content: bytes, record: Mapping[str, Any], card: str) -> Entry:
    """Register a model: either all of its files are written or none.

    Parameters
    ----------
    content
        The safetensors file, which the caller has checked.
    record
        At least ``version``; name and sha256 are set here.
    card
        Markdown.

    Raises
    ------
    SymDenoiseError
        If the name cannot be used, or the folder cannot be written.
    """
    checked_new_name(name)
    described = {**record, "name": name, "sha256": hashlib.sha256(content).hexdigest()}
    folder = models_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as made:
            inside = Path(made) / name
            inside.mkdir()
            text = json.dumps(described, indent=2) + "\n"
            for suffix, part in zip(_SUFFIXES, (content, text.encode(), card.encode()), strict=True):
                with (inside / f"{name}{suffix}").open("xb") as file:
                    file.write(part)
                    file.flush()
                    os.fsync(file.fileno())
            # Rename in one step, which fails if another process was faster: a folder that is not empty is not
            # replaced.
            inside.rename(folder / name)
    except OSError as error:
        raise SymDenoiseError(
            f"model {name!r}",
            rule=f"it cannot be written to {folder} ({error.strerror})",
            remedy=f"set {MODELS_VARIABLE} to a folder that you may write to, or choose another name",
        ) from error
    return entry(name)


def remove(name: str) -> Entry:
    """Remove a model of the user's own from the registry; return its entry.

    Raises
    ------
    SymDenoiseError
        If it belongs to the package, or there is none.
    """
    if name in available():
        raise SymDenoiseError(
            f"model {name!r}", rule="it belongs to the package", remedy="only your own models can be removed"
        )
    found = entry(name)
    try:
        with tempfile.TemporaryDirectory(dir=models_folder(), prefix=".old-") as gone:
            # Rename it in one step, so that nobody sees it half deleted; then delete it.
            (models_folder() / name).rename(Path(gone) / name)
    except OSError as error:
        raise SymDenoiseError(
            f"model {name!r}",
            rule=f"it cannot be removed from {models_folder()} ({error.strerror})",
            remedy="remove it as the owner of that folder",
        ) from error
    return found


def export(name: str, folder: Path) -> Path:
    """Copy a model's files into a folder, for `symdenoise models import` elsewhere; return the safetensors file.

    Raises
    ------
    SymDenoiseError
        If there is no such model, or files of its name are there already.
    """
    found = entry(name)
    wanted = [suffix for suffix in _SUFFIXES if (found.weights.parent / f"{name}{suffix}").is_file()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for suffix in wanted:
            with (
                (found.weights.parent / f"{name}{suffix}").open("rb") as source,
                (folder / f"{name}{suffix}").open("xb") as copy,
            ):
                shutil.copyfileobj(source, copy)
    except OSError as error:
        raise SymDenoiseError(
            f"folder {folder}",
            rule=f"the model cannot be written there ({error.strerror}: {error.filename})",
            remedy="choose another folder",
        ) from error
    return folder / f"{name}.safetensors"


def _shipped() -> Any:
    return files("bluesky_symdenoise.denoiser") / "models"


def _record_path(folder: Path) -> Path:
    return folder / f"{folder.name}.json"


def _read_record(path: Any) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
        if not all(isinstance(record[key], str) for key in ("name", "version", "sha256")):
            raise TypeError("name, version and sha256 are strings")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SymDenoiseError(
            f"record {path}", rule=f"it cannot be read ({error})", remedy="import or install the model again"
        ) from error
    return dict(record)
