"""The course of a training as a picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

#: Points of a curve: each stands for as many steps as there are, by their median and quartiles.
POINTS = 200


def history(path: Path) -> dict[str, NDArray[np.float64]]:
    """``step``, ``loss`` and ``norm`` of each step, in order; of one that was repeated after a stop, the last.

    Parameters
    ----------
    path
        ``history.jsonl`` of a training.
    """
    lines = (json.loads(line) for line in path.read_text().splitlines())
    last = {line["step"]: line for line in lines}
    return {key: np.array([last[step][key] for step in sorted(last)], float) for key in ("step", "loss", "norm")}


def draw_history(path: Path, picture: Path) -> None:
    """Write loss and length of the gradient against the step, medians and quartiles, as PNG."""
    from matplotlib.figure import Figure

    found = history(path)
    figure = Figure(figsize=(8, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    parts = np.array_split(np.arange(len(found["step"])), min(POINTS, max(1, len(found["step"]))))
    steps = [found["step"][part].mean() for part in parts if part.size]
    for axis, key, label in ((above, "loss", "loss (nat/pixel)"), (below, "norm", "gradient")):
        quartiles = [np.nanpercentile(found[key][part], (25, 50, 75)) for part in parts if part.size]
        if quartiles:
            low, middle, high = np.transpose(quartiles)
            axis.fill_between(steps, low, high, alpha=0.3, linewidth=0)
            axis.plot(steps, middle)
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    below.set_yscale("log")
    below.set_xlabel("step")
    figure.savefig(picture, dpi=110)
