"""Counts of the runs that this version cannot compute again, by algorithm and weights: the server does the counting."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from bluesky_symdenoise.catalog.find.query import SPEC
from bluesky_symdenoise.catalog.server.finding import Finding
from bluesky_symdenoise.denoiser.registry import found_by_sha256
from bluesky_symdenoise.denoiser.released import is_released, not_computed, way_out, where_weights_are

#: Seconds that counting may take: SQLite reads the metadata of every run.
COUNTING_S = 120.0
_ALGORITHM = "start.provenance.recipe.algorithm"
_MODEL = "start.provenance.model"
_PACKAGE = "start.provenance.wasAssociatedWith.version"
#: Conditions under which a run has frames and stores none; see `derived.columns.computed_when_read`.
_LAZY = (("eq", "stop.provenance.bytes", 0), ("noteq", "stop.provenance.frames", 0))

Condition = tuple[str, str, Any]


@dataclass(frozen=True)
class Group:
    """Runs of one algorithm and of the same weights.

    Attributes
    ----------
    name, version, sha256
        Model in their provenance.
    runs, lazy
        How many there are, and how many of them are computed when they are read.
    """

    algorithm: str
    name: str
    version: str
    sha256: str
    runs: int
    lazy: int

    @property
    def counted(self) -> str:
        """The numbers in words."""
        lazy = f", {self.lazy} of them lazy" if self.lazy else ""
        return f"{self.runs} run{'s' * (self.runs != 1)}{lazy}"


def groups(http: httpx.Client, container: str = "denoised") -> list[Group]:
    """Return the runs of a container by algorithm and weights, with two requests for each algorithm.

    Parameters
    ----------
    http
        Client whose base URL is that of Tiled's API.
    """
    found = []
    for algorithm, _ in _distinct(http, container, _ALGORITHM):
        of_it: Condition = ("eq", _ALGORITHM, algorithm)
        lazy: Counter[str] = Counter()
        for model, count in _distinct(http, container, _MODEL, of_it, *_LAZY):
            lazy[_sha256(model)] += count
        # The same weights may have several names.
        runs: dict[str, list[tuple[Any, int]]] = {}
        for model, count in _distinct(http, container, _MODEL, of_it):
            runs.setdefault(_sha256(model), []).append((model, count))
        for sha256, models in runs.items():
            name, version = (str(models[0][0].get(key, "?")) for key in ("name", "version"))
            total = sum(count for _, count in models)
            found.append(Group(str(algorithm), name, version, sha256, total, lazy[sha256]))
    return sorted(found, key=lambda group: (group.algorithm, -group.runs))


def _sha256(model: Any) -> str:
    return str(model.get("sha256", "?"))


def recipes(http: httpx.Client, container: str = "denoised") -> Iterator[Finding]:
    """Yield a finding for each group of runs that this version, on this computer, could not compute again."""
    try:
        found = groups(http, container)
        lacking = [(group, finding) for group in found if (finding := _finding(http, container, group)) is not None]
    except httpx.TimeoutException:
        yield Finding(
            "recipes",
            "warning",
            f"the server did not count its runs by algorithm and weights within {COUNTING_S:g} s",
            "ask again at a quiet hour, or use PostgreSQL",
        )
        return
    total, lost = sum(group.runs for group in found), sum(group.runs for group, _ in lacking)
    good = [group for group in found if group not in [each for each, _ in lacking]]
    said = "; ".join(f"algorithm {each.algorithm} with {each.name} {each.version}: {each.counted}" for each in good)
    yield Finding(
        "recipes",
        "OK",
        f"{total - lost} of {total} runs can be computed again by this version on this computer"
        + (f" ({said})" if said else ""),
    )
    yield from (finding for _, finding in lacking)


def _finding(http: httpx.Client, container: str, group: Group) -> Finding | None:
    """Return what is wrong with a group of runs; None if nothing is."""
    if is_released(group.algorithm):
        if found_by_sha256(group.sha256, first=group.name) is not None:
            return None
        why = f"model {group.name!r} version {group.version} with sha256 {group.sha256[:12]} is not on this computer"
        remedy = where_weights_are(group.sha256, group.name)
        if group.lazy:
            remedy += "; on the server's computer, too, for lazy runs"
    else:
        conditions: tuple[Condition, ...] = (
            ("eq", _ALGORITHM, group.algorithm),
            ("eq", f"{_MODEL}.sha256", group.sha256),
        )
        made = [str(version) for version, _ in _distinct(http, container, _PACKAGE, *conditions)]
        why = not_computed(group.algorithm)
        remedy = way_out(group.algorithm, " or ".join(sorted(made)))
        remedy += "; `symdenoise replay` makes stored runs again"
        if group.lazy:
            remedy += ", `symdenoise register --renew` lazy ones of older algorithms"
    what = "is not served" if group.runs == group.lazy == 1 else "are not served"
    served = f"; {group.lazy} {what} by a server of this version" if group.lazy else "; their pixels stay"
    return Finding(
        f"algorithm {group.algorithm}, weights {group.sha256[:12]}",
        "problem" if group.lazy else "warning",
        f"{group.counted}: {why}{served}",
        remedy,
    )


def _distinct(http: httpx.Client, container: str, key: str, *conditions: Condition) -> list[tuple[Any, int]]:
    """Return the values of a metadata key among the denoised runs that meet all conditions, with their numbers."""
    parameters: list[tuple[str, str | int | float | bool | None]] = [
        ("metadata", key),
        ("counts", "true"),
        ("filter[specs][condition][include]", json.dumps([SPEC])),
        ("filter[specs][condition][exclude]", "[]"),
    ]
    for kind, of, value in conditions:
        query = f"filter[{kind}][condition]"
        parameters += [(f"{query}[key]", of), (f"{query}[value]", json.dumps(value))]
    answer = http.get(f"distinct/{container}", params=parameters, timeout=COUNTING_S).raise_for_status()
    return [(each["value"], int(each["count"])) for each in answer.json()["metadata"][key] if each["value"] is not None]
