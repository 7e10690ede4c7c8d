"""What the page shows of each bench: its JSON as tables in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Content = dict[str, Any]
Texts = dict[str, str]

#: Rows of single cases, by bench: the folder of results keeps what is made of them.
LEFT_OUT = {
    "quality": ("results",),
    "science": ("rings",),
    "integrating": ("frames", "spots"),
    "series": ("options", "results"),
}


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", r"\|") for cell in line) + " |" for line in lines)


def _load(content: Content) -> Texts:
    rows = [row for group in content["figures"].values() for row in group]
    columns = ("figure", "measured", "unit", "target")
    return {"table": table(columns, ((r["figure"].strip(), f"{r['value']:.3g}", r["unit"], r["target"]) for r in rows))}


def _speed(content: Content) -> Texts:
    columns = ("frame", "network", "threads", "symmetry", "Mpixel/s", "times symmetry 1", "of the other's time")
    rows = [
        (
            f"{each['batch']} of {each['shape'][0]} x {each['shape'][1]}",
            each["dtype"],
            str(each["threads"]),
            f"`{each['symmetry']}`" if "," not in each["symmetry"] else each["symmetry"],
            f"{each['mpixel_per_s']:.3g}",
            *(f"{each[name]:.2f}" if name in each else "" for name in ("times_symmetry_1", "time_of_other")),
        )
        for each in content["cases"]
    ]
    kept = [place for place in range(len(columns)) if any(row[place] for row in rows)]
    cases = table([columns[place] for place in kept], [[row[place] for place in kept] for row in rows])
    return {**_load(content), "cases": cases}


def _serve(content: Content) -> Texts:
    rows = [(r["figure"], r["measured"], r["target"], "yes" if r["met"] else "no") for r in content["results"]]
    return {"table": table(("figure", "measured", "target", "met"), rows)}


def _search(content: Content) -> Texts:
    rows = [
        (
            each["database"],
            f"{each['nodes']:,}",
            f"{each['denoised']:,}",
            f"`{each['search']}`" if "(" in each["search"] else each["search"],
            *(f"{each[name]:.1f}" for name in ("median_ms", "worst_ms", "database_ms")),
        )
        for each in content["results"]
    ]
    columns = ("database", "nodes", "denoised runs", "search", "median, ms", "worst, ms", "in the database, ms")
    return {"table": table(columns, rows)}


def _quality(content: Content) -> Texts:
    found = content["figures"]["test"]
    met = {True: "yes", False: "no", None: "not testable"}
    figures = [(each["name"], each["target"], each["value"], met[each["met"]]) for each in found["figures"]]
    levels = list(found["likelihood"]["every peer"])
    peers = [
        (
            f"`{name}`" if name != "every peer" else name,
            *(f"{won} of {cases}" if cases else "not testable" for won, cases in by_level.values()),
        )
        for name, by_level in found["likelihood"].items()
    ]
    strata = [
        (f"`{method}`", *("" if value is None else f"{value:.3f}" for value, _ in by_rate.values()))
        for method, by_rate in found["strata"].items()
    ]
    rates = list(next(iter(found["strata"].values())))
    return {
        "figures": table(("figure", "wanted", "found", "met"), figures),
        "likelihood": table(
            ("peer", *(level if level == "repeats" else f"{level} counts/pixel" for level in levels)), peers
        ),
        "strata": table(("counts/pixel there", *rates), strata),
        "psnr": table(
            ("set", "least", "most"),
            [(name, f"{least:+.1f} dB", f"{most:+.1f} dB") for name, (least, most) in found["psnr"].items()],
        ),
    }


def _features(content: Content) -> Texts:
    of: dict[str, list[Content]] = {}
    for row in content["results"]:
        of.setdefault(row["what"], []).append(row)
    levels = sorted({row["level"] for row in of["spot"]})

    def line(name: str, what: str, text: Callable[[list[Content]], str], **wanted: object) -> list[str]:
        """Return a line of the table: at each level the text of the rows that have the wanted values."""
        rows = [row for row in of[what] if all(row[key] == value for key, value in wanted.items())]
        return [name, *(text([row for row in rows if row["level"] == level]) for level in levels)]

    def kept(rows: list[Content]) -> str:
        return " / ".join(f"{100 * row['kept']:.0f}" for row in rows) + " %"

    def share(name: str) -> Callable[[list[Content]], str]:
        return lambda rows: " / ".join(f"{100 * r[name]:.1f} ± {100 * r[f'{name}_error']:.1f} %" for r in rows)

    def peak(rows: list[Content]) -> str:
        return ", ".join(f"{100 * row['bias']:+.1f} % ({100 * row['sigma']:.1f})" for row in rows)

    def covered(rows: list[Content]) -> str:
        return " / ".join(f"{100 * row['covered']:.0f}" for row in rows) + " %"

    def regions(rows: list[Content]) -> str:
        return f"{rows[0]['per_megapixel']['3.0']:.0f}"

    def flux(rows: list[Content]) -> str:
        return f"{100 * rows[0]['worst']:.1f} ± {100 * rows[0]['standard_error']:.1f} %"

    lines = [
        line("counts left of a spot of 5 sigma, 1 / 2 / 4 / 8 pixels wide, no symmetry", "spot", kept, significance=5),
        line("... of 10 sigma", "spot", kept, significance=10),
        line(
            "a spot of 5 sigma in a pattern of symmetry 2, which has no mate: left",
            "asymmetric",
            share("kept"),
            significance=5,
        ),
        line("... and copied to its mate's place", "asymmetric", share("copied"), significance=5),
        line("one of a pair of 20 sigma taken away: filled up by", "asymmetric", share("copied"), significance=20),
        line("regions above a flat rate by 3 of their own sigma, per megapixel", "nothing", regions, kind="flat"),
        line("true rate within the 68 / 95 % interval, simulated rings", "interval", covered, pattern="rings"),
        line("... patterns as it was trained on", "interval", covered, pattern="as trained on"),
        line("total counts off by, mean over the frames", "flux", flux, of="total"),
        line(
            "area of two textured rings after pyFAI, bias (one sigma of a raw frame, %)", "peak", peak, quantity="area"
        ),
    ]
    arcs = [
        (
            f"{row['level']:g}",
            {"no": "none", "as named": "named", "checked": "checked"}[row["symmetry"]],
            f"{100 * row['kept']:.0f} ± {100 * row['kept_error']:.0f} %",
            f"{row['rms']:.3f}",
            "" if row["usable"] is None else f"{100 * row['usable']:.0f} %",
        )
        for row in of["arc"]
    ]
    return {
        "table": table(("what", *(f"{level:g} counts/pixel" for level in levels)), lines),
        "arcs": table(("counts/pixel", "symmetry", "arc left", "rms error over the mean rate", "mates used on"), arcs),
    }


def _sums(content: Content) -> Texts:
    def pair(row: Content, name: str) -> str:
        values = [row[f"{name}_{choice}"] for choice in ("free", "agree")]
        return " / ".join("-" if value is None else f"{value:.2f}" for value in values)

    parts = ("ring", "sector", "box", "few", "within", "chi2")
    rows = [
        (row["name"], f"{row['level']:g}", *(pair(row, name) for name in parts), f"{1e4 * row['gain']:+.2f}")
        for row in content["results"]
    ]
    areas = [
        (
            f"{row['level']:g}",
            f"{row['radius']:g}",
            f"{100 * row['sigma']:.1f} %",
            *(f"{100 * row[choice]:+.1f} % ({row[choice] / row['sigma']:+.2f})" for choice in ("free", "agree")),
        )
        for row in content["areas"]
    ]
    return {
        "table": table(("frames", "counts/pixel", "rings", "sectors", "boxes", *parts[3:], "gain"), rows),
        "areas": table(("counts/pixel", "radius, pixels", "sigma of one raw frame", "free", "agree"), areas),
        "seconds": ", ".join(
            f"{100 * (row['agree'] / row['free'] - 1):.0f} % of {row['side']} x {row['side']} pixels"
            for row in content["seconds"]
        ),
    }


def _symmetry(content: Content) -> Texts:
    tests = [
        (
            row["case"],
            f"{row['level']:g}",
            row["frames"],
            f"{row['size']:.3f}",
            row["tests"],
            f"{100 * row['share']:.1f} ± {100 * row['error']:.1f} %",
        )
        for row in content["test"]
    ]
    centers = [
        (
            f"{row['level']:g}",
            f"{row['size']} x {row['size'] + 16}",
            row["tests"],
            _pixels(row["median"]),
            _pixels(row["most"]),
        )
        for row in content["center"]
    ]
    labelled = [(row["set"], _pixels(row["error"])) for row in content["labelled"]]
    return {
        "tests": table(("pattern", "counts/pixel", "frames", "difference", "tests", "called asymmetric"), tests),
        "centers": table(("counts/pixel", "pixels", "patterns", "median error, pixels", "largest"), centers),
        "labelled": table(("set", "largest difference, pixels"), labelled),
    }


def _pixels(value: float | None) -> str:
    return "not found" if value is None else f"{value:.2f}"


def _counts(content: Content) -> Texts:
    met = {True: "yes", False: "no"}
    figures = [
        (
            each["figure"],
            f"{each['count']} of {each['frames']}",
            f"{100 * each['count'] / each['frames']:.2f} %",
            each["target"],
            met[each["met"]] if each["target"] else "",
        )
        for each in content["summary"]
    ]
    cases = [
        (
            row["part"],
            row["case"],
            *(row[name] for name in ("frames", "refused", "warned", "silent", "silent_and_wrong")),
        )
        for row in content["cases"]
    ]
    columns = ("part", "case", "frames", "refused", "warned of", "nothing said", "... and sigma wrong")
    return {
        "summary": table(("figure", "found", "share", "wanted", "met"), figures),
        "cases": table(columns, cases),
    }


def _readout(content: Content) -> Texts:
    def percent(value: float | None, digits: int = 0) -> str:
        return "" if value is None else f"{100 * value:.{digits}f} %"

    rows = [
        (
            row["case"],
            row["tests"],
            percent(row["limit"]),
            *(percent(row[name], 1) for name in ("within", "wrong", "refused", "median", "p95")),
            "" if row["pull"] is None else f"{row['pull']:.1f}",
            ""
            if row["read_noise_within"] is None
            else f"{percent(row['read_noise_within'])} of {row['read_noise_seen']}",
        )
        for row in content["readout"]
    ]
    columns = ("detector", "tests", "asked", "within", "wrong", "refused", "median error", "95 %", "pull")
    return {"table": table((*columns, "read noise within 5 %"), rows)}


def _integrating(content: Content) -> Texts:
    rows = [
        (
            f"{row['level']:g}",
            f"{row['noise']:g}",
            f"{100 * row['worst_flux']:.2f} %",
            f"{100 * row['covered']:.0f} %",
            f"{100 * row['covered_counts']:.0f} %",
            "" if row["spots"] is None else f"{100 * row['spots']:.0f} %",
            f"{row['better']} of {row['compared']}",
        )
        for row in content["summary"]
    ]
    columns = ("photons/pixel", "read noise", "flux error", "covered", "... of counts", "spots", "better than BM3D")
    return {"table": table(columns, rows)}


def _tilt(content: Content) -> Texts:
    denoised = [
        (
            f"{row['degrees']:g}",
            {"2": "arcs, `2`", "inf": "rings, `inf`"}[row["group"]],
            f"{row['level']:g}",
            *(f"{row['error'][name]:.3f}" for name in ("known", "flat", "none")),
            *(f"{1e3 * row['gain'][name]:+.2f}" for name in ("known", "flat")),
        )
        for row in content["denoised"]
    ]
    mates = [
        (f"{row['degrees']:g}", f"{row['first_ms']:.0f} ms", f"{row['again_ms']:.0f} ms", f"{100 * row['share']:.0f} %")
        for row in content["mates"]
    ]
    columns = ("tilt", "pattern", "counts/pixel", "tilt known", "not known", "no symmetry")
    return {
        "denoised": table((*columns, "likelihood, known", "not known"), denoised),
        "mates": table(("tilt", "mates found once in", "counts moved in", "pixels with a mate"), mates),
    }


def _science(content: Content) -> Texts:
    rings = [row for row in content["summary"] if row["quantity"] != "G(r)"]

    def factor(value: float | None) -> str:
        return "not determined" if value is None else f"{value:.2f}"

    def chi2(row: Content, method: str) -> str:
        value, error = row.get(f"chi2_{method}"), row.get(f"chi2_error_{method}")
        return "not determined" if value is None else f"{value:.2f} ± {error:.2f}"

    rows = [
        (
            row["pattern"],
            row["quantity"],
            factor(row["saved_against_raw"]),
            factor(row["saved_against_fit"]),
            *(chi2(row, method) for method in ("raw counts", "denoised", "likelihood fit")),
        )
        for row in rings
    ]
    pairs: dict[tuple[str, float], dict[str, float]] = {}
    for row in content["pdf"]:
        pairs.setdefault((row["pattern"], row["level"]), {})[row["method"]] = row["rms"]
    columns = ("ring", "quantity", "raw counts", "likelihood fit", "chi2 raw counts", "chi2 denoised", "chi2 fit")
    return {
        "rings": table(columns, rows),
        "pdf": table(
            ("powder", "counts/pixel", "raw", "denoised"),
            [
                (powder, f"{level:g}", f"{each['raw counts']:.3f}", f"{each['denoised, as it is']:.3f}")
                for (powder, level), each in pairs.items()
            ],
        ),
    }


def _series(content: Content) -> Texts:
    met = {True: "yes", False: "no", None: ""}
    figures = [(each["name"], each["target"], each["value"], met[each["met"]]) for each in content["figures"]]

    def gain(found: list[float] | None) -> str:
        return "" if found is None else f"{found[0]:+.2f} ± {found[1]:.2f}"

    def exposure(row: Content, name: str) -> str:
        found = row["exposure"].get(name)
        return "" if found is None else f"{found:.1f}" + (" *" if name in row["beyond"] else "")

    rows = [
        (
            row["series"],
            f"{row['level']:g}",
            gain(row["past"]),
            gain(row["both"]),
            gain(row["peer"]) + (f" (`{row['best_peer']}`)" if row["best_peer"] else ""),
            *(exposure(row, name) for name in ("past", "both")),
        )
        for row in content["gains"]
    ]
    columns = ("series", "counts/pixel", "past", "both", "best peer", "exposure, past", "both")
    return {"figures": table(("figure", "wanted", "found", "met"), figures), "series": table(columns, rows)}


#: By bench: from its JSON to Markdown by name.
SECTIONS: dict[str, Callable[[Content], Texts]] = {
    **dict.fromkeys(("live", "replay", "start", "dask"), _load),
    "speed": _speed,
    **dict.fromkeys(("serve", "page"), _serve),
    "search": _search,
    "quality": _quality,
    "features": _features,
    "sums": _sums,
    "symmetry": _symmetry,
    "counts": _counts,
    "integrating": _integrating,
    "readout": _readout,
    "tilt": _tilt,
    "science": _science,
    "series": _series,
}
