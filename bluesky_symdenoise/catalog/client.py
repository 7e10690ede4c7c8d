"""Tiled client class of denoised runs."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from datetime import datetime
from html import escape
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRun, BlueskyRunV3
from numpy.typing import NDArray
from tiled.client.utils import ClientError

from bluesky_symdenoise.catalog.find.query import raw_for
from bluesky_symdenoise.derived.columns import SCALARS, computed_when_read, denoised_images
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.recipe import rows_of
from bluesky_symdenoise.selfcheck.values import SelfCheck
from bluesky_symdenoise.selfcheck.words import methods_paragraph

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class SymDenoisedRun(BlueskyRunV3):  # type: ignore[misc]
    """A Bluesky run of denoised images: the class that Tiled's client uses for runs with the spec ``SymDenoised``."""

    def __repr__(self) -> str:
        shown = super().__repr__().replace("<BlueskyRun", f"<{type(self).__name__}", 1)
        return f"{shown.removesuffix('>')} raw={self.start['raw_uid'][:8]!r}>"

    def _repr_html_(self) -> str:
        """Return HTML for notebooks, made from the metadata without a request to the server."""
        rows = "".join(
            f'<tr><th style="text-align:left">{escape(name)}</th><td style="text-align:left">{value}</td></tr>'
            for name, value in _summary(self.start, self.metadata.get("stop") or {}, self.uri).items()
        )
        return f"<div><b>Denoised run</b> <code>{escape(self.start['uid'])}</code><table>{rows}</table></div>"

    @property
    def raw(self) -> BlueskyRun:
        """Raw run; see `bluesky_symdenoise.raw_for` if it is in another catalogue."""
        return raw_for(self)

    @property
    def provenance(self) -> dict[str, Any]:
        """Provenance: how the images were made and, once the run has stopped, its ``outcome``."""
        made: dict[str, Any] = deepcopy(dict(self.start.get("provenance", {})))
        ended = (self.metadata.get("stop") or {}).get("provenance")
        return made if ended is None else made | {"outcome": deepcopy(dict(ended))}

    @property
    def self_check(self) -> SelfCheck:
        """What the denoiser was worth on this run, by photons that it did not see, as the stop document says.

        ``print`` shows it; of a run without one it says why. `bluesky_symdenoise.self_check` computes it anew.
        """
        stop = self.metadata.get("stop")
        if not stop:
            return SelfCheck((), "the run has not ended")
        stored = dict(stop.get("provenance") or {}).get("self_check")
        if stored is None and computed_when_read(stop):
            return SelfCheck(
                (), "pixels are computed when they are read; bluesky_symdenoise.self_check(run) computes it"
            )
        return SelfCheck.from_dict(stored)

    @property
    def methods(self) -> str:
        """Paragraph for the methods section of a paper: what was done, with what, and what it was worth."""
        return methods_paragraph(self.start, self.self_check)

    @property
    def quality(self) -> pd.DataFrame:
        """Table with one row for each denoised frame.

        Columns: ``stream``, ``data_key`` and ``frame`` (as `compare` takes them), ``seq_num``, ``time`` (s),
        ``counts_in`` and ``counts_out`` (sums over the measured pixels), ``flux_change`` (out / in - 1), ``symmetry``
        (the point group used), ``center_y`` and ``center_x`` (pixels), ``hot_pixels`` and ``dead_pixels`` (found
        and masked), ``ms`` (to denoise it) and ``failed`` (the frame is NaN). Unknown values are NaN: for a run that
        is computed when it is read, these are the values that need every frame.
        ``attrs["failures"]`` lists the reasons of failed frames, from the stop document.
        """
        import pandas as pd

        tables = [_figures(*image) for image in self._images()]
        columns = ["stream", "data_key", "frame", "seq_num", "time", *SCALARS, "failed"]
        table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)
        change = table["counts_out"] / table["counts_in"].where(table["counts_in"] > 0) - 1
        table.insert(columns.index("counts_out") + 1, "flux_change", change)
        table.attrs["failures"] = self.provenance.get("outcome", {}).get("failures", [])
        return table

    def compare(self, i: int, key: str | None = None, stream: str | None = None) -> Figure:
        """Draw one frame: raw, denoised, sigma, residual z and, if symmetry mates were used, where they disagree.

        Parameters
        ----------
        i
            Frame of the stream, from 0; -1 is the last.
        key, stream
            Image data key and stream; by default the first with a denoised image.

        Returns
        -------
        matplotlib.figure.Figure
            Notebooks show it; ``.savefig("frame.png")`` saves it. Of a frame that holds several images, the first is
            drawn. A mask that was given with the recipe is not drawn on the raw frame.

        Raises
        ------
        SymDenoiseError
            If there is no such frame, if it was not denoised, or if the server cannot read it.
        """
        from bluesky_symdenoise.catalog.report.picture import panel_figure, panels
        from bluesky_symdenoise.physics.frame import sentinel_mask
        from bluesky_symdenoise.physics.symmetry import Symmetry

        stream, key, events = self._image(stream, key)
        table = _figures(stream, key, events)
        if not -len(table) <= i < len(table):
            raise SymDenoiseError(
                f"frame {i}",
                rule=f"{stream}/{key} of run {self.start['uid'][:8]} has {len(table)} frames",
                remedy=f"give 0 to {len(table) - 1}" if len(table) else "wait until a frame is denoised",
            )
        row = table.iloc[i]
        frame = int(row["frame"])
        if row["failed"]:
            raise SymDenoiseError(
                f"frame {frame} of {stream}/{key}",
                rule="it was not denoised",
                remedy='the reason is among run.quality.attrs["failures"]',
            )
        raw_frame = rows_of(self.start.get("provenance", {}).get("recipe", {}).get("frames"))[frame]
        images = (self.raw[stream][key], raw_frame), (events[key], frame), (events[f"{key}_sigma"], frame)
        counts, intensity, sigma = (_frame(image, row) for image, row in images)
        center = (float(row["center_y"]), float(row["center_x"]))
        drawn = panels(
            counts,
            intensity,
            sigma,
            ~sentinel_mask(counts),
            Symmetry(str(row["symmetry"]), None if np.isnan(center[0]) else center),
        )
        title = f"{stream}/{key}, frame {frame} of run {self.start['uid'][:8]}, raw {self.start['raw_uid'][:8]}"
        return panel_figure(drawn, title=title)

    def _images(self) -> list[tuple[str, str, Any]]:
        """Return stream, data key and stream client of each denoised image."""
        streams = {name: self[name] for name in self}
        return [(name, key, events) for name, events in streams.items() for key in denoised_images(list(events))]

    def _image(self, stream: str | None, key: str | None) -> tuple[str, str, Any]:
        images = self._images()
        for image in images:
            if stream in (None, image[0]) and key in (None, image[1]):
                return image
        raise SymDenoiseError(
            f"{stream or '*'}/{key or '*'}",
            rule=f"run {self.start['uid'][:8]} has no such denoised image",
            remedy=f"choose among {', '.join('/'.join(image[:2]) for image in images) or 'none'}",
        )


