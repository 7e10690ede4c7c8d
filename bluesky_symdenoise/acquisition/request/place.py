"""Place of derived files: the folder from the start document, its owner and mode, and the free space to keep."""

from __future__ import annotations

import grp
import re
import shutil
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.files.paths import local_path

#: Folder below the root for runs whose start document lacks what the template asks for.
UNSORTED = "unsorted"


@dataclass(frozen=True)
class Place:
    """Place of the files of derived runs.

    Attributes
    ----------
    directory
        A folder, or a template such as ``/data/denoised/{cycle}/{proposal.id}``: names in braces are looked up in each
        raw run's start document, and a dot addresses a nested dictionary. The part before the first folder with
        braces is the root, and no file is written outside it. None: the folder named in the
        container's metadata.
    group
        Group that gets new files and folders; None leaves the process's own.
    mode
        Permissions of new files, such as ``0o640``; folders get the same and x where they have r. None: the umask's.
    free_bytes
        Writing stops while less than this is free on the disk.

    Raises
    ------
    SymDenoiseError
        If the template is malformed or begins with braces, or if there is no such group.
    """

    directory: str | Path | None = None
    group: str | None = None
    mode: int | None = None
    free_bytes: int = 2**30

    def __post_init__(self) -> None:
        if self.directory is not None:
            _parts(str(self.directory))
        if self.group is not None:
            try:
                grp.getgrnam(self.group)
            except KeyError as error:
                raise SymDenoiseError(
                    f"group {self.group!r}",
                    rule="this computer has no group of that name",
                    remedy="give another or None",
                ) from error

    def root(self, named: str | None) -> Path | None:
        """Return the folder below which all files are written; `named` is the one that the container names."""
        if self.directory is None:
            return None if named is None else Path(named).resolve()
        return Path(_parts(str(self.directory))[0]).resolve()

    def folder(self, root: Path, start: Mapping[str, Any]) -> Path:
        """Return the folder for the files of a run, without making it.

        Raises
        ------
        SymDenoiseError
            If the start document lacks a key of the template.
        """
        below = () if self.directory is None else _parts(str(self.directory))[1]
        return root.joinpath(*(_filled(part, start) for part in below))

    def make(self, root: Path, folder: Path) -> None:
        """Make a folder and those above it up to the root, with group and mode."""
        missing = [each for each in (folder, *folder.parents) if each != root and each.is_relative_to(root)]
        root.mkdir(parents=True, exist_ok=True)
        for each in reversed(missing):
            if not each.is_dir():
                each.mkdir(exist_ok=True)
                self._own(each, None if self.mode is None else self.mode | (self.mode & 0o444) >> 2)

    def own(self, path: Path) -> None:
        """Set group and mode of a new file."""
        self._own(path, self.mode)

    def _own(self, path: Path, mode: int | None) -> None:
        if self.group is not None:
            shutil.chown(path, group=self.group)
        if mode is not None:
            path.chmod(mode)

    def check_space(self, folder: Path) -> None:
        """Refuse to write where less than `free_bytes` are free.

        Raises
        ------
        SymDenoiseError
            If the disk is too full.
        """
        free = shutil.disk_usage(folder).free
        if free < self.free_bytes:
            raise SymDenoiseError(
                f"folder {folder} with {free / 2**20:.0f} MiB free",
                rule=f"writing stops below {self.free_bytes / 2**20:.0f} MiB",
                remedy="free disk space, then finish the run with `symdenoise catch-up` or replay",
            )


def check_apart(folder: Path, resource_uri: str) -> None:
    """Refuse to write into the folder of a raw file, or below it.

    Raises
    ------
    SymDenoiseError
        If the raw file's folder is `folder` or contains it.
    """
    try:
        path = local_path(resource_uri)
    except SymDenoiseError:
        # The raw file is not on this computer; the rows of its frames will say so.
        return
    raw = (path if resource_uri.endswith("/") else path.parent).resolve()
    if folder.resolve().is_relative_to(raw):
        raise SymDenoiseError(
            f"folder {folder} for denoised frames",
            rule=f"it is the folder of raw files {raw}, or inside it, where this package never writes",
            remedy="pass directory=..., a folder apart from the raw ones",
        )


def _parts(template: str) -> tuple[str, tuple[str, ...]]:
    """Return the root of a template and the folders below it."""
    parts = Path(template).parts
    first = next((i for i, part in enumerate(parts) if "{" in part or "}" in part), len(parts))
    for part in parts[first:]:
        try:
            fields = list(_fields(part))
        except ValueError as error:
            raise _malformed(template, str(error)) from error
        if any(not re.fullmatch(r"[\w-]+(\.[\w-]+)*", name) or rest for name, rest in fields):
            raise _malformed(template, "braces hold keys of the start document and nothing else")
    if first == 0 or ".." in parts[first:]:
        raise _malformed(template, "it must begin with a folder and may not go up from there")
    return str(Path(*parts[:first])), parts[first:]


def _malformed(template: str, why: str) -> SymDenoiseError:
    return SymDenoiseError(f"directory {template!r}", rule=why, remedy="give for example /data/{cycle}/{proposal}")


def _fields(part: str) -> Iterable[tuple[str, str]]:
    for _, name, spec, conversion in string.Formatter().parse(part):
        if name is not None:
            yield name, (spec or "") + (conversion or "")


def _filled(part: str, start: Mapping[str, Any]) -> str:
    """Return one folder name, with only letters, digits and ``._-`` in the parts that come from the document."""
    out = []
    for literal, name, _, _ in string.Formatter().parse(part):
        out.append(literal)
        if name is not None:
            value: Any = start
            for key in name.split("."):
                value = value.get(key) if isinstance(value, Mapping) else None
            if not isinstance(value, str | int | float) or value == "":
                raise SymDenoiseError(
                    f"start document without {name!r}",
                    rule="the folder for denoised frames is named after it",
                    remedy=f"add it with RE.md; this run's files are below {UNSORTED}",
                )
            out.append(re.sub(r"[^\w.-]", "_", str(value)))
    filled = "".join(out)
    # A value of dots only would lead out of the root; a leading dot would hide the folder.
    return "_" + filled[1:] if filled.startswith(".") else filled
