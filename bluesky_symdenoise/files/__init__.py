"""Plain detector files in, NeXus-style HDF5 out."""

from bluesky_symdenoise.files.nexus import NexusWriter
from bluesky_symdenoise.files.opening import inverted_mask_from, mask_from, open_frames
from bluesky_symdenoise.files.stack import FrameStack

__all__ = ["FrameStack", "NexusWriter", "inverted_mask_from", "mask_from", "open_frames"]
