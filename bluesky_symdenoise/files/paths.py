"""Path of a file on this computer, from the URI that a document names it with."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlparse

from tiled.utils import path_from_uri

from bluesky_symdenoise.errors import SymDenoiseError

_WINDOWS = re.compile(r"[A-Za-z]:([\\/]|$)|\\\\|.*\\")


def local_path(uri: str) -> Path:
    """Return the path of a file URI, or of a plain absolute path.

    Raises
    ------
    SymDenoiseError
        If it is a Windows path, or not a file at all.
    """
    parsed = urlparse(uri)
    refuse_windows(uri, parsed.netloc, parsed.path.lstrip("/"))
    if uri.startswith("/"):
        return Path(uri)
    if parsed.scheme != "file":
        raise SymDenoiseError(
            f"{uri!r}", rule="it is not a file", remedy="have the device announce file://localhost/PATH, or use replay"
        )
    path = Path(path_from_uri(uri))
    decoded = Path(unquote(str(path)))
    # Some programs put unquoted paths into URIs, and Tiled accepts them.
    if decoded != path and not path.exists() and (decoded.exists() or not path.parent.exists()):
        return decoded
    return path


def refuse_windows(name: str, *parts: str) -> None:
    """Raise SymDenoiseError if a name, or one of its parts, is a Windows path."""
    if any(_WINDOWS.match(part) for part in (name, *parts)):
        raise SymDenoiseError(
            f"file {name!r}",
            rule="it is a Windows path, which this computer cannot open",
            remedy="have the device announce the path that this computer has, or denoise through Tiled, which may see "
            "the file, with `symdenoise watch` or replay",
        )
