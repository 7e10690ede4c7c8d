"""Upload of frames over HTTP, to a server that cannot see the files that hold them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import hdf5plugin  # noqa: F401  (registers the filter that our files are written with)
import numpy as np
from tiled.utils import path_from_uri

from bluesky_symdenoise.files.opened import open_for_reading

if TYPE_CHECKING:
    from tiled.client.container import Container

Document = dict[str, Any]


class Upload:
    """Fill one array node for each data key of a derived run, row by row."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._uid, self._tags = "", None
        self._descriptors: dict[str, Document] = {}
        self._resources: dict[str, Document] = {}
        self._nodes: dict[str, Any] = {}

    def take(self, name: str, doc: Document) -> bool:
        """Send the frames that a document announces; return whether nothing else of the document is to be sent."""
        if name == "start":
            self._uid, self._tags = doc["uid"], doc.get("tiled_access_tags")
        elif name == "descriptor":
            self._descriptors[doc["uid"]] = doc
        elif name == "stream_resource":
            self._resources[doc["uid"]] = doc
        elif name == "stream_datum":
            self._upload(self._resources[doc["stream_resource"]], doc)
        return name in ("stream_resource", "stream_datum")

    def _upload(self, resource: Document, datum: Document) -> None:
        descriptor, key = self._descriptors[datum["descriptor"]], resource["data_key"]
        with open_for_reading(path_from_uri(resource["uri"])) as file:
            dataset = file[resource["parameters"]["dataset"]]
            for row in range(datum["indices"]["start"], datum["indices"]["stop"]):
                frame = np.asarray(dataset[row : row + 1])
                if resource["uid"] in self._nodes:
                    self._nodes[resource["uid"]].patch(frame, offset=(row,), extend=True)
                    continue
                stream = self._container[self._uid][descriptor["name"]].base
                self._nodes[resource["uid"]] = stream.write_array(
                    frame, key=key, dims=["time", *descriptor["data_keys"][key]["dims"]], access_tags=self._tags
                )
