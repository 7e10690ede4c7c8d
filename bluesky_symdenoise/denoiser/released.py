"""Algorithms and weights of released versions: what a recipe may name, and what is said of one that is not here."""

from __future__ import annotations

from dataclasses import dataclass

from bluesky_symdenoise.errors import SymDenoiseError

#: Algorithms of recipes that this version computes, oldest first; new work is done with the last one. An algorithm is
#: added when the same weights would give other pixels, and none is ever taken out: recipes name it.
RELEASED: tuple[str, ...] = ("6", "7")
#: Algorithm whose code is the written law, which is simple and slow; newer ones differ from it by less than 0.01 sigma.
LAW = "6"
#: Algorithms that recipes of development versions name: none was released, and this version does not have their code.
NEVER_RELEASED: tuple[str, ...] = ("1", "2", "3", "4", "5")


@dataclass(frozen=True)
class ShippedWeights:
    """Weights that a version of this package has shipped.

    Attributes
    ----------
    name, version
        Name and version of the model.
    package
        Version of bluesky-symdenoise whose wheel has them.
    """

    name: str
    version: str
    package: str


#: Weights of released versions by their sha256; none is ever taken out, so that a message can say where they are.
SHIPPED: dict[str, ShippedWeights] = {
    "aa2184f2beccdefb9d2e52ae20b4b9cfbbce5fce45622e5cd5dda8978ab19c06": ShippedWeights("fast", "5", "0.1.0"),
}


def newest() -> str:
    """Return the algorithm of new work."""
    return RELEASED[-1]


def is_released(algorithm: object) -> bool:
    """Return whether this version computes recipes of an algorithm."""
    return algorithm in RELEASED


def checked_algorithm(algorithm: str | None, *, made_with: str | None = None) -> str:
    """Return the algorithm if this version computes it; None gives the newest.

    Parameters
    ----------
    made_with
        Version of the package that made the recipe, where it is known, for the message.

    Raises
    ------
    SymDenoiseError
        If this version does not have it.
    """
    if algorithm is None:
        return newest()
    if is_released(algorithm):
        return algorithm
    raise SymDenoiseError(
        f"algorithm {str(algorithm)[:20]!r}", rule=not_computed(algorithm), remedy=way_out(algorithm, made_with)
    )


def not_computed(algorithm: object) -> str:
    """Return why this version does not compute an algorithm, as the rule of a `SymDenoiseError`."""
    if algorithm in NEVER_RELEASED:
        return f"this version computes {_listed()}; this one is of a development version, whose code it does not have"
    return f"this version computes {_listed()}"


def way_out(algorithm: object, made_with: str | None = None) -> str:
    """Return what to do about a recipe of an algorithm that this version does not compute."""
    again = f"denoise the raw run again for those of algorithm {newest()}"
    if algorithm in NEVER_RELEASED:
        # No version has it, whatever version the run's provenance names.
        return f"use its stored pixels as they are, or {again}"
    version = f"version {made_with[:40]}" if made_with else "the version that made the recipe"
    return f"install {version} of bluesky-symdenoise, or a newer one, for its pixels, or {again}"


def older_than(algorithm: str, other: str) -> bool:
    """Return whether an algorithm came before another one, which this version computes; not for unknown ones."""
    order = (*NEVER_RELEASED, *RELEASED)
    return algorithm in order and other in order and order.index(algorithm) < order.index(other)


def where_weights_are(sha256: str, name: str) -> str:
    """Return the command that gets weights which are not on this computer.

    Parameters
    ----------
    name
        Name of the model where it was used.
    """
    shipped = SHIPPED.get(sha256)
    if shipped is None:
        return f"`symdenoise models import FILE`, after `symdenoise models export {name}` where it was made"
    wheel = f"bluesky_symdenoise-{shipped.package}-py3-none-any.whl"
    return f"`symdenoise models import {wheel}`, the wheel of bluesky-symdenoise {shipped.package}, which has them"


def _listed() -> str:
    return f"algorithm {RELEASED[0]}" if len(RELEASED) == 1 else f"algorithms {', '.join(RELEASED)}"
