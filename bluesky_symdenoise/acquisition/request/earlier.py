"""Recipes of before an upgrade: those of earlier algorithms and weights, and the work that goes on with one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from bluesky_symdenoise.denoiser import released
from bluesky_symdenoise.denoiser.registry import found_by_sha256
from bluesky_symdenoise.denoiser.settings import RecordedSettings
from bluesky_symdenoise.recipe import Recipe

if TYPE_CHECKING:
    from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRun

    from bluesky_symdenoise.acquisition.request.request import Request

    Asked = TypeVar("Asked", bound=Request)

#: What an upgrade changes of a recipe; everything else are settings.
UPGRADED = ("model_sha256", "algorithm")


def same_settings(stored: Mapping[str, Any], recipe: Recipe) -> bool:
    """Return whether a stored recipe differs from this one in weights and algorithm at most."""
    without = dict.fromkeys(UPGRADED)
    return {**stored, **without} == {**recipe.to_dict(), **without}


def is_computable(stored: Mapping[str, Any]) -> bool:
    """Return whether this version has the algorithm of a stored recipe, and this computer its weights."""
    sha256 = str(stored.get("model_sha256"))
    return released.is_released(stored.get("algorithm")) and found_by_sha256(sha256) is not None


def earlier_recipes(asked: Request) -> dict[str, Recipe]:
    """Return recipes with these settings of the model's earlier weights and algorithms, by their sha256.

    Those that this computer cannot compute are left out.
    """
    model, recipe = asked.denoiser.model, asked.recipe
    shipped = {sha256 for sha256, weights in released.SHIPPED.items() if weights.name == model.name}
    here = {model.sha256, *filter(found_by_sha256, shipped)}
    every = (
        replace(recipe, algorithm=algorithm, model_sha256=sha256) for algorithm in released.RELEASED for sha256 in here
    )
    return {each.sha256: each for each in every if each != recipe}


def as_begun(asked: Asked, run: BlueskyRun) -> Asked:
    """Return the request with algorithm and weights of a derived run that has the same settings."""
    provenance = run.start["provenance"]
    return with_recipe(asked, Recipe.from_dict(provenance["recipe"]), model=provenance["model"]["name"])


def with_recipe(asked: Asked, recipe: Recipe, *, model: str) -> Asked:
    """Return the request with algorithm and weights of a recipe that has the same settings.

    Parameters
    ----------
    model
        Name of the model where the recipe was made, for messages.
    """
    denoiser = asked.denoiser
    settings = RecordedSettings(
        model=model,
        recorded=recipe.model_sha256,
        device=str(denoiser.device),
        threads=denoiser.threads,
        dtype=denoiser.dtype,
        defects=denoiser.defects,
        views=denoiser.views,
        sums=denoiser.sums,
        algorithm=recipe.algorithm,
    )
    return replace(asked, recipe=recipe, model=settings)
