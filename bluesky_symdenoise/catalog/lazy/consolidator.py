"""What `TiledWriter` makes of the stream_resource of a lazy image."""

from __future__ import annotations

from typing import Any

from bluesky_tiled_plugins.writing.consolidators import CONSOLIDATOR_REGISTRY, ConsolidatorBase
from tiled.structures.data_source import Asset

from bluesky_symdenoise.catalog.lazy.parameters import MIMETYPE

Document = dict[str, Any]


class LazyConsolidator(ConsolidatorBase):  # type: ignore[misc]
    """Pass a stream_resource of our mimetype to Tiled, with assets and parameters unchanged."""

    supported_mimetypes = frozenset({MIMETYPE})

    def __init__(self, stream_resource: Document, descriptor: Document) -> None:
        super().__init__(stream_resource, descriptor)
        self.chunk_shape = (1,)
        self.assets = [Asset(**asset) for asset in stream_resource["parameters"]["assets"]]

    def adapter_parameters(self) -> Document:
        """Return the parameters of `bluesky_symdenoise.catalog.adapter.DenoisedArrayAdapter`."""
        return dict(self._sres_parameters["image"])


def register_consolidator() -> None:
    """Let the `TiledWriter` of this process take streams of lazy images."""
    CONSOLIDATOR_REGISTRY[MIMETYPE] = LazyConsolidator
