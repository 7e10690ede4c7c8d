"""Array nodes of derived images carry a spec of their own, by which the server finds our picture of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import httpx
from tiled.client.utils import ClientError

from bluesky_symdenoise.catalog.columns import denoised_images

#: Spec of an array node of denoised intensities or of their sigma.
IMAGE_SPEC = "SymDenoisedImage"

Document = dict[str, Any]
Emit = Callable[[str, Document], Any]

log = logging.getLogger("bluesky_symdenoise")


def marking(container: Any, emit: Emit) -> Emit:
    """A writer of one derived run that marks its images when it has been given the stop document."""
    uid, keys = "", dict[str, list[str]]()

    def write(name: str, doc: Document) -> None:
        nonlocal uid
        emit(name, doc)
        if name == "start":
            uid = doc["uid"]
        elif name == "descriptor":
            keys[doc["name"]] = denoised_images(doc["data_keys"])
        elif name == "stop":
            mark_images(container, uid, keys)

    return write


def mark_images(container: Any, uid: str, keys: Mapping[str, Iterable[str]]) -> None:
    """Give the image nodes of a derived run the spec ``SymDenoisedImage``; TiledWriter gives array nodes none.

    What fails is logged and goes no further: a run without marks is complete, only its pictures are Tiled's own.

    Parameters
    ----------
    container
        Client of the catalogue of derived runs; its key needs the scope ``write:metadata``.
    uid
        Of the derived run.
    keys
        By stream, the image data keys: each and its ``<key>_sigma`` are marked.
    """
    try:
        for stream, images in keys.items():
            nodes = container[uid].base[stream].base
            for name in [f"{image}{part}" for image in images for part in ("", "_sigma")]:
                # A stream without rows has no node.
                if name in nodes:
                    nodes[name].update_metadata(specs=[IMAGE_SPEC])
    except (ClientError, httpx.TransportError, KeyError) as error:
        log.warning("run %s: its images are not marked for their pictures (%s)", uid[:8], error)
