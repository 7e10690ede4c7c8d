"""HTML of the report page: made from plain values, with everything that comes from metadata escaped."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from bluesky_symdenoise.catalog.report.self_check import self_check_section
from bluesky_symdenoise.derived.columns import computed_when_read
from bluesky_symdenoise.physics.agreement import PairTest
from bluesky_symdenoise.physics.mates import named

if TYPE_CHECKING:
    from bluesky_symdenoise.catalog.report.drawn import FrameFigures

#: Below this p-value, which is then printed in red, mates differ by more than noise.
_RED_BELOW = 1e-3
#: Maximum number of characters of metadata on the page.
_MOST_TEXT = 20_000
_STYLE = """
:root { --line: #d8dde3; --back: #f6f8fa; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2733; max-width: 1240px; margin: 0 auto; padding: 24px; }
h1 { font-size: 24px; margin: 0; } h2 { font-size: 18px; margin: 32px 0 8px; }
h3 { font-size: 15px; margin: 20px 0 6px; }
p { margin: 6px 0; max-width: 90ch; } code, pre { font: 13px/1.45 ui-monospace, monospace; }
table { border-collapse: collapse; margin: 6px 0 12px; } th, td { text-align: left; padding: 4px 14px 4px 0;
border-bottom: 1px solid var(--line); vertical-align: top; } th { font-weight: 600; } td.n { text-align: right; }
td { overflow-wrap: anywhere; } img { width: 100%; height: auto; display: block; border: 1px solid var(--line); }
ul { margin: 4px 0; padding-left: 20px; max-width: 100ch; }
.box { border-left: 4px solid #c77700; background: #fff7e8; padding: 10px 14px; }
.fine { border-color: #2e7d4f; background: #eef8f1; } .bad { color: #a61b1b; font-weight: 600; }
details { margin: 8px 0; } pre { background: var(--back); padding: 12px; overflow: auto; max-height: 420px; }
"""


def whole(metadata: Mapping[str, Any], warnings: Sequence[str], sections: Sequence[str]) -> str:
    """Return the page."""
    start, stop = metadata.get("start", {}), metadata.get("stop") or {}
    title = f"Denoised run {str(start.get('uid', ''))[:8]}"
    head = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # Even if markup gets past the escaping, the page must not load or run anything.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f'<link rel="icon" href="data:,"><style>{_STYLE}</style></head><body>'
    )
    body = [f"<h1>{escape(title)}</h1>", _summary(start, stop), _warned(stop, warnings), *sections]
    body += [self_check_section(start, stop), _HELP, _provenance(start, stop), "</body></html>"]
    return head + "\n".join(body)


def run_warnings(metadata: Mapping[str, Any]) -> list[str]:
    """Return what the run's metadata say about its failures."""
    start, stop = metadata.get("start", {}), metadata.get("stop")
    if not stop:
        return ["The run has no stop document: it is still being written, or was interrupted."]
    outcome = _mapping(stop.get("provenance"))
    said = [f"Failed, {_mapping(each).get('frames')} frames: {_mapping(each).get('reason')}" for each in _list(outcome)]
    said += [f"Is {name} photon counts? {why}" for name, why in _mapping(outcome.get("doubts")).items()]
    if outcome.get("complete") is False:
        said.append("The raw run's stop document never came: frames may be missing.")
    if stop.get("exit_status") not in (None, "success"):
        said.append(f"The raw run ended with the status {stop['exit_status']}. {stop.get('reason') or ''}")
    if start.get("provenance") is None:
        said.append("The run has no provenance: it was not written by this software.")
    return said


def image_section(name: str, frames: Sequence[FrameFigures], columns: Mapping[str, Any], key: str) -> str:
    """Return the HTML of all chosen frames of one image data key."""
    parts = [f"<h2>{escape(name)}</h2>", _whole_run(columns, key)]
    for frame in frames:
        encoded = base64.b64encode(frame.picture).decode()
        about = f"raw, denoised, sigma, residual, symmetry, profile and photon transfer of frame {frame.number}"
        parts += [
            f"<h3>Frame {frame.number}{'' if frame.raw_row is None else f', row {frame.raw_row} of the raw run'}</h3>",
            f"<p>{escape(_figures(frame.scalars))}</p>" if frame.scalars else "",
            f'<p class="bad">{escape(frame.note)}</p>' if frame.note else "",
            f'<img alt="{escape(about)}" src="data:image/png;base64,{encoded}">',
            _tests(frame.tests),
        ]
    return "\n".join(part for part in parts if part)


def _summary(start: Mapping[str, Any], stop: Mapping[str, Any]) -> str:
    provenance, outcome = _mapping(start.get("provenance")), _mapping(stop.get("provenance"))
    model, recipe = _mapping(provenance.get("model")), _mapping(provenance.get("recipe"))
    software = _mapping(provenance.get("wasAssociatedWith"))
    rows = {
        "raw run": start.get("raw_uid"),
        "scan": start.get("raw_scan_id"),
        "plan": start.get("plan_name"),
        "sample": start.get("sample_name") or start.get("sample"),
        "measured": _when(start.get("raw_time")),
        "denoised": _when(start.get("time")),
        "frames": outcome.get("frames"),
        "rows of the raw run": recipe.get("frames"),
        "model": f"{model.get('name', '?')} {model.get('version', '')}" if model else None,
        "symmetry asked for": recipe.get("symmetry"),
        "software": f"{software.get('name', '?')} {software.get('version', '')}" if software else None,
    }
    return _table({name: value for name, value in rows.items() if value not in (None, "")})


def _warned(stop: Mapping[str, Any], warnings: Sequence[str]) -> str:
    if not warnings:
        said = (
            "No pixels are stored: each frame is denoised when it is read."
            if computed_when_read(stop)
            else ("All frames were denoised.")
        )
        return f'<div class="box fine">{said}</div>'
    lines = "".join(f"<li>{escape(line)}</li>" for line in warnings)
    return f'<div class="box"><strong>Look at this first</strong><ul>{lines}</ul></div>'


def _whole_run(columns: Mapping[str, Any], key: str) -> str:
    """Return one line of figures over all rows."""
    before, after = (np.asarray(columns.get(f"{key}_{name}", []), float) for name in ("counts_in", "counts_out"))
    groups = [str(group) for group in columns.get(f"{key}_symmetry", [])]
    if not groups:
        return ""
    good = np.isfinite(before)
    line = f"{len(groups)} frames"
    if good.any():
        line += f", {before[good].sum():,.0f} counts, {np.median(before[good]):,.0f} in the median frame"
        if before[good].sum() > 0:
            line += f"; their sum changes by {abs(after[good].sum() / before[good].sum() - 1):.2%}"
    if failed := groups.count(""):
        line += f"; {failed} not denoised"
    used = ", ".join(sorted(set(groups) - {""}))
    return f"<p>{escape(line)}. Symmetry used: {escape(used or 'none')}.</p>"


def _figures(scalars: Mapping[str, Any]) -> str:
    parts = []
    if np.isfinite(scalars.get("counts_in", np.nan)):
        parts.append(f"{scalars['counts_in']:,.0f} counts in, {scalars.get('counts_out', np.nan):,.0f} out")
    for kind in ("hot", "dead"):
        if scalars.get(f"{kind}_pixels", 0) > 0:
            parts.append(f"{scalars[f'{kind}_pixels']:.0f} {kind} pixels masked")
    if np.isfinite(scalars.get("ms", np.nan)):
        parts.append(f"{scalars['ms']:.0f} ms")
    return "; ".join(parts)


def _tests(tests: Sequence[PairTest]) -> str:
    if not tests:
        return ""
    rows = "".join(
        f"<tr><td>{escape(named(test.operation))}</td>"
        f"<td class=n>{_p(test.p_regions)}</td><td class=n>{_p(test.p_pixels)}</td>"
        f"<td class=n>{_share(test.agreeing)} of {test.regions}</td>"
        f"<td class=n>{'within noise' if test.p_regions > 0.05 else _share(test.difference)}</td></tr>"
        for test in tests
    )
    red = any(p < _RED_BELOW for test in tests for p in (test.p_regions, test.p_pixels))
    return (
        "<table><thead><tr><th>do mates agree?</th><th>p, regions</th><th>p, pixels</th><th>regions that agree</th>"
        f"<th>difference beyond noise</th></tr></thead><tbody>{rows}</tbody></table>{_RED if red else ''}"
    )


def _p(value: float) -> str:
    if np.isnan(value):
        return "too few counts"
    shown = "&lt; 1e-10" if value < 1e-10 else f"{value:.2g}"
    return f'<span class="bad">{shown}</span>' if value < _RED_BELOW else shown


def _share(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.1%}"


def _provenance(start: Mapping[str, Any], stop: Mapping[str, Any]) -> str:
    provenance = _mapping(start.get("provenance"))
    rows = {
        "recipe sha256": provenance.get("recipe_sha256"),
        **{f"recipe: {name}": value for name, value in _mapping(provenance.get("recipe")).items() if value is not None},
        **{f"machine: {name}": value for name, value in _mapping(provenance.get("environment")).items()},
    }
    documents = json.dumps({"start": start, "stop": stop}, indent=1, default=str)
    cut = documents if len(documents) <= _MOST_TEXT else documents[:_MOST_TEXT] + "\n... (cut)"
    return (
        f"<h2>Provenance</h2>{_table(rows)}<details><summary>Start and stop documents</summary>"
        f"<pre>{escape(cut)}</pre></details>"
    )


def _table(rows: Mapping[str, Any]) -> str:
    lines = "".join(
        f"<tr><th>{escape(str(name))}</th><td>{escape(str(value)[:500])}</td></tr>" for name, value in rows.items()
    )
    return f"<table><tbody>{lines}</tbody></table>"


def _when(moment: Any) -> str | None:
    try:
        return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(outcome: Mapping[str, Any]) -> Sequence[Any]:
    failures = outcome.get("failures")
    return failures if isinstance(failures, list) else []


_RED = """<p><span class="bad">Red p (below 0.001)</span>: somewhere in this frame these mates differ by more than
noise. The symmetry is still used elsewhere; where mates disagree, a pixel uses its own photons only.</p>"""

_HELP = """<h2>How to read this</h2><ul>
<li><strong>Grey</strong> means no data: masked, dead or saturated pixels, and pixels without a measured mate.
Raw and denoised share one colour scale.</li>
<li><strong>Sigma</strong> is the standard deviation of one pixel's expected counts. It errs on the wide side.
Errors of neighbouring pixels are correlated: the error of a sum or of a ring is larger than sigma added in
quadrature.</li>
<li><strong>The profile's band</strong> is therefore not made from sigma: it is the Poisson error of the raw
counts in the same rings. The denoised line is the mean of the same pixels and should lie within the band nearly
everywhere. Nothing is corrected for solid angle, polarisation or flat field.</li>
<li><strong>The residual</strong> should look like noise without a trace of the pattern. It spreads less than a
standard normal, because a pixel's own count is part of its estimate.</li>
<li><strong>The symmetry map</strong> shows where mates differ by more than noise; where it is above 3, the mates were
not used, and the pixel uses its own photons only.</li>
<li><strong>p</strong> is the probability that noise alone makes mates differ as much as here, each pair counted
once: over regions of 32 x 32 pixels with at least 25 counts, and over single pixels. Below 0.001 it is red: the
symmetry does not hold somewhere (a shadow, a tilt, a wrong centre). Mates that do not agree are not used, so this
need not harm. A large p does not prove symmetry. With many counts even a harmless difference gives a small p: the
last column says how large the difference is.</li>
<li><strong>The self-check</strong> takes a few frames, holds out half of their photons at random, denoises the other
half, and compares: a stated error is right where observed over stated error is 1. Mean residuals of rings are in units
of their error; p is the probability that two raw halves differ by more. <em>Not testable</em> means that there are too
few photons to tell.</li>
<li>The model was trained on simulated and real scattering; a feature with few photons that no mate and no
neighbour supports may be smoothed away. Count such features in the raw frames.</li></ul>"""
