"""What Tiled's Python client gives for a denoised run."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRun, BlueskyRunV3

from bluesky_symdenoise.catalog.query import raw_for


class SymDenoisedRun(BlueskyRunV3):  # type: ignore[misc]
    """A Bluesky run of denoised images: what Tiled's client makes of a run with the spec ``SymDenoised``."""

    def __repr__(self) -> str:
        shown = super().__repr__().replace("<BlueskyRun", f"<{type(self).__name__}", 1)
        return f"{shown.removesuffix('>')} raw={self.start['raw_uid'][:8]!r}>"

    @property
    def raw(self) -> BlueskyRun:
        """The raw run; see `bluesky_symdenoise.raw_for` where it lies in another catalogue."""
        return raw_for(self)

    @property
    def provenance(self) -> dict[str, Any]:
        """How the images were made; under ``outcome``, how that ended, once the run has stopped."""
        made: dict[str, Any] = deepcopy(dict(self.start.get("provenance", {})))
        ended = (self.metadata.get("stop") or {}).get("provenance")
        return made if ended is None else made | {"outcome": deepcopy(dict(ended))}
