"""Section of the report page about the self-check: its figures, three plots, and the methods paragraph."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from bluesky_symdenoise.selfcheck.values import ImageCheck, Measured, SelfCheck
from bluesky_symdenoise.selfcheck.words import CAVEAT, figures, methods_paragraph

#: Size of a plot, and its margins (left, top, right, bottom), in pixels.
WIDTH, HEIGHT, MARGIN = 380, 220, (46, 26, 12, 38)
#: Points of a plot: place, value, error (0 for none).
Points = Sequence[tuple[float, float, float]]


def self_check_section(start: Mapping[str, Any], stop: Mapping[str, Any]) -> str:
    """Return HTML about the self-check that a stop document holds, which is not trusted; empty before the end."""
    outcome = stop.get("provenance")
    if not stop or not isinstance(outcome, Mapping) or "self_check" not in outcome:
        return ""
    check = SelfCheck.from_dict(outcome["self_check"])
    head = f"<h2>Self-check: {escape(check.verdict)}</h2>"
    said = f"<p>{escape(check.reason)}</p>" if check.reason else ""
    images = "".join(map(_image, check))
    method = f"<h3>For a methods section</h3><p>{escape(methods_paragraph(start, check))}</p>" if images else ""
    return f"{head}{said}{images}{method}<p>{escape(CAVEAT)}</p>" if images else head + said


def _image(image: ImageCheck) -> str:
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in figures(image))
    reasons = "".join(f'<p class="bad">{escape(reason)}</p>' for reason in image.reasons)
    plots = "".join(_plots(image)) if image.compared else ""
    table = f"<details><summary>Figures</summary><table><tbody>{rows}</tbody></table></details>" if rows else ""
    return f"<h3>{escape(image.name)}: {escape(image.verdict)}</h3>{reasons}{plots}{table}"


def _plots(image: ImageCheck) -> Iterator[str]:
    strata = [each.middle for each in image.strata]
    heldout = _measured(strata, [each.ratio for each in image.strata])
    sham = _measured([1.15 * each for each in strata], [each.sham for each in image.strata])
    if heldout or sham:
        yield _plot("observed over stated error (grey: sham test)", "counts per pixel", heldout, 1.0, sham, log=True)
    residual = image.residual
    if residual is None:
        return
    if residual.radius:
        p = "" if residual.p is None else f", p = {residual.p:.2g}"
        points = [(r, mean, 0.0) for r, mean in zip(residual.radius, residual.mean, strict=False)]
        yield _plot(f"mean residual of rings over its error{p}", "radius (pixels)", points, 0.0)
    lags = _measured([lag for lag, _ in residual.correlation], [each for _, each in residual.correlation])
    if lags:
        yield _plot("correlation of residuals", "pixels apart", lags, 0.0)


def _measured(places: Sequence[float], values: Sequence[Measured]) -> list[tuple[float, float, float]]:
    return [(place, each.value, each.error) for place, each in zip(places, values, strict=True) if each]


def _plot(title: str, unit: str, points: Points, level: float, others: Points = (), *, log: bool = False) -> str:
    """Return an SVG of points with error bars, and a dashed line at a level."""
    shown = [each for each in (*points, *others) if all(map(math.isfinite, each)) and (each[0] > 0 or not log)]
    if not shown:
        return ""
    left, top, right, bottom = MARGIN
    low_x, high_x = _range([math.log10(x) if log else x for x, _, _ in shown])
    low_y, high_y = _range([level, *(y + sign * error for _, y, error in shown for sign in (-1, 1))])

    def at(x: float, y: float) -> tuple[float, float]:
        across = ((math.log10(x) if log else x) - low_x) / (high_x - low_x)
        up = (y - low_y) / (high_y - low_y)
        return left + across * (WIDTH - left - right), HEIGHT - bottom - up * (HEIGHT - top - bottom)

    base = at(shown[0][0], level)[1]
    parts = [
        f'<line x1="{left}" x2="{WIDTH - right}" y1="{base:.1f}" y2="{base:.1f}" stroke="#888" stroke-dasharray="4"/>'
    ]
    for group, colour in ((others, "#999"), (points, "#1f77b4")):
        for x, y, error in group:
            if (x, y, error) not in shown:
                continue
            (px, py), (_, above), (_, below) = at(x, y), at(x, y + error), at(x, y - error)
            parts.append(
                f'<line x1="{px:.1f}" x2="{px:.1f}" y1="{above:.1f}" y2="{below:.1f}" stroke="{colour}"/>'
                f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{colour}"/>'
            )
    ends = [10**each if log else each for each in (low_x, high_x)]
    labels = [
        (WIDTH / 2, 16, "middle", title),
        (WIDTH / 2, HEIGHT - 6, "middle", unit),
        (left, HEIGHT - bottom + 16, "start", f"{ends[0]:.3g}"),
        (WIDTH - right, HEIGHT - bottom + 16, "end", f"{ends[1]:.3g}"),
        (left - 4, HEIGHT - bottom, "end", f"{low_y:.2g}"),
        (left - 4, top + 8, "end", f"{high_y:.2g}"),
    ]
    texts = "".join(
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="11">{escape(text)}</text>'
        for x, y, anchor, text in labels
    )
    frame = (
        f'<rect x="{left}" y="{top}" width="{WIDTH - left - right}" height="{HEIGHT - top - bottom}" fill="none" '
        'stroke="#d8dde3"/>'
    )
    return (
        f'<svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{frame}{''.join(parts)}{texts}</svg>"
    )


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Return the range of values with a margin, never empty."""
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin
