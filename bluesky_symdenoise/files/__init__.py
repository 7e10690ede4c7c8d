"""Plain detector files in, NeXus-style HDF5 out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bluesky_symdenoise.files.nexus import NexusWriter as NexusWriter
    from bluesky_symdenoise.files.opening import inverted_mask_from as inverted_mask_from
    from bluesky_symdenoise.files.opening import mask_from as mask_from
    from bluesky_symdenoise.files.opening import open_frames as open_frames
    from bluesky_symdenoise.files.stack import FrameStack as FrameStack

_HOME = {
    "FrameStack": "bluesky_symdenoise.files.stack",
    "NexusWriter": "bluesky_symdenoise.files.nexus",
    "inverted_mask_from": "bluesky_symdenoise.files.opening",
    "mask_from": "bluesky_symdenoise.files.opening",
    "open_frames": "bluesky_symdenoise.files.opening",
}

__all__ = ["FrameStack", "NexusWriter", "inverted_mask_from", "mask_from", "open_frames"]


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: most modules of this room need no readers of formats."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
