"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

# Those that benches have too are declared there: imports point downward.
from bluesky_symdenoise.bench.options import ModelName as ModelName
from bluesky_symdenoise.bench.options import Views as Views

if TYPE_CHECKING:
    from numpy.typing import NDArray

Symmetry = Annotated[
    str,
    typer.Option(
        help="1, 2, m (left onto right), my (top onto bottom), 2mm, 4, 4mm, inf (rings), m@ANGLE, 2mm@ANGLE, "
        "or auto: what the data support of 2mm, 2, m and my; or a .npz file that `symdenoise symmetry -o` wrote. "
        "On a tilted detector each but 1 is followed by ~TILT:AXIS:DISTANCE, in degrees and pixels."
    ),
]
Center = Annotated[tuple[float, float] | None, typer.Option(metavar="Y X", help="Beam centre in pixels.")]
Defects = Annotated[
    str,
    typer.Option(help="find: mask hot and dead pixels that a frame shows; keep: mask only what the mask says."),
]
Sums = Annotated[
    str,
    typer.Option(
        help="free: keep each frame's total; agree: also the sums of its rings and wide boxes of at least 100 counts."
    ),
]
Noise = Annotated[
    str | None,
    typer.Option(metavar="poisson", help="State that frames are photon counts, instead of having that tested."),
]
ReadoutFile = Annotated[
    Path | None,
    typer.Option(
        metavar="TOML",
        help="Readout of an integrating detector (CCD, sCMOS, flat panel) or of means of frames, as `symdenoise "
        "readout` writes it; intensities are then photons.",
    ),
]
Borrow = Annotated[
    str | None,
    typer.Option(
        metavar="past|both",
        help="Also use the photons of the rows before each frame (past), or on both sides (both), where a test finds "
        "them alike.",
    ),
]
BorrowReach = Annotated[
    int | None, typer.Option(min=1, metavar="ROWS", help="Rows on each side, with --borrow; by default 8.")
]
InvertMask = Annotated[bool, typer.Option("--invert-mask", help="In the file of --mask, 0 = bad.")]
IgnoreFileMask = Annotated[bool, typer.Option("--ignore-file-mask", help="Do without the mask that FILE itself has.")]
SelfCheck = Annotated[
    str | None,
    typer.Option(
        metavar="end|off",
        help="end (default): when a run has ended, a few frames are denoised again from half of their photons, and the "
        "stop document says what that was worth; off: not.",
    ),
]
Uri = Annotated[
    str, typer.Argument(metavar="CATALOG_URI", help="URL of the Tiled catalogue that holds RAW and DENOISED.")
]
Raw = Annotated[str, typer.Option(help="Container of the raw runs.")]
Denoised = Annotated[str, typer.Option(help="Container for the denoised runs.")]
Directory = Annotated[
    str | None,
    typer.Option(
        help="Folder for denoised frames, or a template such as /data/{proposal}; by default the one DENOISED names."
    ),
]
Frames = Annotated[
    str | None,
    typer.Option(help="files: the server reads DIRECTORY (default); http: frames are sent to it."),
]
SettingsFile = Annotated[
    Path | None,
    typer.Option(
        "--settings", metavar="TOML", help="Arguments as DenoiseCallback takes them; those given here take precedence."
    ),
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Algorithm = Annotated[
    str | None,
    typer.Option(
        metavar="NUMBER", help="Algorithm of a recipe, to go on as before an upgrade; by default the newest one."
    ),
]
RedoOlder = Annotated[
    bool,
    typer.Option(
        "--redo-older", help="Also runs that were denoised with the same settings, but by other weights or versions."
    ),
]
OlderThan = Annotated[
    float | None,
    typer.Option(
        min=0, metavar="HOURS", help="Also runs without a stop document that gave no sign of life for this long."
    ),
]


def given_mask(path: Path | None, *, inverted: bool) -> NDArray[Any] | None:
    """Return the mask (y, x), True = bad, that --mask and --invert-mask name; None without --mask."""
    from bluesky_symdenoise.files import inverted_mask_from, mask_from

    if path is None:
        return None
    return inverted_mask_from(path) if inverted else mask_from(path)
