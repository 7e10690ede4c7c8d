"""Tuning of a model to past runs; the result is registered only if held-out frames show that it is better."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from bluesky_symdenoise import __version__
from bluesky_symdenoise.acquisition.past.stacks import Stack, sampled, stacks_of
from bluesky_symdenoise.acquisition.request.request import now
from bluesky_symdenoise.denoiser.registry import add, checked_new_name
from bluesky_symdenoise.errors import SymDenoiseError
from bluesky_symdenoise.physics.frame import as_mask

if TYPE_CHECKING:
    from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRun

    from bluesky_symdenoise.denoiser.infer import Denoiser
    from bluesky_symdenoise.training.fit import TrainConfig
    from bluesky_symdenoise.training.shots import Shot

#: Minutes that adapting a model may take in total.
MINUTES = 4.5
#: Most frames that are read, most bytes that they may take, and fewest frames that suffice for a result.
MOST_FRAMES, BYTES, LEAST_FRAMES = 128, 2**29, 8
#: Held-out frames for scoring: a quarter of all, at most this many, with about this many pixels in total, and at least
#: this many.
HELD_OUT, HELD_OUT_PIXELS, LEAST_HELD_OUT = 32, 2**24, 4
#: Number of frames that are summed to find the symmetry.
POOLED = 8


@dataclass(frozen=True, eq=False)
class Finetuned:
    """Result of a tuning.

    Attributes
    ----------
    accepted
        Whether the tuned model is better than its parent beyond noise, invents no more, and so was registered.
    said
        The verdict in one line, with the figures.
    figures
        The figures, for programs.
    denoiser
        Denoiser with the model to use: the tuned one, or its parent.
    """

    accepted: bool
    said: str
    figures: dict[str, Any]
    denoiser: Denoiser


def finetune(
    frames: BlueskyRun | Sequence[BlueskyRun] | ArrayLike,
    *,
    name: str,
    reference: BlueskyRun | Sequence[BlueskyRun] | ArrayLike | None = None,
    parent: Denoiser | str | Path | None = None,
    mask: ArrayLike | None = None,
    symmetry: str = "auto",
    beam_center: Sequence[float] | None = None,
    stream: str | None = None,
    data_key: str | None = None,
    minutes: float = MINUTES,
    seed: int = 0,
    config: TrainConfig | None = None,
    progress: bool = True,
) -> Finetuned:
    """Tune a model to your runs, and register it if frames that it was not tuned on show that it got better.

    No clean image is needed: the photons of a frame are split and one part is predicted from the other, or the next
    frame is predicted if it repeats the scene. Symmetry mates are input, as they will be in use. A third of the samples
    is simulated, most of them without any peak; on these the network is held to its parent, so that it does not learn
    to invent features. Nothing is written before the end.

    Parameters
    ----------
    frames
        A raw run, several, or frames (frame, y, x) of whole photon counts. At most 128 are read, drawn at random.
    name
        Name of the tuned model; ``Denoiser.pretrained(name)`` loads it afterwards.
    reference
        Runs or frames of the same scenes with more exposure, frame by frame, to be predicted instead.
    parent
        The model to start from; by default the package's.
    mask, symmetry, beam_center
        Values as they will be used when denoising; see `bluesky_symdenoise.Denoiser`.
    stream, data_key
        Stream and data key of the image in the runs; by default the first.
    minutes
        Time for everything. The number of steps is reduced if they would take longer.
    seed
        The same frames, seed and number of threads give the same weights, unless time was short.
    config
        The tuning recipe; None is `bluesky_symdenoise.training.tune.TUNING`.
    progress
        Whether to show a bar.

    Raises
    ------
    SymDenoiseError
        If the name cannot be used, or there are too few frames of photon counts.
    """
    # torch takes seconds to import: the name `finetune` alone must not cost them.
    from bluesky_symdenoise.denoiser.infer import Denoiser
    from bluesky_symdenoise.training.card import model_card, said
    from bluesky_symdenoise.training.tune import TUNING, halves, tune

    begun = time.monotonic()
    checked_new_name(name)
    if not minutes > 0:
        raise SymDenoiseError(f"minutes={minutes}", rule="it must be positive", remedy=f"give {MINUTES}")
    denoiser = parent if isinstance(parent, Denoiser) else Denoiser.pretrained(parent)
    stacks = stacks_of(frames, stream=stream, data_key=data_key)
    better = None if reference is None else stacks_of(reference, stream=stream, data_key=data_key)
    if better is not None and [one.shape for one in better] != [one.shape for one in stacks]:
        raise SymDenoiseError(
            f"reference of shape {', '.join(str(one.shape) for one in better)}",
            rule=f"it must pair the frames one by one, {', '.join(str(one.shape) for one in stacks)}",
            remedy="give the runs in one order, each with its reference",
        )
    largest = max(int(np.prod(one.shape[1:])) * 8 for one in stacks) * (1 if better is None else 2)
    chosen = sampled(stacks, most=max(LEAST_FRAMES, min(MOST_FRAMES, BYTES // largest)), seed=seed)
    shots = _shots(stacks, better, chosen, denoiser, mask=mask, symmetry=symmetry, beam_center=beam_center)
    pixels = int(np.prod(stacks[0].shape[1:]))
    held = max(LEAST_HELD_OUT, min(HELD_OUT, HELD_OUT_PIXELS // pixels, len(shots) // 4))
    on, held_out = halves(shots, held_out=held, seed=seed)
    origin = denoiser.model
    recipe = replace(
        config or TUNING, name=name, seed=seed, threads=denoiser.threads, channels=origin.net.architecture.channels
    )
    tuned = tune(
        denoiser,
        on,
        held_out,
        config=recipe,
        seconds=minutes * 60 - (time.monotonic() - begun),
        progress=progress,
    )
    figures = tuned.figures()
    if tuned.steps == 0:
        return Finetuned(
            False,
            f"{origin.name} is kept, nothing is registered: no tuning step was made, reading and scoring frames took "
            f"all of the {minutes:g} minutes; give more minutes ({MINUTES:g} are usual)",
            figures,
            denoiser,
        )
    words = f"{said(origin.name, figures)}; {tuned.steps} of {recipe.steps} steps in {tuned.seconds:.0f} s"
    if not tuned.accepted:
        why = (
            "shows more false features than its parent"
            if tuned.loss.better
            else "is not better than its parent beyond noise"
        )
        return Finetuned(
            False, f"{origin.name} is kept, nothing is registered: the tuned model {why} ({words})", figures, denoiser
        )
    record = {
        "version": "1",
        "lineage": {
            "parent": origin.identity(),
            "runs": [one.name for one in stacks if one.is_run],
            "reference": [one.name for one in better or () if one.is_run],
            "frames": {
                "all": sum(one.shape[0] for one in stacks),
                "tuned_on": len(on),
                "held_out": len(held_out),
                "counts_per_pixel": float(np.mean([shot.mean for shot in shots])),
            },
            "symmetry": sorted({shot.symmetry.point_group for shot in shots}),
            "recipe": recipe.to_dict(),
            "environment": denoiser.environment(),
            "software": {"name": "bluesky-symdenoise", "version": __version__},
            "made": now(),
        },
        "figures": figures,
    }
    add(name, tuned.content, record, model_card(name, record))
    return Finetuned(
        True,
        f"{name} is registered ({words})",
        figures,
        Denoiser(
            tuned.model,
            device=str(denoiser.device),
            threads=denoiser.threads,
            defects=denoiser.defects,
            views=denoiser.views,
            sums=denoiser.sums,
            algorithm=denoiser.algorithm,
        ),
    )


def _shots(
    stacks: Sequence[Stack],
    better: Sequence[Stack] | None,
    chosen: Sequence[tuple[int, int]],
    denoiser: Denoiser,
    *,
    mask: ArrayLike | None,
    symmetry: str,
    beam_center: Sequence[float] | None,
) -> list[Shot]:
    """Return the frames that have photons, each with its reference if there is one."""
    from bluesky_symdenoise.training.shots import Shot, same_scene

    shots: list[Shot] = []
    for number, stack in enumerate(stacks):
        bad = as_mask(mask, stack.shape[1:])
        mine = [(index, stack.counts(index)) for at, index in chosen if at == number]
        lit = [(index, counts) for index, counts in mine if Shot(counts, bad).mean > 0]
        if not lit:
            continue
        found = denoiser.resolve(
            np.stack([counts for _, counts in lit[:POOLED]]), mask=bad, symmetry=symmetry, beam_center=beam_center
        )
        for index, counts in lit:
            shot = Shot(counts, bad, found)
            if better is None:
                shots.append(shot)
                continue
            target = better[number].counts(index)
            exposure = same_scene(shot, Shot(target, bad))
            if exposure is not None:
                shots.append(replace(shot, target=target, exposure=exposure))
    if len(shots) < LEAST_FRAMES:
        of = "with photons" if better is None else "that show the scene of their reference"
        raise SymDenoiseError(
            f"{len(shots)} frames {of}",
            rule=f"{LEAST_FRAMES} are needed: some to tune on, others to see whether it helped",
            remedy="give more runs, or use the model as it is",
        )
    return shots
