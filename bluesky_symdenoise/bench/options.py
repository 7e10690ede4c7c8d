"""Options that several benches share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

JsonPath = Annotated[Path | None, typer.Option("--json", "-o", help="Where to write the figures.")]
Data = Annotated[Path, typer.Option(help="Folder with real frames (HDF5 with counts, mask, role).")]
ModelName = Annotated[
    str | None, typer.Option(help="Name of a model (`symdenoise models list`), or a .safetensors file.")
]
Views = Annotated[
    int, typer.Option(help="8: the mean over quarter turns and mirror images of each frame, eight times as slow; or 1.")
]
DenoiserThreads = Annotated[int, typer.Option(min=1, help="CPU threads of the denoiser.")]
CpuThreads = Annotated[int, typer.Option(min=1, help="CPU threads.")]
Side = Annotated[int, typer.Option(min=8, help="Pixels along each side.")]
DeviceName = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, ... or auto: a GPU if there is one.")]
