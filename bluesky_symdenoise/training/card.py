"""Model cards of tuned and of trained models: their records in readable form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bluesky_symdenoise.training.scores import Paired


def said(parent: str, figures: Mapping[str, Any]) -> str:
    """Return the figures of a tuned model beside its parent's, in one line."""
    loss, features = (Paired(**figures[name]) for name in ("held_out_loss", "false_features_per_megapixel"))
    return (
        f"loss of held-out photons {loss.parent:.5f} ({parent}) and {loss.tuned:.5f} (tuned) nat/pixel, difference "
        f"{loss.difference:+.5f} +- {loss.error:.5f} on {loss.frames} frames that were not tuned on; false features on "
        f"simulated frames without peaks {features.parent:.1f} and {features.tuned:.1f} per megapixel, difference "
        f"{features.difference:+.1f} +- {features.error:.1f}"
    )


def model_card(name: str, record: Mapping[str, Any]) -> str:
    """Return the model card of a tuned model as Markdown."""
    lineage, figures = record["lineage"], record["figures"]
    parent = lineage["parent"]
    frames = lineage["frames"]
    steps = f"{figures['steps']} steps of {lineage['recipe']['batch']} crops, {figures['seconds']:.0f} s"
    lines = [
        f"# Model card: {name}, version {record['version']}",
        "",
        f"Tuned on {lineage['made']} from `{parent['name']}` version {parent['version']}, sha256 `{parent['sha256']}`.",
        "",
        f"- Runs: {', '.join(f'`{uid}`' for uid in lineage['runs']) or 'arrays'}.",
        f"- Better exposed reference: {', '.join(f'`{uid}`' for uid in lineage['reference']) or 'none'}.",
        f"- Frames: {frames['tuned_on']} tuned on, {frames['held_out']} held out, of {frames['all']};"
        f" {frames['counts_per_pixel']:.3g} counts per pixel, {figures['repeats']} with a repeat of their scene.",
        f"- Symmetry used: {', '.join(lineage['symmetry'])}.",
        f"- Tuning: {steps}; the recipe is in `{name}.json`.",
        "",
        "## Figures",
        "",
        said(parent["name"], figures)[0].upper() + said(parent["name"], figures)[1:] + ".",
        "",
        "## Limits",
        "",
        "Made for frames like those it was tuned on: same detector, similar exposure and patterns.",
        "",
    ]
    return "\n".join(lines)


def trained_card(record: Mapping[str, Any], *, parameters: int) -> str:
    """Return the model card of weights trained by a recipe, as Markdown; ``parameters`` is their number."""
    training, name = record["training"], record["name"]
    config, parent = training["config"], training["initial"]
    begun = (
        "random weights"
        if parent is None
        else f"`{parent['name']}` version {parent['version']}, sha256 `{parent['sha256']}`"
    )
    sets = training["real_sets"]
    real = (
        f"in {100 * config['real_share']:.0f} % of the samples: {', '.join(sets)}" if sets else "none, simulations only"
    )
    widths, crop = "-".join(map(str, config["channels"])), f"{config['crop']} x {config['crop']} pixels"
    lines = [
        f"# Model card: {name}, version {record['version']}",
        "",
        f"A U-Net (channels {widths}, {parameters:,} parameters), sha256 `{record['sha256']}`.",
        "",
        f"- Begun from {begun}.",
        f"- Loss: `{config['loss']}`; {config['steps']} steps of {config['batch']} crops of {crop},"
        f" learning rate {config['learning_rate']:g}, seed {config['seed']}.",
        f"- Real frames: {real}.",
        f"- Took {training['seconds'] / 60:.1f} minutes on {training['device']}, threads: {config['threads']},"
        f" torch {training['torch']}{', bfloat16' if config['bfloat16'] else ''}.",
        f"- The recipe is in `{name}.json`; loss and gradient by step in `{name}.png`, where it was trained.",
        "",
        "## Limits",
        "",
        "Not scored yet: `symdenoise bench quality --data DIR --model FILE` does, on frames that it has not seen.",
        "",
    ]
    return "\n".join(lines)
