"""Result of the demo: as a value, as lines for the terminal, as JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Report:
    """Result of the demo, as `--json` prints it. Bytes are those of the runs' files, errors in photons per pixel."""

    raw_uid: str
    denoised_uid: str
    catalog: str
    frames: int
    failures: list[str]
    shape: list[int]
    data_key: str
    symmetry: str
    beam_center: list[float] | None
    seconds_per_frame: float
    scan_seconds: float
    callback_us_per_event: float
    raw_bytes: int
    denoised_bytes: int
    bytes_ratio: float
    held_out_nll_raw: float
    held_out_nll_denoised: float
    flux_change: float
    rms_error_raw: float | None
    rms_error_denoised: float | None
    truth_within_1_sigma: float | None
    peak_memory_mib: int
    picture: str


def show(console: Console, report: Report, output: Path) -> None:
    """Print the table, the figures and the lines to type next."""
    table = Table(title="What is in the catalogue now", title_justify="left")
    for column in ("container", "run", "data keys of stream primary", "frames", "file", "bytes"):
        table.add_column(column, justify="right" if column in ("frames", "bytes") else "left", overflow="fold")
    key = report.data_key
    table.add_row("raw", report.raw_uid[:8], key, str(report.frames), "counts as written", f"{report.raw_bytes:,}")
    table.add_row(
        "denoised",
        report.denoised_uid[:8],
        f"{key}, {key}_sigma",
        str(report.frames),
        f"float32, {report.bytes_ratio:.1f} x the raw file",
        f"{report.denoised_bytes:,}",
    )
    console.print(table)
    about = f" about (y, x) = ({report.beam_center[0]:g}, {report.beam_center[1]:g})" if report.beam_center else ""
    console.print(f"Symmetry used: {report.symmetry}{about}")
    console.print(
        f"Held-out half of the photons of frame 1, -log likelihood per pixel: raw {report.held_out_nll_raw:.4f}, "
        f"denoised {report.held_out_nll_denoised:.4f} (lower is better); total counts {report.flux_change:+.2%}"
    )
    if report.rms_error_raw is not None and report.rms_error_denoised is not None:
        console.print(
            f"Against the known truth, rms error in photons/pixel: raw {report.rms_error_raw:.3f}, "
            f"denoised {report.rms_error_denoised:.3f}; "
            f"truth within 1 sigma in {report.truth_within_1_sigma:.1%} of pixels"
        )
    console.print(
        f"{report.seconds_per_frame:.2f} s per frame in the worker, {report.callback_us_per_event:.0f} us per event "
        f"on the RunEngine's thread, peak memory {report.peak_memory_mib} MiB"
    )
    for failure in report.failures:
        console.print(f"[red]Not denoised[/]: {failure}", soft_wrap=True)
    console.print(f"Picture: {report.picture}", soft_wrap=True)
    console.print("\n[bold]Next[/]: serve this catalogue; it prints a URL for the browser and a key")
    console.print(f"    {sys.argv[0]} serve {output}", soft_wrap=True)
    console.print("and query it in Python with the client lines that it prints:")
    console.print("    from bluesky_symdenoise import aligned, denoised_for")
    console.print(f'    raw = client["raw"]["{report.raw_uid}"]', soft_wrap=True)
    console.print("    ds = aligned(raw, denoised_for(client, raw))")


def as_json(report: Report) -> str:
    """Return one line of JSON."""
    return json.dumps(asdict(report))
