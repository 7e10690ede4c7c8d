"""Warnings about a run that do not stop it: each is logged once."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

from bluesky_symdenoise.acquisition.derive.images import ImageDenoiser
from bluesky_symdenoise.acquisition.runs.documents import refused_value, unreadable

log = logging.getLogger("bluesky_symdenoise")


class Complaints:
    """Log warnings about one run, each once.

    Parameters
    ----------
    run
        Uid of the raw run.
    """

    def __init__(self, run: str) -> None:
        self._run, self._said = run, set[str]()

    def once(self, line: str, *, about: str | None = None) -> None:
        """Log a line, unless this line or another one about the same subject was logged before."""
        if (about or line) not in self._said:
            self._said.add(about or line)
            log.warning("run %s%s %s", self._run[:8], ":" if about is None else ",", line)

    def left_out(self, stream: str, reasons: Mapping[str, str], *, asked: Collection[str] | None) -> None:
        """Log the images that are not denoised, of those that were asked for; None means all."""
        for key, reason in reasons.items():
            if asked is None or key in asked:
                self.once(f"{stream}/{key} is left out: {reason}")

    def unreadable(self, stream: str, data: Mapping[str, Any]) -> None:
        """Log the columns of an event that cannot be read; images among them become NaN rows."""
        for key, value in unreadable(data):
            error = refused_value(f"event document, key {key!r}", value)
            self.once(f"stream {stream}: {error}", about=key)

    def missing(self, stream: str, images: Mapping[str, ImageDenoiser]) -> None:
        """Log which settings of a stream's images were not found, or were found but not used."""
        for key, each in images.items():
            if each.unused_tilt is not None:
                self.once(f"{stream}/{key}: tilt not used: {each.unused_tilt}", about=each.unused_tilt)
            for quantity, name in each.missing_names():
                where = "is not found in any column, configuration or start document"
                self.once(f"{stream}/{key}: {quantity}={name!r} {where}", about=name)
