"""Limits and places of what is read from files that are not trusted."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

from bluesky_symdenoise.errors import SymDenoiseError

#: Pixels of the largest row, and bytes of the largest compressed block, that may be read.
MAX_PIXELS, MAX_BLOCK = 2**25, 2**28


def refuse_outside(resolved: Path, root: Path, name: str) -> None:
    """Raise SymDenoiseError if a path, resolved, lies outside the folder that it must lie in."""
    if not resolved.is_relative_to(root):
        raise SymDenoiseError(
            f"file {name}",
            rule="it refers to a place outside the server's readable storage",
            remedy="keep the files, not links to them, where the server may read",
        )


def chunk_offsets(wanted: Sequence[slice], chunks: Sequence[int]) -> product[tuple[int, ...]]:
    """Yield the offsets of all chunks that a selection touches."""
    return product(
        *(range(part.start // size * size, part.stop, size) for part, size in zip(wanted, chunks, strict=True))
    )
