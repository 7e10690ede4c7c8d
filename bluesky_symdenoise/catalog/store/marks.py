"""Specs on the array nodes of derived images, by which the server finds our picture of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

import httpx

from bluesky_symdenoise.derived.columns import denoised_images

#: Spec of an array node of denoised intensities or of their sigmas.
IMAGE_SPEC = "SymDenoisedImage"

Document = dict[str, Any]
Emit = Callable[[str, Document], Any]

log = logging.getLogger("bluesky_symdenoise")


def marking(container: Any, emit: Emit) -> Emit:
    """Return a writer of one derived run that marks its images, with a stream's first event or the stop document."""
    uid, keys, streams = "", dict[str, list[str]](), dict[str, str]()

    def write(name: str, doc: Document) -> None:
        nonlocal uid
        emit(name, doc)
        if name == "start":
            uid = doc["uid"]
        elif name == "descriptor":
            keys[doc["name"]] = denoised_images(doc["data_keys"])
            streams[doc["uid"]] = doc["name"]
        elif name == "event" and (stream := streams.pop(doc["descriptor"], None)) is not None:
            if mark_images(container, uid, {stream: keys[stream]}):
                keys[stream] = []
        elif name == "stop":
            mark_images(container, uid, keys)

    return write


def mark_images(container: Any, uid: str, keys: Mapping[str, Collection[str]]) -> bool:
    """Give the image nodes of a derived run the spec ``SymDenoisedImage``; TiledWriter gives array nodes none.

    A failure is only logged: a run without marks is complete, but its pictures are Tiled's own.

    Parameters
    ----------
    container
        Client of the catalogue of derived runs; its key needs the scope ``write:metadata``.
    uid
        Uid of the derived run.
    keys
        Image data keys by stream: each and its ``<key>_sigma`` are marked.

    Returns
    -------
    bool
        Whether all of them are marked.
    """
    from tiled.client.container import Container
    from tiled.client.utils import ClientError

    left = sum(2 * len(images) for images in keys.values())
    try:
        for stream, images in keys.items():
            if not images:
                continue
            names = {f"{image}{part}" for image in images for part in ("", "_sigma")}
            # A stream without rows has no array nodes.
            for name, node in Container.__getitem__(container, (uid, stream)).base.items():
                if name in names:
                    node.update_metadata(specs=[IMAGE_SPEC])
                    left -= 1
    except (ClientError, httpx.TransportError, KeyError) as error:
        log.warning("run %s: its images are not marked, so Tiled draws their pictures (%s)", uid[:8], error)
    return left == 0
