"""Figures with targets, made of the rows of all parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isfinite
from typing import Any

import numpy as np

from bluesky_symdenoise.bench.quality.comparison import Figure
from bluesky_symdenoise.bench.series.borrowing import OURS
from bluesky_symdenoise.bench.series.compared import Row

#: Effective exposures wanted of `both`, by set.
WANTED = {"gisaxs_p03": 3.0, "tissue_scan": 2.0, "saxs_ssrl_scan": 1.5, "xpcs_stack": 3.0, "polymer_waxs": 1.7}
#: Share of the exposures in reach that is wanted of still scenes, up to 0.2 counts per pixel and above.
STILL_WANTED = (0.9, 0.8)
#: Loss against the frame alone that is allowed, in nat per pixel, beside two standard errors.
ALLOWED = 1e-4
#: Jumps, in own sigma, from which on the boundary must do no harm.
WIDE = 8.0


def figures(rows: Sequence[Row]) -> list[Figure]:
    """Return every figure that the rows can give."""
    stacks = [row for row in rows if "methods" in row]
    others: dict[str, list[Row]] = {}
    for row in rows:
        others.setdefault(str(row.get("what", "")), []).append(row)
    scored = [row for row in stacks if peers_of(row)]
    found = [
        *(_likelihood(scored, part) for part in ("real", "simulated")),
        *_still([row for row in stacks if row["part"] == "still"]),
        *_sets([row for row in stacks if row["part"] == "real"]),
        *(_against_alone(stacks, name) for name in ("past", "both")),
        *_transition(others.get("transition", [])),
        *_one_row(others.get("one row", [])),
        *_maps(others.get("map", [])),
        *_powder(others.get("G(r)", [])),
        *_costs(others.get("speed", []) + others.get("memory", [])),
    ]
    return [each for each in found if each.cases]


def gains(row: Row) -> Row:
    """Return a line about one stack: gains in millinat per pixel with their errors, best peer, effective exposures."""
    best = best_peer(row)

    def gain(name: str) -> list[float]:
        return [round(row["methods"][name][each], 3) for each in ("gain", "gain_error")]

    exposures = {
        name: None if each["value"] is None else round(each["value"], 2) for name, each in row["exposure"].items()
    }
    return {
        "part": row["part"],
        "series": row["series"],
        "level": row["level"],
        "past": gain("past"),
        "both": gain("both"),
        "best_peer": best,
        "peer": None if best is None else gain(best),
        "exposure": exposures,
        "beyond": [name for name, each in row["exposure"].items() if each["beyond"]],
    }


def peers_of(row: Row) -> list[str]:
    """Return the names of the peers of a stack."""
    return [name for name in row["methods"] if name not in OURS]


def best_peer(row: Row) -> str | None:
    """Return the peer with the least loss on a stack."""
    return min(peers_of(row), key=lambda name: row["methods"][name]["loss"], default=None)


def _likelihood(stacks: list[Row], part: str) -> Figure:
    of_part = [row for row in stacks if row["part"] == part]
    won, rows_won, rows = 0, 0, 0
    for row in of_part:
        best = best_peer(row)
        won += row["methods"]["both"]["loss"] < row["methods"][best]["loss"]
        least = np.min([row["rows"][name] for name in peers_of(row)], axis=0)
        rows_won += int((np.array(row["rows"]["both"]) < least).sum())
        rows += len(least)
    return Figure(
        f"{part} series: likelihood better than every peer's",
        "95 % of the series and levels",
        f"{won} of {len(of_part)} (rows: {rows_won} of {rows})",
        len(of_part),
        0,
        won >= 0.95 * len(of_part) if of_part else None,
    )


def _still(stacks: list[Row]) -> Iterable[Figure]:
    for name in dict.fromkeys(row["series"] for row in stacks):
        shares, left_out = {}, 0
        for row in stacks:
            if row["series"] == name:
                value = row["exposure"]["both"]["value"]
                if value is None:
                    left_out += 1
                else:
                    shares[row["level"]] = value / row["in_reach"]
        wanted = {level: STILL_WANTED[level > 0.2] for level in shares}
        yield Figure(
            f"{name}: exposure of a lone frame, of that in reach",
            "0.9 at 0.05 and 0.2, 0.8 at 1 and 5 counts/pixel",
            ", ".join(f"{level:g}: {share:.2f}" for level, share in shares.items()),
            len(shares),
            left_out,
            all(share >= wanted[level] for level, share in shares.items()) if shares else None,
        )


def _sets(stacks: list[Row]) -> Iterable[Figure]:
    for name, wanted in WANTED.items():
        values, left_out = {}, 0
        for row in stacks:
            if row["series"] == name:
                found = row["exposure"]["both"]
                if found["value"] is None:
                    left_out += 1
                else:
                    values[row["level"]] = found
        yield Figure(
            f"{name}: exposure of a lone frame with the error of both",
            f"at least {wanted:g}",
            ", ".join(f"{level:g}: {exposure_text(found)}" for level, found in values.items()),
            len(values),
            left_out,
            all(found["value"] >= wanted for found in values.values()) if values else None,
        )


def exposure_text(found: dict[str, Any]) -> str:
    """Return an effective exposure with its interval; (>) where the curve was continued."""
    if found["value"] is None:
        return "not testable"
    return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]" + ("*" if found["beyond"] else "")


def _against_alone(stacks: list[Row], name: str) -> Figure:
    every = [
        (value, error, row, place) for row in stacks for place, (value, error) in enumerate(row["against_alone"][name])
    ]
    above = [each for each in every if each[0] > ALLOWED + 2 * each[1]]
    means = [(-row["methods"][name]["gain"] / 1e3, row["methods"][name]["gain_error"] / 1e3, row) for row in stacks]
    means_above = [each for each in means if each[0] > ALLOWED + 2 * each[1]]
    text = ""
    if every:
        worst = max(every, key=lambda each: each[0] - 2 * each[1])
        mean = max(means, key=lambda each: each[0] - 2 * each[1])
        text = (
            f"rows above: {len(above)} of {len(every)}, worst {worst[0]:+.1e} ± {worst[1]:.0e} "
            f"({worst[2]['series']} {worst[2]['level']:g}, row {worst[3]}); series above: {len(means_above)} of "
            f"{len(means)}, worst {mean[0]:+.1e} ± {mean[1]:.0e} ({mean[2]['series']} {mean[2]['level']:g})"
        )
    return Figure(
        f"loss of {name} over the frame alone, nat/pixel",
        "at most 1e-4 + 2 standard errors, means and worst row",
        text,
        len(every),
        0,
        not above and not means_above if every else None,
    )


def _transition(rows: list[Row]) -> Iterable[Figure]:
    for name in ("both", "past"):
        of = [row for row in rows if row["method"] == name]
        text = ", ".join(
            f"{r['level']:g} (width {r['width']:g}): {r['over_raw']:+.2f} ± {r['over_raw_error']:.2f}" for r in of
        )
        met = (
            all(abs(row["over_raw"]) <= 0.2 + 2 * row["over_raw_error"] for row in of)
            if of and name == "both"
            else None
        )
        target = "under 0.2 with both" if name == "both" else "stated"
        yield Figure(f"lag of a transition over raw counts, {name}, rows", target, text, len(of), 0, met)


def _one_row(rows: list[Row]) -> Iterable[Figure]:
    for name in ("both", "past"):
        of = [row for row in rows if row["method"] == name]
        kept = [row for row in of if row["of_alone"] is not None]
        text = ", ".join(
            f"{r['level']:g}, {r['significance']:g} sigma: {100 * r['of_alone']:.0f} %, "
            f"{100 * r['beside']:+.1f} % beside"
            for r in kept
        )
        met = all(
            row["of_alone"] >= 0.9 - 2 * row["kept_error"] / max(row["kept"], 1e-9)
            and row["beside"] <= 0.02 + 2 * row["beside_error"]
            for row in kept
        )
        yield Figure(
            f"spots in one row, {name}: kept of what the frame alone keeps",
            "at least 90 %, at most 2 % beside",
            text,
            len(of),
            len(of) - len(kept),
            met if kept else None,
        )


def _maps(rows: list[Row]) -> Iterable[Figure]:
    def of(pattern: str, where: str, method: str = "both") -> list[Row]:
        return [r for r in rows if r["pattern"].startswith(pattern) and r["where"] == where and r["method"] == method]

    def said(values: Sequence[Row], name: str) -> str:
        return ", ".join(f"{row['quantity']} {row[name]:.2f}" for row in values if row[name] is not None)

    same = of("one scene", "all")
    if same:
        reach = same[0]["in_reach"]
        saved = [row["saved_against_raw"] / reach for row in same if row["saved_against_raw"] is not None]
        yield Figure(
            f"map of one scene: exposure saved over raw, {reach:.1f} in reach",
            "0.9 of those in reach",
            said(same, "saved_against_raw"),
            len(same),
            len(same) - len(saved),
            min(saved) >= 0.9 if saved else None,
        )
    smooth, mean = of("smooth", "all"), of("smooth", "all", "mean 3 x 3")
    if smooth:
        of_mean = {row["quantity"]: row["rms"] for row in mean}
        ratios = {row["quantity"]: row["rms"] / of_mean.get(row["quantity"], np.nan) for row in smooth}
        text = ", ".join(f"{quantity} {ratio:.2f}" for quantity, ratio in ratios.items())
        yield Figure(
            "smooth map: rms error over that of the 3 x 3 mean",
            "at most 1",
            text,
            len(smooth),
            0,
            max(ratios.values()) <= 1,
        )
        yield Figure(
            "smooth map: exposure saved over raw", "stated", said(smooth, "saved_against_raw"), len(smooth), 0, None
        )
    jumps = [row for row in of("jump", "beside") if row["quantity"] == row["of"]]
    if jumps:
        worst = max(jumps, key=lambda row: row["ratio"])
        wide = [row for row in jumps if row["jump"] >= WIDE]
        text = ", ".join(f"{row['jump']:g} sigma of {row['of']} {row['ratio']:.2f}" for row in wide)
        allowed = [1.05 + 2 * _ratio_error(row) for row in wide]
        met = all(row["ratio"] <= limit for row, limit in zip(wide, allowed, strict=True)) if wide else None
        yield Figure(
            f"map, beside jumps of {WIDE:g} sigma and more: rms over raw",
            "at most 1.05 (+ 2 errors)",
            text,
            len(wide),
            0,
            met,
        )
        text = f"{worst['ratio']:.2f} ± {_ratio_error(worst):.2f} at {worst['jump']:g} sigma of {worst['of']}"
        yield Figure("map, worst over all jumps: rms over raw", "1.5", text, len(jumps), 0, worst["ratio"] <= 1.5)
    clear = [*same, *smooth, *(row for row in of("jump", "inside") if row["jump"] >= WIDE)]
    known = [row for row in clear if row.get("chi2") is not None and isfinite(row["chi2"])]
    if known:
        outside = [
            row for row in known if not 0.9 - 2 * row["chi2_error"] <= row["chi2"] <= 1.1 + 2 * row["chi2_error"]
        ]
        least, most = (pick(known, key=lambda row: row["chi2"]) for pick in (min, max))
        text = (
            f"{least['chi2']:.2f} ± {least['chi2_error']:.2f} ({least['quantity']}, {least['pattern']}) to "
            f"{most['chi2']:.2f} ± {most['chi2_error']:.2f} ({most['quantity']}, {most['pattern']}); "
            f"{len(outside)} of {len(known)} outside"
        )
        yield Figure("map, away from jumps: chi-squared", "0.9 to 1.1 (+- 2 errors)", text, len(known), 0, not outside)


def _ratio_error(row: Row) -> float:
    """Return about the standard error of a ratio of rms errors of so many points."""
    return float(row["ratio"] / np.sqrt(max(1, row["points"])))


def _powder(rows: list[Row]) -> Iterable[Figure]:
    both = [row for row in rows if row["method"] == "both" and row["saved_against_raw"] is not None]
    for row in both:
        met = row["saved_against_raw"] >= max(6.0, 0.9 * row["in_reach"])
        yield Figure(
            f"G(r) of {row['frames']} frames, {row['level']:g} counts/pixel: exposure saved over the raw frame",
            f"0.9 of {row['in_reach']:.1f} in reach, at least 6",
            f"{row['saved_against_raw']:.2f}",
            1,
            0,
            met,
        )


def _costs(rows: list[Row]) -> Iterable[Figure]:
    for row in rows:
        if row["what"] == "speed":
            text = f"{row['ratio']:.2f} ({row['ratio_least']:.2f} to {row['ratio_most']:.2f})"
            name = f"speed with 8 rows borrowed, {row['side']} x {row['side']}, of that without"
            yield Figure(name, "0.7", text, 1, 0, row["ratio"] >= 0.7)
        else:
            name = f"memory over {row['rows']} rows of {row['side']} x {row['side']} with borrowing, MB"
            yield Figure(name, "at most 50 more over 5,000", f"{row['grew_mb']:+.0f}", 1, 0, row["grew_mb"] <= 50)
