"""Tables of the series bench."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table

from bluesky_symdenoise.bench.series.borrowing import OURS
from bluesky_symdenoise.bench.series.compared import Row
from bluesky_symdenoise.bench.series.figures import best_peer, exposure_text, peers_of


def tables(rows: Sequence[Row]) -> Iterable[Table]:
    """Return a table for each kind of rows that there are."""
    for part, title in (("real", "real series, thinned"), ("simulated", "simulated series"), ("still", "still scenes")):
        stacks = [row for row in rows if row.get("part") == part]
        if stacks:
            yield _stacks(stacks, title)
        if stacks and peers_of(stacks[0]):
            yield _peers(stacks, title)
    for what, columns in COLUMNS.items():
        found = [row for row in rows if row.get("what") == what]
        if found:
            yield _plain(what, found, columns)


#: By kind of row: heading, name and format of each column.
COLUMNS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "transition": (
        ("counts/pixel", "level", "g"),
        ("width, rows", "width", "g"),
        ("method", "method", ""),
        ("lag, rows", "lag", "+.3f"),
        ("±", "lag_error", ".3f"),
        ("over raw", "over_raw", "+.3f"),
        ("± ", "over_raw_error", ".3f"),
        ("width found", "fitted_width", ".2f"),
    ),
    "one row": (
        ("counts/pixel", "level", "g"),
        ("sigma", "significance", "g"),
        ("method", "method", ""),
        ("kept", "kept", ".3f"),
        ("±", "kept_error", ".3f"),
        ("of alone", "of_alone", ".3f"),
        ("beside", "beside", "+.4f"),
        ("± ", "beside_error", ".4f"),
    ),
    "map": (
        ("map", "pattern", ""),
        ("jump, sigma", "jump", "g"),
        ("points", "where", ""),
        ("quantity", "quantity", ""),
        ("method", "method", ""),
        ("rms", "rms", ".3g"),
        ("over raw", "ratio", ".2f"),
        ("bias", "bias", "+.2g"),
        ("saved", "saved_against_raw", ".2f"),
        ("chi2", "chi2", ".2f"),
        ("±", "chi2_error", ".2f"),
    ),
    "G(r)": (
        ("counts/pixel", "level", "g"),
        ("method", "method", ""),
        ("rms", "rms", ".3g"),
        ("to, 1/A", "q_max", "g"),
        ("saved over raw", "saved_against_raw", ".2f"),
        ("borrowed", "borrowed", ".2f"),
    ),
    "speed": (
        ("side", "side", ""),
        ("s/frame", "seconds", ".3f"),
        ("with 8 rows", "seconds_borrowing", ".3f"),
        ("ratio", "ratio", ".2f"),
    ),
    "memory": (("rows", "rows", ""), ("side", "side", ""), ("grew by, MB", "grew_mb", "+.1f")),
}


def _plain(title: str, rows: Sequence[Row], columns: Sequence[tuple[str, str, str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for heading, _, form in columns:
        table.add_column(heading.strip(), justify="right" if form else "left", no_wrap=True)
    for row in rows:
        table.add_row(*("" if row.get(name) is None else format(row[name], form) for _, name, form in columns))
    return table


def _stacks(stacks: Sequence[Row], title: str) -> Table:
    table = Table(
        title=f"{title}: gain over the frame alone (mnat/pixel, dB), effective exposure", title_justify="left"
    )
    for name in ("series", "counts/px"):
        table.add_column(name, no_wrap=True)
    for name in ("past", "both", "best peer", "past, dB", "both, dB", "peer, dB", "exposure past", "both ", "borrowed"):
        table.add_column(name.strip(), justify="right", no_wrap=True)
    for row in stacks:
        methods, best = row["methods"], best_peer(row)
        names = ["past", "both", *([best] if best else [])]
        gains = [f"{methods[name]['gain']:+.2f} ± {methods[name]['gain_error']:.2f}" for name in names]
        if best:
            gains[-1] += f" ({best})"
        alone = methods["alone"]["psnr"]
        decibel = [
            "" if alone is None or methods[name]["psnr"] is None else f"{methods[name]['psnr'] - alone:+.2f}"
            for name in names
        ]
        blank = [""] * (3 - len(names))
        exposure = [exposure_text(row["exposure"][name]) if row["exposure"] else "" for name in ("past", "both")]
        mean = sum(row["borrowed"]["both"]) / len(row["borrowed"]["both"])
        lost = best is not None and methods[best]["loss"] <= methods["both"]["loss"]
        texts = (*gains, *blank, *decibel, *blank, *exposure, f"{mean:.2f}")
        table.add_row(row["series"], f"{row['level']:g}", *texts, style="bold red" if lost else None)
    return table


def _peers(stacks: Sequence[Row], title: str) -> Table:
    names = list(dict.fromkeys(name for row in stacks for name in row["methods"] if name not in OURS))
    table = Table(title=f"{title}: loss of each peer over both, mnat/pixel; seconds", title_justify="left")
    table.add_column("series", no_wrap=True)
    for name in ("counts/px", *names):
        table.add_column(name, justify="right", no_wrap=True)
    for row in stacks:
        both = row["methods"]["both"]["loss"]
        found = [row["methods"].get(name) for name in names]
        texts = ("" if each is None else f"{1e3 * (each['loss'] - both):+.2f}" for each in found)
        table.add_row(row["series"], f"{row['level']:g}", *texts)
    return table
