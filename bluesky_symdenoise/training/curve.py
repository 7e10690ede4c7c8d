"""The course of a training as a picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

#: Number of points of a curve; each is the median and the quartiles of the steps that it represents.
POINTS = 200


def draw_history(path: Path, picture: Path) -> None:
    """Write loss and length of the gradient against the step, medians and quartiles, as PNG.

    Parameters
    ----------
    path
        ``history.jsonl`` of a training: ``step``, ``loss`` and ``norm`` of each.
    """
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = {key: np.array([line[key] for line in lines], float) for key in ("step", "loss", "norm")}
    figure = Figure(figsize=(8, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for axis, key, label in ((above, "loss", "loss (nat/pixel)"), (below, "norm", "gradient")):
        finite = np.isfinite(found[key])
        steps, values = found["step"][finite], found[key][finite]
        parts = [part for part in np.array_split(np.arange(len(steps)), POINTS) if part.size]
        if parts:
            low, middle, high = np.transpose([np.percentile(values[part], (25, 50, 75)) for part in parts])
            at = [steps[part].mean() for part in parts]
            axis.fill_between(at, low, high, alpha=0.3, linewidth=0)
            axis.plot(at, middle)
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    below.set_yscale("log")
    below.set_xlabel("step")
    figure.savefig(picture, dpi=110)