def _frame(image: Any, number: int) -> NDArray[Any]:
    try:
        rows = np.asarray(image[number : number + 1])
    except (ClientError, httpx.HTTPError) as error:
        raise SymDenoiseError(
            f"frame {number} of {'/'.join(image.path_parts)}",
            rule=f"the server cannot read it ({(str(error) or type(error).__name__).splitlines()[0]})",
            remedy="check that its file is still where it was, and the server's log",
        ) from error
    return rows.reshape(-1, *image.shape[-2:])[0]


def _figures(stream: str, key: str, events: Any) -> pd.DataFrame:
    import pandas as pd

    known = {name: name for name in ("seq_num", "time")} | {name: f"{key}_{name}" for name in SCALARS}
    known = {name: column for name, column in known.items() if column in events}
    read = events.read(list(known.values())) if known else {}
    table = pd.DataFrame({"stream": stream, "data_key": key, "frame": np.arange(events[key].shape[0])})
    for name in ("seq_num", "time", *SCALARS):
        unknown = "" if SCALARS.get(name) == "string" else float("nan")
        column = np.asarray(read[known[name]]) if name in known else np.asarray(unknown)
        # In a stream without events, strings are stored in the HDF5 file, as bytes.
        table[name] = column.astype("U") if SCALARS.get(name) == "string" else column
    # The symmetry is empty only where a frame could not be denoised; denoised without mates it is "1".
    return table.assign(failed=table["symmetry"] == "")


def _summary(start: Mapping[str, Any], stop: Mapping[str, Any], uri: str) -> dict[str, str]:
    """Return the lines that describe a run: HTML by name."""
    made = start.get("provenance", {})
    recipe, model, ended = made.get("recipe", {}), made.get("model", {}), stop.get("provenance", {})
    # Link to the raw run in Tiled's web interface.
    raw_uri = "/".join([*uri.replace("/api/v1/metadata/", "/ui/browse/", 1).split("/")[:-2], "raw", start["raw_uid"]])
    raw = f"<code>{escape(start['raw_uid'])}</code>"
    if raw_uri.startswith(("http://", "https://")):
        raw = f'<a href="{escape(raw_uri)}">{raw}</a>'
    failures = ended.get("failures", [])
    failed = sum(failure["frames"] for failure in failures)
    if not stop:
        status = "not finished"
    else:
        done = "frames, denoised when they are read" if computed_when_read(stop) else "frames denoised"
        status = f"{ended.get('frames', 0) - failed} {done}, {failed} failed; exit status {stop['exit_status']}"
    lines = {
        "raw run": raw,
        "made": escape(datetime.fromtimestamp(start["time"]).astimezone().isoformat(sep=" ", timespec="minutes")),
        "model": escape(
            f"{model.get('name', '?')} ({str(model.get('sha256', '?'))[:12]}), algorithm {recipe.get('algorithm', '?')}"
        ),
        "recipe": escape(str(made.get("recipe_sha256", "?"))[:12]),
        "symmetry": escape(
            f"asked for {recipe.get('symmetry', '?')}, used {', '.join(ended.get('symmetry', {})) or 'not known'}"
        ),
        "status": escape(status),
    }
    if "self_check" in ended:
        check = SelfCheck.from_dict(ended["self_check"])
        why = "; ".join(reason for image in check for reason in image.reasons) or check.reason
        lines["self-check"] = escape(check.verdict + (f": {why}" if why else ""))
    if doubts := ended.get("doubts"):
        lines["photon counts?"] = "<br>".join(escape(f"{name}: {why}") for name, why in doubts.items())
    if failures:
        lines["failed"] = "<br>".join(escape(f"{failure['frames']} x {failure['reason']}") for failure in failures)
    return lines
